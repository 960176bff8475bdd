"""The metrics: one a file, found by its file name."""
