"""From a finished run to a file that a device runs."""
