"""--cross-check computes again with the packages, and says so when the numbers differ or a package is missing."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from samnn.errors import SamnnError
from samnn.evaluation3d import evaluate_folder
from samnn.evaluation3d.cross_check import cross_check


@pytest.fixture
def folders(tmp_path, box, write_labels, write_dataset_json):
    """Three cases; in the second the organ is missed, and the third has an ignored part."""
    write_dataset_json(tmp_path, {"background": 0, "organ": 1, "both": [1, 2], "ignore": 3})
    for case, moved in (("a", 2), ("b", 0), ("c", 1)):
        reference, prediction = box(), box(moved=moved)
        if case == "b":
            prediction[:] = 0
        if case == "c":
            reference[:5, :8] = 3
            prediction[15, 12, 9] = 2
        write_labels(tmp_path / "labelsTs" / f"{case}.nii.gz", reference)
        write_labels(tmp_path / "predictions" / f"{case}.nii.gz", prediction)
    return tmp_path / "labelsTs", tmp_path / "predictions"


@pytest.mark.parametrize(("surface", "package"), [("surfel", "surface-distance"), ("voxel", "medpy")])
def test_the_command_prints_how_far_the_packages_are_apart(folders, run_evaluate, surface, package):
    process = run_evaluate(*folders, "--surface", surface, "--cross-check", "5")
    assert process.returncode == 0, process.stderr
    assert f"Cross-check with {package}: 3 random cases, 4 organs." in process.stdout
    for metric in ("hausdorff", "hausdorff95", "assd", "masd"):
        assert f"{metric} " in process.stdout.partition("Largest differences:")[2]


@pytest.mark.parametrize("wrong", [1e-5, np.nan])
def test_a_difference_is_an_error_that_names_metric_case_and_class(folders, wrong):
    evaluation = evaluate_folder(*folders)
    right = evaluation.results["c"]["both"]
    values = {**right.values, "masd": right.values["masd"] + wrong}
    evaluation.results["c"]["both"] = dataclasses.replace(right, values=values)
    with pytest.raises(SamnnError, match=r"More than 1e-06 apart: masd by .* \(c, both\)"):
        cross_check(evaluation, n_cases=3)


def test_a_missing_package_is_named_before_the_work(folders, run_evaluate, tmp_path):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "medpy.py").write_text("raise ImportError('not here')")
    paths = os.pathsep.join([str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")])
    process = run_evaluate(
        *folders,
        "--surface",
        "voxel",
        "--cross-check",
        "1",
        "-o",
        tmp_path / "out",
        env={"PYTHONPATH": paths},
    )
    assert process.returncode == 1
    assert "pip install 'samnn[check]'" in process.stderr
    assert "medpy" in process.stderr
    assert not (tmp_path / "out").exists()
