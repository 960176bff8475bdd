"""A small real experiment from one command to its report: what is there, what is recorded, what is not done twice."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Snakemake 9 needs Python 3.11")
DATASET = "Dataset501_Tiny"
METHOD = "nnUNetTrainerENet_1epochs_2iters_seed1:2d"
FOLDER = "nnUNetTrainerENet_1epochs_2iters_seed1__nnUNetPlans__2d"


@pytest.fixture(scope="module")
def finished(nnunet: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Two folds of one method as `samnn crossval` runs them; planned and preprocessed before, without splits."""
    from samnn.crossval.start import start

    root = tmp_path_factory.mktemp("crossval")
    folders = {"nnUNet_preprocessed": root / "preprocessed", "nnUNet_results": root / "results"}
    shutil.copytree(nnunet.preprocessed / DATASET, root / "preprocessed" / DATASET)
    (root / "preprocessed" / DATASET / "splits_final.json").unlink(missing_ok=True)
    out = root / "out"
    given = {"dataset": 501, "methods": [METHOD], "folds": [0, 1], "device": "cpu", "cpus": 1, "test": False}
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in folders.items():
            patch.setenv(name, str(folder))
        start(
            given, file=None, out=out, resume=False, executor="local", jobs=1, extra="", dry_run=False,
            print_commands=False, console=Console(stderr=True),
        )  # fmt: skip
        yield SimpleNamespace(out=out, preprocessed=root / "preprocessed", results=root / "results" / DATASET)


def test_one_command_ends_in_a_report_of_exactly_these_folds(finished: SimpleNamespace) -> None:
    report = (finished.out / "comparison" / "report.html").read_text()
    assert METHOD in report
    splits = json.loads((finished.preprocessed / DATASET / "splits_final.json").read_text())
    held_out = {case for split in splits[:2] for case in split["val"]}
    values = (finished.out / "comparison" / "tables" / "values.csv").read_text()
    assert {case for case in (f"case_{i}" for i in range(6)) if case in values} == held_out
    assert (finished.out / "evaluation" / FOLDER / "metrics.csv").is_file()


def test_the_splits_are_those_that_nnunet_would_have_written(finished: SimpleNamespace) -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    splits = json.loads((finished.preprocessed / DATASET / "splits_final.json").read_text())
    cases = sorted(case for split in splits for case in split["val"])
    assert splits == [
        {k: [str(c) for c in v] for k, v in split.items()} for split in generate_crossval_split(cases)
    ]
    prepared = (finished.out / "done" / "prepare.json").stat().st_mtime
    logs = finished.results.glob(f"{FOLDER}/fold_*/training_log_*.txt")
    assert all(log.stat().st_ctime > prepared for log in logs)
    assert all("Using splits from existing split file" in log.read_text() for log in logs)


def test_every_fold_says_what_made_it(finished: SimpleNamespace) -> None:
    for fold in (0, 1):
        made = json.loads((finished.results / FOLDER / f"fold_{fold}" / "provenance.json").read_text())
        assert made["dataset"] == DATASET and made["split"]["fold"] == fold and made["seed"] == 1
        assert len(made["data"]["sha256"]) == len(made["plans"]["sha256"]) == 64
        assert made["commands"][0][:4] == ["nnUNetv2_train", "501", "2d", str(fold)]
        assert made["versions"]["nnunetv2"] and made["hardware"]["processor"]
    whole = json.loads((finished.out / "comparison" / "provenance.json").read_text())
    assert whole["folds"][METHOD]["1"] == made


def test_again_nothing_is_trained_and_nothing_is_written(
    finished: SimpleNamespace, capsys: pytest.CaptureFixture
) -> None:
    from samnn.crossval.engine import run
    from samnn.crossval.experiment import Experiment
    from samnn.crossval.steps import steps_in

    watched = [*finished.results.glob(f"{FOLDER}/fold_*/*"), *finished.out.glob("done/*")]
    before = {path: path.stat().st_mtime_ns for path in watched if path.is_file()}
    experiment = Experiment.read(finished.out / "experiment.toml")
    run(finished.out, steps_in(finished.out), experiment, jobs=1, console=Console(stderr=True))
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(list(finished.results.glob(f"{FOLDER}/fold_*/training_log_*.txt"))) == 2


def test_a_finished_fold_is_taken_as_it_is_without_its_marker(finished: SimpleNamespace) -> None:
    """As one that was trained by hand."""
    from samnn.crossval.job import do

    name = f"fold-{FOLDER}-0"
    checkpoint = finished.results / FOLDER / "fold_0" / "checkpoint_final.pth"
    before = checkpoint.stat().st_mtime_ns
    (finished.out / "done" / f"{name}.json").unlink()
    do(finished.out, name)
    assert (finished.out / "done" / f"{name}.json").is_file()
    assert checkpoint.stat().st_mtime_ns == before


def test_status_shows_every_step_and_its_log(finished: SimpleNamespace, command: Callable) -> None:
    shown = command("samnn", "crossval", "status", "-o", finished.out, COLUMNS="200").stdout
    assert shown.count("done") >= 5 and "report.html" in shown
    assert (finished.out / "logs" / f"fold-{FOLDER}-1.log").is_file()


def test_folds_of_other_data_are_refused(finished: SimpleNamespace) -> None:
    from samnn.crossval.check import _folds_from_elsewhere
    from samnn.crossval.experiment import Experiment

    experiment = Experiment.read(finished.out / "experiment.toml")
    assert _folds_from_elsewhere(experiment) == []
    path = finished.results / FOLDER / "fold_1" / "provenance.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"data": {"what": "raw", "sha256": "0" * 64}}))
    try:
        (found,) = _folds_from_elsewhere(experiment)
    finally:
        path.write_text(kept)
    assert "fold_1" in found and "other data" in found


def test_a_half_written_checkpoint_is_never_taken_for_whole(
    finished: SimpleNamespace, tmp_path: Path
) -> None:
    from dataclasses import replace

    from samnn.crossval.experiment import Experiment
    from samnn.crossval.folds import Fold

    experiment = Experiment.read(finished.out / "experiment.toml")
    copy = tmp_path / DATASET / FOLDER / "fold_0"
    shutil.copytree(finished.results / FOLDER / "fold_0", copy)
    fold = Fold(replace(experiment, results=str(tmp_path)), experiment.methods[0], 0)
    assert fold.is_trained and "--val" in fold.command()
    final = copy / "checkpoint_final.pth"
    whole = final.read_bytes()
    for share in (0.0, 0.5, 0.999):
        final.write_bytes(whole[: int(share * len(whole))])
        assert not fold.is_trained
        assert fold.set_damaged_aside() == [final.with_suffix(".pth.damaged")]
        assert "--c" in fold.command()  # from checkpoint_best
