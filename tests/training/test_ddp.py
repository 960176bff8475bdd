"""Two processes train one network: split batches, equal weights, one checkpoint, and a stop that both obey."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from samnn.training.pretrained import RECORD

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("ddp_run.py")
ENET = "nnUNetTrainerENet_2epochs_4iters_seed1"


def train(
    name: str, results: Path, *more: str, configuration: str = "2d", **env: str
) -> subprocess.CompletedProcess:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(SCRIPT), name, configuration, str(port), *more]
    env = os.environ | {"nnUNet_results": str(results), "PYTHONWARNINGS": "ignore"} | env
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)


def fold_of(results: Path, name: str, configuration: str = "2d") -> Path:
    return results / "Dataset501_Tiny" / f"{name}__nnUNetPlans__{configuration}" / "fold_0"


def said_by_ranks(results: Path) -> list[dict]:
    return [json.loads((results / f"rank_{rank}.json").read_text()) for rank in (0, 1)]


def read(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=False)


@pytest.fixture(scope="module")
def undisturbed(nnunet: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    results = tmp_path_factory.mktemp("ddp")
    done = train(ENET, results)
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(results=results, fold=fold_of(results, ENET))


def test_two_processes_split_the_batch_and_end_with_equal_weights(undisturbed: SimpleNamespace) -> None:
    said = said_by_ranks(undisturbed.results)
    plans = read(undisturbed.fold / "checkpoint_final.pth")["init_args"]["plans"]
    assert [rank["equal_weights"] for rank in said] == [True, True]
    assert sum(rank["batch"] for rank in said) == plans["configurations"]["2d"]["batch_size"]
    assert (undisturbed.fold / "validation" / "summary.json").is_file()
    assert len(list((undisturbed.fold / "validation").glob("*.nii.gz"))) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_process_stops_both_and_the_fold_goes_on_exactly(
    undisturbed: SimpleNamespace, tmp_path: Path, rank: int
) -> None:
    stopped = train(ENET, tmp_path, SAMNN_TEST_STOP=f"{rank}:1:1")
    fold = fold_of(tmp_path, ENET)
    assert stopped.returncode != 0
    latest = read(fold / "checkpoint_latest.pth")
    assert (latest["current_epoch"], latest["samnn"]["iteration_in_epoch"]) == (1, 2)
    done = train(ENET, tmp_path, "--c")
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = (read(folder / "checkpoint_final.pth") for folder in (undisturbed.fold, fold))
    for key, value in before["network_weights"].items():
        assert torch.equal(value, after["network_weights"][key]), key


@pytest.mark.parametrize(
    ("name", "configuration"),
    [
        ("nnUNetTrainerUNet_1epochs_2iters", "3d_fullres"),  # instance norm, deep supervision
        ("nnUNetTrainerSAM2UNet_tiny_scratch_1epochs_2iters", "2d"),  # batch norm, three outputs
        ("nnUNetTrainerENet_CRF_AdaptiveSampler_1epochs_2iters", "2d"),
    ],
)
def test_every_kind_of_trainer_runs_in_two_processes(
    nnunet: SimpleNamespace, tmp_path: Path, name: str, configuration: str
) -> None:
    done = train(name, tmp_path, configuration=configuration)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [rank["equal_weights"] for rank in said_by_ranks(tmp_path)] == [True, True]
    assert (fold_of(tmp_path, name, configuration) / "checkpoint_final.pth").is_file()


@pytest.mark.parametrize("batch", [3, 4])
def test_samed_loads_its_weights_into_the_wrapped_network_or_an_uneven_batch_is_refused(
    nnunet: SimpleNamespace, samed_plans: str, tmp_path: Path, batch: int
) -> None:
    folder = nnunet.preprocessed / "Dataset501_Tiny"
    plans = json.loads((folder / f"{samed_plans}.json").read_text()) | {"plans_name": "sharedPlans"}
    plans["configurations"]["2d_samed"]["batch_size"] = batch
    (folder / "sharedPlans.json").write_text(json.dumps(plans))
    name = "nnUNetTrainerSAMed_lean_1epochs_2iters"
    done = train(name, tmp_path, configuration="2d_samed", SAMNN_TEST_PLANS="sharedPlans")
    fold = tmp_path / "Dataset501_Tiny" / f"{name}__sharedPlans__2d_samed" / "fold_0"
    if batch == 3:
        assert done.returncode and "batch of 3 cannot be shared evenly by 2 processes" in done.stderr
        assert not list(fold.glob("*.pth"))
        return
    assert done.returncode == 0, done.stderr[-3000:]
    assert [rank["equal_weights"] for rank in said_by_ranks(tmp_path)] == [True, True]
    assert "Loaded " in next(fold.glob("training_log*.txt")).read_text()
    assert RECORD in read(fold / "checkpoint_final.pth")["network_weights"]
    assert len(list((fold / "validation").glob("*.nii.gz"))) == 2
