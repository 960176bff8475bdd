"""Real images: a thorax CT predicted by models planned on an abdomen; the labels are nonsense, the geometry is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import write_fold

from samnn.io import read_grid, read_labels


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_thorax_is_predicted_on_its_own_grid(configuration: str, shared: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        folder.mkdir()
    env = os.environ | {name: str(folder) for name, folder in folders.items()}
    env |= {"OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "1"}  # planning crashes with the 0 of training tests
    name = "Dataset905_TSAbdomenSlabs"
    shutil.copytree(shared / "data" / name, folders["nnUNet_raw"] / name)

    def run(command: str, *args: object) -> None:
        subprocess.run([Path(sys.executable).parent / command, *map(str, args)], env=env, check=True)

    run("nnUNetv2_plan_and_preprocess", "-d", 905, "--no_pp", "-npfp", 1)
    model = folders["nnUNet_results"] / name / f"nnUNetTrainerENet__nnUNetPlans__{configuration}"
    model.mkdir(parents=True)
    planned = folders["nnUNet_preprocessed"] / name
    shutil.copyfile(planned / "nnUNetPlans.json", model / "plans.json")
    shutil.copyfile(planned / "dataset.json", model / "dataset.json")
    trainer, mirrored = ("nnUNetTrainerENet", (0, 1)) if configuration == "2d" else ("nnUNetTrainer", (0,))
    write_fold(model, 0, configuration, trainer, mirrored)
    images = shared / "data" / "Dataset907_TSThoraxCTA" / "imagesTs"
    run(
        "samnn",
        "predict",
        "-i",
        images,
        "-o",
        tmp_path / "out",
        "-m",
        model,
        "-device",
        "cpu",
        "-step_size",
        1,
    )
    image = next(images.glob("*.nii.gz"))
    predicted = tmp_path / "out" / image.name.replace("_0000", "")
    assert not read_grid(predicted).differences(read_grid(image))
    assert read_labels(predicted).voxels.max() <= 7
