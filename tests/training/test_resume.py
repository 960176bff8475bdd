"""A run that is killed and continued equals one that was not, loss by loss; real processes, real signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from samnn.training import resume

NAME = "nnUNetTrainerENet_3epochs_8iters_seed3"
FINAL = "checkpoint_final.pth"


def fold_of(results: Path, name: str = NAME) -> Path:
    return results / "Dataset501_Tiny" / f"{name}__nnUNetPlans__2d" / "fold_0"


def read(checkpoint: Path) -> dict:
    return torch.load(checkpoint, map_location="cpu", weights_only=False)


@pytest.fixture(scope="module")
def undisturbed(nnunet: SimpleNamespace, command: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict:
    results = tmp_path_factory.mktemp("undisturbed")
    command("nnUNetv2_train", 501, "2d", 0, "-tr", NAME, "-device", "cpu", nnUNet_results=str(results))
    return read(fold_of(results) / FINAL)


def interrupted(results: Path, *, epoch: int, iteration: int, number: signal.Signals) -> int:
    """Start the stock command with a trainer that sends itself `number` at a chosen iteration; → exit code.

    The signal is real and arrives during the step; only its moment is chosen, so that it falls within an epoch."""
    script = f"""
import os, sys
from samnn.training.steps import GuardedSteps
step = GuardedSteps.train_step
def with_signal(self, batch):
    if (self.current_epoch, self.iteration_in_epoch) == ({epoch}, {iteration}):
        os.kill(os.getpid(), {int(number)})
    return step(self, batch)
GuardedSteps.train_step = with_signal
from nnunetv2.run.run_training import run_training_entry
sys.argv = ["nnUNetv2_train", "501", "2d", "0", "-tr", "{NAME}", "-device", "cpu"]
run_training_entry()
"""
    environment = os.environ | {"nnUNet_results": str(results), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, timeout=600
    ).returncode


@pytest.mark.parametrize(
    ("number", "code", "epoch", "iteration"),
    [
        # in the middle of an epoch: stops after the step
        pytest.param(signal.SIGTERM, 143, 1, 5, marks=pytest.mark.slow),
        # before anything was saved
        pytest.param(signal.SIGTERM, 143, 0, 0, marks=pytest.mark.slow),
        (signal.SIGKILL, -9, 2, 1),  # no chance to save: back to the end of an earlier epoch
    ],
)
def test_killed_and_continued_equals_undisturbed(
    undisturbed: dict,
    command: Callable,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    epoch: int,
    iteration: int,
) -> None:
    assert interrupted(tmp_path, epoch=epoch, iteration=iteration, number=number) == code
    fold = fold_of(tmp_path)
    latest = read(fold / "checkpoint_latest.pth")
    if number == signal.SIGTERM:
        assert (latest["current_epoch"], latest["samnn"]["iteration_in_epoch"]) == (epoch, iteration + 1)
    command(
        "nnUNetv2_train", 501, "2d", 0, "-tr", NAME, "--c", "-device", "cpu", nnUNet_results=str(tmp_path)
    )
    resumed = read(fold / FINAL)
    for key in ("train_losses", "val_losses", "lrs", "mean_fg_dice"):
        assert resumed["logging"][key] == undisturbed["logging"][key], key
    for key, value in undisturbed["network_weights"].items():
        assert torch.equal(value, resumed["network_weights"][key]), key
    assert not (fold / "checkpoint_latest.pth").exists()
    assert not list(fold.glob(".part-*"))


def test_sigusr1_saves_and_goes_on(nnunet: SimpleNamespace, undisturbed: dict, tmp_path: Path) -> None:
    assert interrupted(tmp_path, epoch=1, iteration=2, number=signal.SIGUSR1) == 0
    resumed = read(fold_of(tmp_path) / FINAL)
    assert resumed["logging"]["train_losses"] == undisturbed["logging"]["train_losses"]
    log = next(fold_of(tmp_path).glob("training_log*.txt")).read_text()
    assert "Asked by a signal: wrote checkpoint_latest.pth at epoch 1, iteration 3." in log


@pytest.mark.slow
def test_a_stop_during_validation_repeats_the_validation(make_trainer: Callable, tmp_path: Path) -> None:
    def run(trainer: object) -> dict:
        trainer.output_folder = str(tmp_path)
        trainer.run_training()
        return trainer.logger.get_checkpoint()

    name = "nnUNetTrainerENet_2epochs_5iters_seed3"
    whole = run(make_trainer(name))
    stopped = make_trainer(name)
    step = stopped.validation_step

    def with_signal(batch: dict) -> dict:
        if stopped.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return step(batch)

    stopped.validation_step = with_signal
    with pytest.raises(SystemExit) as stop:
        run(stopped)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed = make_trainer(name)
    resumed.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert resumed.iteration_in_epoch == 5
    log = run(resumed)
    assert log["train_losses"] == whole["train_losses"]
    assert log["val_losses"] == whole["val_losses"]


@pytest.mark.slow
def test_latest_is_written_after_the_first_epoch_then_when_minutes_have_passed(
    make_trainer: Callable, tmp_path: Path
) -> None:
    trainer = make_trainer("nnUNetTrainerENet_4epochs_1iters_seed0")
    trainer.output_folder = str(tmp_path)
    written = []
    save = trainer._save_latest
    trainer._save_latest = lambda: (written.append(trainer.current_epoch), save())
    trainer.run_training()
    assert written == [1]
    again = make_trainer("nnUNetTrainerENet_4epochs_1iters_seed0")
    again.output_folder, again.minutes_between_checkpoints = str(tmp_path), 0
    save_again = again._save_latest
    again._save_latest = lambda: (written.append(again.current_epoch), save_again())
    again.run_training()
    assert written == [1, 1, 2, 3]  # the last epoch writes checkpoint_final instead


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    make_trainer: Callable, tmp_path: Path
) -> None:
    trainer = make_trainer("nnUNetTrainerENet_seed0")
    trainer.output_folder = str(tmp_path)
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    before = (tmp_path / "checkpoint_latest.pth").read_bytes()
    trainer.my_init_kwargs = {"plans": lambda: None}  # does not pickle: the write breaks off in the middle
    with pytest.raises(Exception, match="pickle"):
        trainer.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert (tmp_path / "checkpoint_latest.pth").read_bytes() == before
    assert not list(tmp_path.glob(".part-*"))


def test_a_stock_checkpoint_can_be_continued(make_trainer: Callable, tmp_path: Path) -> None:
    stock = make_trainer("nnUNetTrainer")
    stock.initialize()
    stock.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    ours = make_trainer("nnUNetTrainerUNet")
    ours.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert ours.current_epoch == 1
    assert all(
        torch.equal(a, b) for a, b in zip(ours.network.parameters(), stock.network.parameters(), strict=True)
    )


def test_the_log_says_when_the_run_will_end(
    make_trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "FORECAST_AFTER", 3)  # 50 take long here
    trainer = make_trainer("nnUNetTrainerENet_2epochs_2iters_seed0")
    trainer.output_folder = str(tmp_path)
    trainer.run_training()
    log = Path(trainer.log_file).read_text()
    assert log.count("per epoch; the remaining 1 epochs end around") == 1
