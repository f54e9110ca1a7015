"""The field agent: classifies new photos, opens alerts and delivers every detection. `building.watch` runs it."""
