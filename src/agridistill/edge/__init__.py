"""The agent in the field: watches, decides, warns, and never loses a detection."""
