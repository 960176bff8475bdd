"""Whole experiments with every step: ensemble, test set, nnU-Net's choice; a learning curve; the plain commands."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import DATASET, ENET, UNET
from toy_results import differing, results_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="Snakemake 9 needs 3.11"),
]
FEW = ("--device", "cpu", "--cpus", "1")


def test_every_step_of_two_methods_and_then_one_method_more(
    toy_folders: Callable, samnn: Callable, tmp_path: Path
) -> None:
    root = toy_folders(tmp_path, n_test=2)
    out, results = root / "out", root / "nnUNet_results" / DATASET
    samnn("crossval", "-d", 511, "--methods", ENET, "--folds", 0, 1, *FEW, "-o", out)
    assert "ensemble" not in (out / "comparison" / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in results.glob("*ENet*/fold_*/checkpoint_final.pth")}

    samnn("crossval", "-d", 511, "--methods", ENET, UNET, "--folds", 0, 1, *FEW, "-o", out)
    assert before == {path: path.stat().st_mtime_ns for path in before}  # validated again, for probabilities
    assert all((path.parent / "provenance.json").is_file() for path in before)
    for report in (out / "comparison" / "report.html", out / "test" / "comparison" / "report.html"):
        assert all(name in report.read_text() for name in (ENET, UNET, "ensemble"))
    found = json.loads((results / "inference_information.json").read_text())
    assert len(found["considered_models"]) == 2
    assert samnn("crossval", "status", "-o", out).returncode == 0


def test_the_plain_commands_give_the_same_result(
    toy_folders: Callable, samnn: Callable, tmp_path: Path
) -> None:
    ours = toy_folders(tmp_path / "ours")
    arguments = ["crossval", "-d", 511, "--methods", ENET, "--folds", 0, 1, *FEW]
    samnn(*arguments, "-o", ours / "out")
    expected = results_of(ours / "nnUNet_results" / DATASET, ours / "out")

    plain = toy_folders(tmp_path / "plain")
    script = samnn(*arguments, "-o", plain / "out", "--print-commands").stdout
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "nnUNet_n_proc_DA": "1"}  # 0 is none that planning takes
    done = subprocess.run(["bash", "-e"], input=script, capture_output=True, text=True, env=env, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert differing(results_of(plain / "nnUNet_results" / DATASET, plain / "out"), expected) == []


def test_a_learning_curve_on_nested_patients(toy_folders: Callable, samnn: Callable, tmp_path: Path) -> None:
    root = toy_folders(tmp_path, n_training=8)
    # patients stay together: two folds of whole patients, given by the user
    out, cases = root / "low", [f"p{i // 2}_{i}" for i in range(8)]
    splits = [{"train": cases[2:], "val": cases[:2]}, {"train": cases[:6], "val": cases[6:]}]
    preprocessed = root / "nnUNet_preprocessed" / DATASET
    preprocessed.mkdir()
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    arguments = ["lowdata", "-d", 511, "--methods", ENET, "--sizes", 1, "all", "--folds", 0, 1]
    samnn(*arguments, "--group", r"(p\d+)_", "--device", "cpu", "-o", out)
    with open(out / "learning_curve.csv", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    assert [(row["size"], row["training_patients"], row["training_cases"], row["n"]) for row in rows] == [
        ("1", "1.0", "2.0", "4"),
        ("all", "3.0", "6.0", "4"),
    ]
    assert (out / "learning_curve.png").stat().st_size > 10_000
    assert len(list((root / "nnUNet_results" / DATASET).glob("*/fold_*/checkpoint_final.pth"))) == 2
    assert json.loads((preprocessed / "splits_final.json").read_text()) == splits
    assert samnn("crossval", "status", "-o", out).returncode == 0
    samnn("lowdata", "--resume", "-o", out)


def test_one_seed_gives_the_same_numbers_twice(
    toy_folders: Callable, samnn: Callable, tmp_path: Path
) -> None:
    found = []
    for name in ("first", "second"):
        root = toy_folders(tmp_path / name)
        samnn("crossval", "-d", 511, "--methods", ENET, "--folds", 0, *FEW, "-o", root / "out")
        found.append(results_of(root / "nnUNet_results" / DATASET, root / "out"))
    assert differing(*found) == []
