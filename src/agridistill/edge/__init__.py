"""The agent in the field: watches photos, decides, warns, and delivers every detection; `building.watch` runs it."""
