"""From a data folder to a finished run folder."""
