"""`samnn doctor -d -c -tr` names what a training would miss, before it waits in a queue."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from samnn.doctor import OK, PROBLEM, WARNING, Finding
from samnn.doctor_job import Job, examine_job

ENET = Job("501", "2d", "nnUNetTrainerENet_1epochs_1iters", "nnUNetPlans")

PICKY = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from samnn.errors import SamnnError

class nnUNetTrainerPicky(nnUNetTrainer):
    @classmethod
    def check(cls, manager, configuration):
        if configuration != "2d":
            raise SamnnError(f"takes 2d, not {configuration}. Use -c 2d.")

    @classmethod
    def needed_weights(cls, manager, configuration):
        return FILE
"""


def findings(job: Job) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine_job(job)}


def problem(job: Job, subject: str) -> str:
    """The text of the one problem there is."""
    found = findings(job)
    assert [finding.subject for finding in found.values() if finding.status == PROBLEM] == [subject]
    return f"{found[subject].found} {found[subject].cure}"


@pytest.fixture
def picky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Job]:
    """A job of a trainer that starts from the weights named."""

    def make(weights: str, configuration: str = "2d") -> Job:
        (tmp_path / "trainers").mkdir(exist_ok=True)
        (tmp_path / "trainers" / "trainer_picky.py").write_text(PICKY.replace("FILE", repr(weights)))
        monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
        monkeypatch.setenv("SAMNN_WEIGHTS", str(tmp_path / "weights"))
        return Job("501", configuration, "nnUNetTrainerPicky", "nnUNetPlans")

    return make


def test_where_all_is_there_everything_is_well(nnunet: SimpleNamespace) -> None:
    found = findings(ENET)
    assert {finding.status for finding in found.values()} == {OK}
    assert found["preprocessed data"].found.startswith("6 cases in ")
    assert "batch" in found["nnUNetPlans, 2d"].found
    assert found["pretrained weights"].found == "none needed"


def test_the_command_prints_it_after_the_installation_and_exits_with_1_where_something_is_missing(
    nnunet: SimpleNamespace, command: Callable[..., subprocess.CompletedProcess]
) -> None:
    done = command(
        "samnn", "doctor", "-d", 501, "-c", "2d", "-tr", "nnUNetTrainerENet_2epoch", ok=False, COLUMNS="300"
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "unknown suffix _2epoch" in done.stdout and "1 problem(s)" in done.stdout
    assert done.stdout.index("Python") < done.stdout.index("nnUNetPlans, 2d")


@pytest.mark.parametrize(
    ("changes", "subject", "said"),
    [
        ({"dataset": "999"}, "dataset", "Dataset 999: there is none"),
        ({"dataset": "Dataset777_None"}, "dataset", "Dataset777_None: there is none"),
        ({"dataset": "liver"}, "dataset", "liver"),
        ({"configuration": "2d_samed"}, "nnUNetPlans, 2d_samed", "it has 2d, 3d_fullres"),
        ({"plans": "samnnPlans"}, "samnnPlans, 2d", "does not exist, there are nnUNetPlans"),
        (
            {"trainer": "nnUNetTrainerENet_seed1_GDL"},
            "nnUNetTrainerENet_seed1_GDL",
            "Use nnUNetTrainerENet_GDL_seed1",
        ),
        ({"trainer": "nnUNetTrainerEnet"}, "nnUNetTrainerEnet", "Could not find requested nnunet trainer"),
        (
            {"dataset": "502", "configuration": "3d_fullres"},
            "preprocessed data",
            "nnUNetv2_preprocess -d 502",
        ),
    ],
    ids=[
        "no_id",
        "no_name",
        "no_number",
        "configuration",
        "plans",
        "suffix_order",
        "trainer",
        "not_preprocessed",
    ],
)
def test_each_thing_that_is_missing_is_the_one_problem(
    nnunet: SimpleNamespace, changes: dict[str, str], subject: str, said: str
) -> None:
    job = Job(**{**vars(ENET), "trainer": "nnUNetTrainer", **changes})
    assert said in problem(job, subject)


def test_cases_that_were_not_preprocessed_are_named(
    nnunet: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "Dataset501_Tiny"
    shutil.copytree(nnunet.preprocessed / "Dataset501_Tiny", folder)
    data = folder / "nnUNetPlans_2d"
    (data / "case_3.pkl").unlink()
    splits = [{"train": ["case_0", "case_9"], "val": ["case_1"]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    said = problem_in(tmp_path, monkeypatch)
    assert "lacks 2 case(s): case_3, case_9" in said and "nnUNetv2_preprocess -d 501" in said
    (folder / "splits_final.json").write_text("[")
    assert "splits_final.json" in problem_in(tmp_path, monkeypatch)


def problem_in(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    return problem(ENET, "preprocessed data")


def test_weights_that_are_missing_or_wrong_are_a_problem_with_the_command_that_gets_them(
    nnunet: SimpleNamespace, picky: Callable[..., Job], tmp_path: Path
) -> None:
    assert "samnn weights get sam_vit_b" in problem(picky("sam_vit_b"), "pretrained weights")
    own = tmp_path / "own.pth"
    own.write_text("<html>")
    assert f"{own}: is a web page" in problem(picky(str(own)), "pretrained weights")


def test_a_users_own_weights_are_hashed_and_fine(
    nnunet: SimpleNamespace, picky: Callable[..., Job], tmp_path: Path
) -> None:
    import torch

    torch.save({"a": torch.zeros(3)}, tmp_path / "own.pth")
    assert findings(picky(str(tmp_path / "own.pth")))["pretrained weights"].status == OK


def test_a_trainer_that_does_not_take_the_plans_says_so(
    nnunet: SimpleNamespace, picky: Callable[..., Job]
) -> None:
    assert "takes 2d, not 3d_fullres" in problem(picky("sam_vit_b", "3d_fullres"), "trainer and plans")


def test_a_fold_that_has_begun_is_told_of(nnunet: SimpleNamespace) -> None:
    trainer = "nnUNetTrainerNoMirroring"  # the tests train no fold with it
    folder = nnunet.results / "Dataset501_Tiny" / f"{trainer}__nnUNetPlans__2d"
    job = Job("501", "2d", trainer, "nnUNetPlans")
    for fold, name in [("fold_0", "checkpoint_final.pth"), ("fold_1", "checkpoint_latest.pth")]:
        (folder / fold).mkdir(parents=True)
        (folder / fold / name).touch()
    try:
        found = findings(job)["results"]
    finally:
        shutil.rmtree(folder)
    assert found.status == WARNING and "fold_0 is finished, fold_1 has begun" in found.found


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
