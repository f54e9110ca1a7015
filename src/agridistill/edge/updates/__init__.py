"""Signed model updates: the device always runs the old or the new model, never none."""
