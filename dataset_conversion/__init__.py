"""Converters into nnU-Net raw format: one dataset a file, found by its file name."""
