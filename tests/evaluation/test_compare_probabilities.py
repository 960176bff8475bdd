"""`samnn compare` where probabilities lie beside the label maps: reliability, its cache, and files that cannot be used."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pandas
import pytest

from samnn.evaluation3d import evaluate_folder, summarise
from samnn.evaluation3d.cautions import cautions_of
from samnn.evaluation3d.compare import compare
from samnn.evaluation3d.comparison_files import write_comparison

LABELS = {"background": 0, "heart": 1, "aorta": 2}
CASES = ["a", "b", "c"]


def softmax(seed: int, sharpness: float) -> np.ndarray:
    """Probabilities in nnU-Net's order, (classes, z, y, x)."""
    e = np.exp(sharpness * np.random.default_rng(seed).normal(size=(3, 5, 6, 7)))
    return (e / e.sum(0)).astype(np.float32)


@pytest.fixture
def study(tmp_path, write_labels, write_dataset_json) -> Path:
    """Labels and two methods, one surer than the other, with label maps and .npz."""
    write_dataset_json(tmp_path, LABELS)
    for seed, case in enumerate(CASES):
        truth = softmax(seed, 1).argmax(0).astype(np.uint8).transpose()
        write_labels(tmp_path / "labels" / f"{case}.nii.gz", truth)
        for name, sharpness in (("sure", 3), ("unsure", 1)):
            p = softmax(seed + 10, sharpness)
            write_labels(tmp_path / name / f"{case}.nii.gz", p.argmax(0).astype(np.uint8).transpose())
            np.savez_compressed(tmp_path / name / f"{case}.npz", probabilities=p)
    return tmp_path


def compared(study: Path, out: Path | None = None):
    return compare([study / "sure", study / "unsure"], reference=study / "labels", metrics=["dice"], out=out)


def test_reliability_is_that_of_samnn_evaluate_and_is_in_the_report_and_the_tables(study):
    comparison = compared(study)
    write_comparison(comparison, study / "out")
    expected = summarise(evaluate_folder(study / "labels", study / "sure", probabilities=True))
    calibration = pandas.read_csv(study / "out" / "tables" / "calibration.csv").set_index(["method", "class"])
    bins = pandas.read_csv(study / "out" / "tables" / "reliability.csv").set_index(["method", "class"])
    for name, entry in expected["classes"].items():
        for metric in ("ece", "brier", "nll"):
            assert calibration.loc[("sure", name), metric] == pytest.approx(entry["metrics"][metric]["mean"])
        assert bins.loc[("sure", name), "n"].tolist() == entry["reliability"]["n"]
        found = bins.loc[("sure", name), "observed_fraction"].to_numpy()
        assert found == pytest.approx(np.array(entry["reliability"]["observed_fraction"], float), nan_ok=True)
    text = (study / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Reliability</h2>" in text
    assert f">{calibration.loc[('sure', 'heart'), 'ece']:.4f}<" in text


def test_without_probabilities_there_is_no_reliability_and_with_those_of_one_method_its_own(study):
    for case in CASES:
        (study / "unsure" / f"{case}.npz").unlink()
    assert set(compared(study).tables["calibration"]["method"]) == {"sure"}
    for case in CASES:
        (study / "sure" / f"{case}.npz").unlink()
    comparison = compared(study)
    assert "calibration" not in comparison.tables
    write_comparison(comparison, study / "out")
    assert "Reliability</h2>" not in (study / "out" / "report.html").read_text(encoding="utf-8")


def test_an_evaluation_of_probabilities_alone_has_reliability_too(study):
    expected = compared(study).tables["reliability"]
    for path in study.glob("*sure/*.nii.gz"):
        path.unlink()
    pandas.testing.assert_frame_equal(compared(study).tables["reliability"], expected)


def test_what_was_read_once_is_kept_until_a_file_changes_or_it_is_damaged(study):
    first = compared(study, study / "out").tables["calibration"]
    kept = sorted((study / "out" / "metrics").glob("*.json"))
    assert len(kept) == 2
    changed = json.loads(kept[0].read_text())
    changed["classes"]["heart"]["ece"] = 0.125
    kept[0].write_text(json.dumps(changed))
    assert (compared(study, study / "out").tables["calibration"]["ece"] == 0.125).sum() == 1
    for damaged in ('{"classes": ', "[]", '{"classes": {"heart": {}}}'):
        kept[0].write_text(damaged)
        pandas.testing.assert_frame_equal(compared(study, study / "out").tables["calibration"], first)
    np.savez_compressed(study / "sure" / "a.npz", probabilities=softmax(99, 3))
    again = compared(study, study / "out").tables["calibration"].set_index(["method", "class"])["ece"]
    before = first.set_index(["method", "class"])["ece"]
    assert again["sure", "heart"] != before["sure", "heart"]
    assert again["unsure", "heart"] == before["unsure", "heart"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "a: no .npz beside the label map; 1 of 3 cases have none"),
        (lambda path: path.write_bytes(path.read_bytes()[:-99]), "cannot be read"),
        (lambda path: np.savez(path, probabilities=np.full((3, 5, 6, 7), 0.2)), "add up to 0.6"),
        (lambda path: np.savez(path, probabilities=np.zeros((2, 5, 6, 7))), "has 2 channels"),
    ],
)
def test_probabilities_that_cannot_be_used_are_said_and_hinder_nothing(study, spoil, said):
    spoil(study / "sure" / "a.npz")
    comparison = compared(study)
    assert set(comparison.tables["calibration"]["method"]) == {"unsure"}
    assert len(comparison.cases) == 3
    assert any(
        line.startswith("No reliability of sure: ") and said in line for line in cautions_of(comparison)
    )


class Bomb:
    def __reduce__(self):
        return (Path("exploded").write_text, ("",))


def test_the_pickles_beside_the_probabilities_are_never_read(study, monkeypatch):
    monkeypatch.chdir(study)
    for case in CASES:
        (study / "sure" / f"{case}.pkl").write_bytes(pickle.dumps(Bomb()))
    assert "calibration" in compared(study).tables
    assert not (study / "exploded").exists()
