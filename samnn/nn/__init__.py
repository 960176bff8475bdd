"""Networks: torch and timm only, usable without nnU-Net."""
