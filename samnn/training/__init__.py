"""The one place that touches the hooks of nnU-Net's trainer."""
