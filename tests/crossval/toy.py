"""A tiny raw dataset that nnU-Net can plan, preprocess and train on within seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from samnn.geometry import Grid
from samnn.io import Volume, write_volume

GRID = Grid((28, 30, 14), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
DATASET = "Dataset511_Toy"
ENET = "nnUNetTrainerENet_2epochs_4iters_seed1:2d"
UNET = "nnUNetTrainerUNet_2epochs_4iters_seed1:2d"
SMALL = {  # for two busy cores
    "nnUNet_def_n_proc": "1",
    "nnUNet_n_proc_DA": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONWARNINGS": "ignore",
}
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def write_toy(raw: Path, *, n_training: int = 6, n_test: int = 0) -> Path:
    """Cases with a bright ball (1) that holds a brighter core (2); the patient is `p0`, `p1`, … of each."""
    folder = raw / DATASET
    for i in range(n_training + n_test):
        rng = np.random.default_rng(i)
        where = np.indices(GRID.shape)
        centre = np.array([14, 15, 7]) + rng.uniform(-2, 2, 3)
        radius = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(where, centre, strict=True)))
        labels = np.where(radius < 3, 2, np.where(radius < 6, 1, 0)).astype(np.uint8)
        image = rng.normal(0, 30, GRID.shape) + np.array([0, 200, 500])[labels]
        split = "Tr" if i < n_training else "Ts"
        for kind, voxels, end in [("images", image.astype(np.float32), "_0000"), ("labels", labels, "")]:
            (folder / f"{kind}{split}").mkdir(parents=True, exist_ok=True)
            write_volume(folder / f"{kind}{split}" / f"p{i // 2}_{i}{end}.nii.gz", Volume(voxels, GRID))
    content = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "ball": 1, "core": 2},
        "numTraining": n_training,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
