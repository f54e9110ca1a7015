"""From a frame to a detection: quality gate, model, how far its answer may be believed."""
