"""3D evaluation in millimetres, from files, without torch and without nnU-Net."""
