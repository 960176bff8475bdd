"""`samnn plan`: adds configurations for our networks to existing nnU-Net plans, on the same preprocessed data."""
