"""Networks by name, their weights, their attention and their size."""
