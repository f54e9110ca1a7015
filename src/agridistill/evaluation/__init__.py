"""How good a model is: metrics, and the photos that it may fairly be scored on."""
