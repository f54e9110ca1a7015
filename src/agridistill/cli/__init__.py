"""The command line: one small module a command; heavy libraries are imported inside the commands."""
