"""Running a model: the backend's interface, reading photos, predictions."""
