"""The command line, with one module for each command; commands import large libraries only when they run."""
