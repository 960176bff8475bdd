"""nnU-Net trainers, one `trainer_*.py` a family: the folder that `nnUNet_extTrainer` names."""
