"""samnn: SAM-family and classic networks as nnU-Net v2 plugins, with evaluation in millimetres."""

__version__ = "0.1.0"
