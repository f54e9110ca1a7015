"""The teacher's answers on disk: what they depend on, how they are stored, how they are built and read."""
