"""Real nnU-Net on tiny generated data: folders, commands, and trainers built in this process."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

os.environ["nnUNet_def_n_proc"] = "1"  # read by nnU-Net when it is imported
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tiny steps on a shared machine: threads must not spin
os.environ["nnUNet_extTrainer"] = str(Path(__file__).resolve().parents[2] / "plugins")

from samnn.geometry import Grid
from samnn.io import Volume, write_volume

NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
GRID = Grid((36, 40, 24), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def tiny_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy volume with a bright ball (1) that holds a brighter core (2), elsewhere in each case."""
    rng = np.random.default_rng(seed)
    where = np.indices(GRID.shape)
    centre = np.array([18, 20, 12]) + rng.uniform(-4, 4, 3)
    radius = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(where, centre, strict=True)))
    labels = np.where(radius < 4, 2, np.where(radius < 8, 1, 0)).astype(np.uint8)
    image = rng.normal(0, 30, GRID.shape) + np.array([0, 200, 500])[labels]
    return image.astype(np.float32), labels


def write_raw(
    folder: Path, labels: dict, *, n_training: int = 6, ignore: int | None = None, **extra: object
) -> None:
    """An nnU-Net raw dataset of tiny cases, two of them held back for testing."""
    for i in range(n_training + 2):
        image, truth = tiny_case(i)
        split = "Tr" if i < n_training else "Ts"
        if ignore is not None and split == "Tr":  # the upper slices are not labelled
            truth[:, :, 16:] = ignore
        for kind, voxels, end in [("images", image, "_0000"), ("labels", truth, "")]:
            (folder / f"{kind}{split}").mkdir(parents=True, exist_ok=True)
            write_volume(folder / f"{kind}{split}" / f"case_{i}{end}.nii.gz", Volume(voxels, GRID))
    content = {
        "channel_names": {"0": "MR"},
        "labels": labels,
        "numTraining": n_training,
        "file_ending": ".nii.gz",
        **extra,
    }
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess]:
    """Runs one of nnU-Net's or our commands as users do; fails with its output where it fails."""

    def run(name: str, *args: object, ok: bool = True, **env: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [str(Path(sys.executable).parent / name), *map(str, args)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore", "MPLBACKEND": "agg"} | env,
            timeout=900,
        )
        if ok and done.returncode != 0:
            pytest.fail(f"{name} {' '.join(map(str, args))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done

    return run


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory: pytest.TempPathFactory, command: Callable) -> SimpleNamespace:
    """The three folders, with datasets 501 (two classes) and 502 (regions and ignore label) preprocessed in 2D;
    501 in 3D too. Planned once, however many processes share the tests; each has folders of its own."""
    base = tmp_path_factory.getbasetemp()
    prepared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "prepared"
    with open(f"{prepared}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not prepared.exists():
            _prepare(prepared.with_name("preparing"), command)
            prepared.with_name("preparing").rename(prepared)
    root = tmp_path_factory.mktemp("nnunet")
    shutil.copytree(prepared, root, dirs_exist_ok=True)
    folders = {name: root / name for name in NNUNET_FOLDERS}
    os.environ |= {name: str(folder) for name, folder in folders.items()}
    return SimpleNamespace(
        raw=folders["nnUNet_raw"],
        preprocessed=folders["nnUNet_preprocessed"],
        results=folders["nnUNet_results"],
    )


def _prepare(root: Path, command: Callable) -> None:
    folders = {name: root / name for name in NNUNET_FOLDERS}
    for folder in folders.values():
        folder.mkdir(parents=True)
    raw = folders["nnUNet_raw"]
    write_raw(raw / "Dataset501_Tiny", {"background": 0, "ball": 1, "core": 2})
    write_raw(
        raw / "Dataset502_TinyRegions",
        {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        ignore=3,
        regions_class_order=[1, 2],
    )
    env = {name: str(folder) for name, folder in folders.items()} | {"nnUNet_n_proc_DA": "1"}
    few = ("-np", 1, "-npfp", 1)
    command(
        "nnUNetv2_plan_and_preprocess", "-d", 501, 502, "-c", "2d", *few, "--verify_dataset_integrity", **env
    )
    command("nnUNetv2_preprocess", "-d", 501, "-c", "3d_fullres", "-np", 1, **env)


@pytest.fixture(scope="session")
def own_weights(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own file: a tiny SAM with random weights in Meta's layout."""
    return shutil.copy(
        shared / "reference" / "sam_tiny_base.pth", tmp_path_factory.mktemp("own") / "sam_tiny.pth"
    )


@pytest.fixture(scope="session")
def samed_plans(nnunet: SimpleNamespace, shared: Path, own_weights: Path) -> str:
    """Plans of 501 and 502 whose configuration 2d_samed names the architecture of that tiny SAM, and its file."""
    sizes = json.loads((shared / "reference" / "config.json").read_text())["sam"]
    architecture = {
        "network_class_name": "samnn.nn.samed.SAMed",
        "arch_kwargs": {"architecture": sizes},
        "_kw_requires_import": [],
    }
    for folder in nnunet.preprocessed.glob("Dataset50[12]_*"):
        plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"plans_name": "tinyPlans"}
        plans["configurations"]["2d_samed"] = {
            "inherits_from": "2d",
            "batch_size": 3,
            "architecture": architecture,
            "pretrained_weights": str(own_weights),
        }
        (folder / "tinyPlans.json").write_text(json.dumps(plans))
    return "tinyPlans"


@pytest.fixture
def make_trainer(nnunet: SimpleNamespace) -> Callable:
    """Builds a trainer of this process as `nnUNetv2_train` does, on the CPU."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    def make(
        name: str,
        *,
        dataset: str = "501",
        configuration: str = "2d",
        fold: int = 0,
        plans: str = "nnUNetPlans",
    ) -> object:
        return get_trainer_from_args(dataset, configuration, fold, name, plans, device=torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def preprocessed_folder() -> Callable[..., Path]:
    """Writes label maps as nnU-Net's preprocessing does; each voxel of an image tells its own place, from 1 on."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    def write(folder: Path, maps: dict[str, np.ndarray], *, classes: list) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for case, voxels in maps.items():
            places = np.arange(1, voxels.size + 1, dtype=np.float32).reshape(voxels.shape)
            locations = DefaultPreprocessor._sample_foreground_locations(voxels[None], classes)
            blocks = (1, *voxels.shape)
            for path in folder.glob(f"{case}*"):
                path.unlink()
            nnUNetDatasetBlosc2.save_case(
                places[None], voxels[None].astype(np.int16), {"class_locations": locations}, str(folder / case),
                chunks=blocks, blocks=blocks,
            )  # fmt: skip
        return folder

    return write
