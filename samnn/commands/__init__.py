"""The commands of `samnn`, by noun. Heavy imports stay inside the functions."""
