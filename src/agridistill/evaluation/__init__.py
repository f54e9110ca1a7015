"""Measures how good a model is: metrics, and the choice of photos that the model did not learn from."""
