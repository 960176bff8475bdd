"""`samnn evaluate` as a user runs it: the table, the files it writes, the processes it starts."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import samnn
import samnn.evaluation3d
from samnn.evaluation3d import evaluate_folder
from samnn.evaluation3d.metrics import find_metrics

LABELS = {"background": 0, "heart": 1, "esophagus": 2, "mediastinum": [1, 2]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, write_labels, write_dataset_json):
    """a: heart moved by 2 of its 10 voxels. b: esophagus missed. c: esophagus invented. d: not predicted."""
    root = tmp_path_factory.mktemp("study of Jörg")
    write_dataset_json(root, LABELS)
    heart = np.zeros((20, 16, 12), np.uint8)
    heart[3:13, 4:12, 2:8] = 1
    both = heart.copy()
    both[15:17, 4:6, 2:8] = 2
    for name, reference, prediction in [
        ("a", heart, np.roll(heart, 2, axis=0)),
        ("b", both, heart),
        ("c", heart, both),
        ("d", heart, None),
    ]:
        write_labels(root / "labelsTs" / f"{name}.nii.gz", reference)
        if prediction is not None:
            write_labels(root / "predictions" / f"{name}.nii.gz", prediction)
    return root / "labelsTs", root / "predictions"


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory, run_evaluate):
    """One run with everything in it, and its output folder."""
    out = tmp_path_factory.mktemp("out") / "new" / "folder"
    process = run_evaluate(*folders, "-o", out, "--allow-missing", "--tolerance-mm", "2", "--workers", "1")
    assert process.returncode == 0, process.stderr
    return process, out


def rows(out: Path) -> list[dict]:
    with open(out / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def no_constant(name: str):
    raise AssertionError(f"{name} is not JSON")


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"), parse_constant=no_constant)


def test_the_csv_has_a_row_for_each_case_class_and_metric(finished):
    found = rows(finished[1])
    assert list(found[0]) == ["case", "label", "class", "metric", "value", "unit"]
    assert len(found) == 3 * 3 * len(find_metrics())
    table = {(row["case"], row["class"], row["metric"]): row for row in found}
    assert table["a", "heart", "dice"] == {
        "case": "a",
        "label": "1",
        "class": "heart",
        "metric": "dice",
        "value": "0.8",
        "unit": "fraction",
    }
    assert table["a", "heart", "hausdorff"]["value"] == "3.0"
    assert table["a", "heart", "hausdorff"]["unit"] == "mm"
    assert table["a", "mediastinum", "dice"]["label"] == "1+2"
    assert table["a", "esophagus", "dice"]["value"] == "nan"
    assert table["b", "esophagus", "dice"]["value"] == "0.0"
    assert table["b", "esophagus", "hausdorff"]["value"] == "nan"


def test_the_csv_gives_every_digit_of_what_was_computed(finished, folders):
    evaluation = evaluate_folder(*folders, allow_missing=True, tolerance_mm=2)
    expected = evaluation.table["value"].to_list()
    assert [float(row["value"]) for row in rows(finished[1])] == pytest.approx(expected, abs=0, nan_ok=True)


def test_the_summary_has_the_statistics_of_each_class(finished):
    heart = summary(finished[1])["classes"]["heart"]
    assert heart["metrics"]["dice"] == {
        "n": 3,
        "n_undefined": 0,
        "n_missed": 0,
        "n_false": 0,
        "mean": pytest.approx(2.8 / 3),
        "std": pytest.approx(math.sqrt(((0.8 - 2.8 / 3) ** 2 + 2 * (1 - 2.8 / 3) ** 2) / 2)),
        "median": 1.0,
        "min": 0.8,
        "max": 1.0,
    }
    assert heart["metrics"]["hausdorff"]["mean"] == pytest.approx(1.0)
    assert heart["metrics"]["hausdorff"]["max"] == pytest.approx(3.0)


def test_the_summary_counts_and_names_failures_and_leaves_none_out(finished):
    esophagus = summary(finished[1])["classes"]["esophagus"]
    assert (esophagus["missed"], esophagus["false"], esophagus["absent"]) == (["b"], ["c"], ["a"])
    counts = {"n_missed": 1, "n_false": 1}
    dice, hausdorff = esophagus["metrics"]["dice"], esophagus["metrics"]["hausdorff"]
    assert dice.items() >= {"n": 2, "n_undefined": 1, "mean": 0.0, "std": 0.0, **counts}.items()
    assert hausdorff.items() >= {"n": 0, "n_undefined": 3, "mean": None, "std": None, **counts}.items()
    sensitivity = esophagus["metrics"]["sensitivity"]
    assert sensitivity.items() >= {"n": 1, "n_undefined": 2, "mean": 0.0, "std": None, **counts}.items()


def test_the_macro_mean_is_over_classes_with_a_value(finished):
    content = summary(finished[1])
    heart, mediastinum = (content["classes"][name]["metrics"] for name in ("heart", "mediastinum"))
    assert content["macro"]["hausdorff"] == {
        "mean": pytest.approx((heart["hausdorff"]["mean"] + mediastinum["hausdorff"]["mean"]) / 2),
        "n_classes": 2,
        "n_classes_undefined": 1,
    }
    assert content["macro"]["dice"]["mean"] == pytest.approx(
        (heart["dice"]["mean"] + mediastinum["dice"]["mean"] + 0) / 3
    )


def test_the_summary_says_how_the_numbers_came_about(finished, folders):
    content = summary(finished[1])
    assert content["samnn_version"] == samnn.__version__
    assert content["reference"] == str(folders[0])
    assert content["prediction"] == str(folders[1])
    assert content["labels"] == str(folders[0].parent / "dataset.json")
    assert content["tolerance_mm"] == 2.0
    assert (content["cases"], content["missing"], content["n_missing"]) == (["a", "b", "c"], ["d"], 1)
    assert content["definitions"]["assd"]["definition"] == "surfel-weighted, DeepMind surface-distance"
    assert "undefined" in content["empty_mask_policy"]


def test_the_terminal_shows_means_failures_and_missing_cases(finished):
    shown = finished[0].stdout
    assert "0.933" in shown  # the heart's Dice
    for line in [
        "1 case (d): no prediction",
        "esophagus: missed in 1 case (b)",
        "esophagus: predicted where there is none in 1 case (c)",
        "esophagus: in neither map of 1 case (a)",
        "surfel-weighted, DeepMind surface-distance",
        "NSD tolerance: 2 mm",
    ]:
        assert line in shown


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_at_any_width(folders, width):
    from rich.console import Console

    from samnn.evaluation3d import summarise
    from samnn.evaluation3d.terminal import print_summary

    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(summarise(evaluate_folder(*folders, allow_missing=True)), console)
    shown = console.export_text()
    assert "…" not in shown
    for metric in find_metrics():
        assert metric.split("_")[-1] in shown


def test_two_workers_write_the_same_bytes_over_an_earlier_run(finished, folders, tmp_path, run_evaluate):
    out = tmp_path / "again"
    shutil.copytree(finished[1], out)
    (out / "metrics.csv").write_text("case,label,class,metric,value,unit\n")
    arguments = [*folders, "-o", out, "--allow-missing", "--tolerance-mm", "2", "--workers", "2"]
    process = run_evaluate(*arguments)
    assert process.returncode == 0, process.stderr
    for name in ("metrics.csv", "summary.json"):
        assert (out / name).read_bytes() == (finished[1] / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["metrics.csv", "summary.json"]


def test_without_an_output_folder_nothing_is_written(folders, tmp_path, run_evaluate):
    process = run_evaluate(*folders, "--allow-missing", cwd=tmp_path)
    assert process.returncode == 0
    assert "Nothing was written" in process.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("redirection", "said"),
    [("| true", ""), ("> /dev/full", "error: No space left on device\n"), (">&-", "")],
)
def test_results_are_written_where_nothing_can_be_printed(folders, tmp_path, redirection, said):
    command = f'"$0" -m samnn.cli evaluate "$1" "$2" --allow-missing -o out {redirection}'
    arguments = ["bash", "-c", command, sys.executable, *folders]
    process = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert len(rows(tmp_path / "out")) > 0 and summary(tmp_path / "out")
    assert process.stderr.rpartition("0:00:00\n")[2] == said


def test_letters_that_the_terminal_does_not_know_are_shown_as_codes(folders, run_evaluate):
    process = run_evaluate(*folders, "--allow-missing", env={"PYTHONIOENCODING": "ascii"})
    assert process.returncode == 0, process.stderr
    assert r"\u2191" in process.stdout  # the arrow of "higher is better"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the processes in /proc")
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "Stopped by SIGINT.\n"),
        (signal.SIGTERM, 143, "Stopped by SIGTERM.\n"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_an_evaluation_that_is_stopped_leaves_no_process_behind(house, folders, number, code, said):
    """A metric that sleeps for ten minutes stands for a big case."""
    metrics, how = house
    dice = (metrics / "dice.py").read_text(encoding="utf-8")
    sleeping = 'import pathlib, time; pathlib.Path("began").touch(); time.sleep(600)'
    (metrics / "sleeping.py").write_text(dice.replace("    return", f"    {sleeping}\n    return"), "utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "samnn.cli", "evaluate", *folders, "--allow-missing", "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=how["cwd"],
        env={**os.environ, **how["env"]},
        # a shell without job control starts what it puts in the background deaf to Ctrl-C, and so its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until((how["cwd"] / "began").exists)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=60)  # ends when the last process has closed its stderr
    wait_until(lambda: not living(process.pid))
    assert process.returncode == code
    assert "Traceback" not in error and error.endswith(said)


def living(session: int) -> list[str]:
    """The processes of a session that are more than a name in the list."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, fields = stat.read_text().rpartition(") ")
            if int(fields.split()[3]) == session and fields[0] != "Z":
                found.append(name)
    return found


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_evaluation_imports_neither_torch_nor_nnunet(folders):
    script = f"""
import sys
from samnn.cli import main
sys.argv = ["samnn", "evaluate", {str(folders[0])!r}, {str(folders[1])!r}, "--allow-missing"]
try:
    main()
except SystemExit as end:
    assert not end.code
print(sorted({{"torch", "nnunetv2", "batchgenerators"}} & set(sys.modules)))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert process.stdout.splitlines()[-1] == "[]", process.stderr


def test_the_help_shows_examples(run_evaluate):
    process = run_evaluate("--help")
    assert process.returncode == 0
    assert "samnn evaluate labelsTs predictions -o evaluation" in process.stdout


@pytest.fixture
def house(tmp_path):
    """A copy of the installed package that a test may add files to; how to run it."""
    copy = tmp_path / "house" / "samnn"
    shutil.copytree(Path(samnn.__file__).parent, copy)
    shutil.copytree(Path(samnn.evaluation3d.__file__).parent, copy / "evaluation3d", dirs_exist_ok=True)
    return copy / "evaluation3d" / "metrics", {"cwd": copy.parent, "env": {"PYTHONPATH": str(copy.parent)}}


def test_a_new_file_is_a_new_metric(house, folders, tmp_path, run_evaluate):
    metrics, how = house
    dice = (metrics / "dice.py").read_text(encoding="utf-8")
    (metrics / "false_voxels.py").write_text(dice.replace("return 2 *", "return pair.fp #"), encoding="utf-8")
    process = run_evaluate(*folders, "-o", tmp_path / "out", "--allow-missing", **how)
    assert process.returncode == 0, process.stderr
    found = {
        (row["case"], row["class"]): row for row in rows(tmp_path / "out") if row["metric"] == "false_voxels"
    }
    assert found["a", "heart"]["value"] == "96.0"
    assert "false_voxels" in summary(tmp_path / "out")["definitions"]


def test_a_metric_file_without_declaration_is_named(house, folders, tmp_path, run_evaluate):
    metrics, how = house
    (metrics / "half_done.py").write_text('"""Something."""\n')
    process = run_evaluate(*folders, "-o", tmp_path / "out", "--allow-missing", **how)
    assert process.returncode == 1
    assert f"{metrics / 'half_done.py'}: is no metric" in process.stderr
    assert "Traceback" not in process.stderr
