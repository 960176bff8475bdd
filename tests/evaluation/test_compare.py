"""`samnn compare` on real files: its inputs, tables, cache, report, and everything that it must refuse."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas
import pytest

from samnn.errors import SamnnError
from samnn.evaluation3d import evaluate_folder, write_outputs
from samnn.evaluation3d.cautions import cautions_of
from samnn.evaluation3d.compare import compare
from samnn.evaluation3d.comparison import Comparison
from samnn.evaluation3d.comparison_files import check_comparison_target, write_comparison
from samnn.evaluation3d.costs import costs_of
from samnn.evaluation3d.results import find_results
from samnn.evaluation3d.slices import draw_case
from samnn.evaluation3d.terminal import MACRO
from samnn.io import Volume, read_labels, write_volume

LABELS = {"background": 0, "heart": 1, "esophagus": 2}
CASES = [f"p{patient}_{scan}" for patient in (1, 2, 3) for scan in (1, 2)]
DATASET = "Dataset501_Box"


def volume(heart_moved: int, *, esophagus: bool = True) -> np.ndarray:
    voxels = np.zeros((20, 16, 12), np.uint8)
    voxels[3 + heart_moved : 13 + heart_moved, 4:12, 2:8] = 1
    if esophagus:
        voxels[16:18, 4:6, 2:8] = 2
    return voxels


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_labels, write_dataset_json):
    """Raw data, and two results folders of two folds: A moves the heart by 1 to 2 voxels, B by 2 to 3 and misses once."""
    root = tmp_path_factory.mktemp("study")
    raw, results = root / "raw" / DATASET, root / "results" / DATASET
    write_dataset_json(raw, LABELS)
    for name in ("A", "B"):
        folder = results / f"{name}__nnUNetPlans__2d"
        write_dataset_json(folder, LABELS)
        for i, case in enumerate(CASES):
            write_labels(raw / "labelsTr" / f"{case}.nii.gz", volume(0))
            fold = folder / f"fold_{i % 2}" / "validation"
            moved = 1 + i % 2 if name == "A" else 2 + (i > 3)
            write_labels(fold / f"{case}.nii.gz", volume(moved, esophagus=name == "A" or i > 0))
            (fold / "summary.json").write_text("{}")
        write_labels(raw / "imagesTr" / f"{CASES[0]}_0000.nii.gz", volume(0).astype(np.int16) * 100)
    return root


@pytest.fixture(autouse=True)
def nnunet(study, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(study / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(study / "preprocessed"))


@pytest.fixture
def methods(study) -> list[Path]:
    return [study / "results" / DATASET / f"{name}__nnUNetPlans__2d" for name in ("A", "B")]


@pytest.fixture
def copied(study, tmp_path) -> list[Path]:
    """Results folders that may be changed."""
    shutil.copytree(study / "results", tmp_path / "results")
    return [tmp_path / "results" / DATASET / f"{name}__nnUNetPlans__2d" for name in ("A", "B")]


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory) -> tuple[Comparison, Path]:
    """A comparison of both, and its output folder."""
    out = tmp_path_factory.mktemp("out") / "comparison"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(study / "raw"))
        comparison = compare(sorted((study / "results" / DATASET).iterdir()), out=out)
        write_comparison(comparison, out)
    return comparison, out


def row(table: pandas.DataFrame, **values) -> pandas.Series:
    found = table
    for column, value in values.items():
        found = found[found[column] == value]
    assert len(found) == 1
    return found.iloc[0]


def evaluated(reference: Path, prediction: Path, out: Path, **options) -> Path:
    """What `samnn evaluate -o out` leaves."""
    write_outputs(evaluate_folder(reference, prediction, **options), out)
    return out / "metrics.csv"


# ---- tables


def test_differences_wins_and_failures_worked_by_hand(finished):
    tables = finished[0].tables
    # The heart, 10 voxels wide, has Dice 1 - moved/10. A: .9 .8 .9 .8 .9 .8; B: .8 .8 .8 .8 .7 .7
    dice = row(tables["pairs"], metric="dice", **{"class": "heart"})
    assert dice["mean_difference"] == pytest.approx((0.1 + 0 + 0.1 + 0 + 0.2 + 0.1) / 6)
    assert (dice["n"], dice["wins_a"], dice["ties"], dice["wins_b"]) == (6, 4, 2, 0)
    assert (dice["win_rate_a"], dice["better_on_average"]) == (pytest.approx(5 / 6), "A")
    assert dice["permutation_p"] == 0.125  # two zeros and four of one sign: 2 · 4 of 64 sign changes
    described = row(tables["description"], metric="dice", method="A", **{"class": "heart"})
    assert described[["mean", "median", "q1", "q3", "worst"]].tolist() == pytest.approx(
        [0.85, 0.85, 0.8, 0.9, 0.8]
    )
    assert described["sd"] == pytest.approx(0.05 * np.sqrt(6 / 5))
    missed = row(tables["failures"], method="B", **{"class": "esophagus"})
    assert (missed["missed"], missed["false"], missed["missed_cases"]) == (1, 0, "p1_1")


def test_of_distances_the_lower_is_better(finished):
    distance = row(finished[0].tables["pairs"], metric="hausdorff95", **{"class": "heart"})
    assert distance["mean_difference"] < 0
    assert (distance["better_on_average"], distance["wins_a"], distance["wins_b"]) == ("A", 4, 0)
    ranked = finished[0].tables["ranking"].set_index(["metric", "class", "scheme", "method"])["rank"]
    assert ranked["hausdorff95", "heart", "mean, then rank"].to_dict() == {"A": 1, "B": 2}


def test_a_signed_metric_is_compared_by_its_size(methods):
    """A predicts as many voxels as the reference has, or misses none; B misses the esophagus of one case."""
    found = compare(methods, metrics=("volume_error",)).tables
    values = found["values"].set_index(["class", "method", "case"])["value"]
    assert values["esophagus", "B", "p1_1"] > 0  # the signed error is below zero
    esophagus = row(found["pairs"], metric="volume_error", **{"class": "esophagus"})
    assert (esophagus["mean_difference"] < 0, esophagus["better_on_average"]) == (True, "A")


def test_a_missed_organ_counts_zero_in_dice_and_is_left_out_and_counted_in_distances(finished):
    pairs = finished[0].tables["pairs"]
    dice = row(pairs, metric="dice", **{"class": "esophagus"})
    assert (dice["n"], dice["n_left_out"], dice["mean_difference"]) == (6, 0, pytest.approx(1 / 6))
    distance = row(pairs, metric="hausdorff95", **{"class": "esophagus"})
    assert (distance["n"], distance["n_left_out"], distance["note"]) == (
        5, 1, "no interval: all differences are equal"
    )  # fmt: skip
    assert any("distances flatter" in caution for caution in cautions_of(finished[0]))


def test_the_mean_of_classes_uses_the_same_classes_for_both_methods(finished):
    comparison = finished[0]
    values, n_left_out = comparison.values("hausdorff95", MACRO, comparison.methods)
    heart, _ = comparison.values("hausdorff95", "heart", comparison.methods)
    assert n_left_out == 1
    assert values[:, 0] == pytest.approx(
        heart[:, 0]
    )  # in p1_1 B has no esophagus: the heart alone, for A too
    assert values[:, 1] == pytest.approx(heart[:, 1] / 2)


def test_the_family_of_the_correction_is_what_was_asked(methods, finished):
    assert "3 metrics × 3 classes" in finished[0].settings["family"]
    assert "= 9 comparisons" in finished[0].settings["family"]
    alone = compare(methods, metrics=["dice"])
    assert "= 3 comparisons" in alone.settings["family"]
    pairs = alone.tables["pairs"]
    assert (pairs["wilcoxon_p_holm"] >= pairs["wilcoxon_p"]).all()
    least = pairs["permutation_p"].min()
    assert pairs["permutation_p_holm"].min() == pytest.approx(min(1, 3 * least))


def test_few_cases_and_shared_folds_are_said(methods, finished):
    said = "\n".join(cautions_of(finished[0]))
    assert "The cases come from 2 folds" in said
    assert "Bootstrap intervals of 6 cases are too narrow" in said
    assert "6 cases cannot give a p below 0.0312" in said
    grouped = compare(methods, group=r"(p\d+)_")
    assert "3 patients cannot give a two-sided p below 0.25" in "\n".join(cautions_of(grouped))
    assert row(grouped.tables["pairs"], metric="dice", **{"class": "heart"})["n_groups"] == 3


def test_one_method_alone_has_its_tables(methods, tmp_path):
    comparison = compare(methods[:1])
    assert set(comparison.tables) == {"methods", "description", "failures", "values"}
    write_comparison(comparison, tmp_path / "out")
    assert "Paired differences" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


# ---- inputs


def test_folders_and_tables_of_the_same_predictions_give_the_same_numbers(study, methods, finished, tmp_path):
    a = evaluated(None, methods[0], tmp_path / "a")
    b = evaluated(None, methods[1], tmp_path / "b")
    again = compare([a, b.parent], names=["A", "B"])
    pandas.testing.assert_frame_equal(again.tables["pairs"], finished[0].tables["pairs"])
    mixed = compare([methods[0], b], names=["A", "B"])
    pandas.testing.assert_frame_equal(mixed.tables["pairs"], finished[0].tables["pairs"])


def test_a_plain_folder_takes_the_labels_of_the_results_folder_beside_it(methods, study, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(study / "raw" / DATASET / "labelsTr", plain)
    comparison = compare([methods[0], plain])
    assert comparison.settings["reference"] == str(study / "raw" / DATASET / "labelsTr")
    assert row(comparison.tables["pairs"], metric="dice", **{"class": "heart"})["wins_b"] == 6
    assert any("cannot be seen from the files: plain" in caution for caution in cautions_of(comparison))


def test_names_leave_out_plans_and_configuration_only_where_all_share_them(methods, copied):
    assert [m.name for m in compare(methods).methods] == ["A", "B"]
    other = copied[1].rename(copied[1].with_name("B__nnUNetPlans__3d"))
    assert [m.name for m in compare([copied[0], other]).methods] == [
        "A__nnUNetPlans__2d",
        "B__nnUNetPlans__3d",
    ]


# ---- the cache


def run_compare(*arguments) -> tuple[list[str], str]:
    """The files that the command read voxels of (in its process read_volume tells what it reads), and its output."""
    code = (
        "import sys, samnn.io as io\n"
        "read = io.read_volume\n"
        "def noted(path):\n    print('decoded', path); return read(path)\n"
        "io.read_volume = noted\n"
        f"sys.argv = ['samnn', 'compare', *{[str(a) for a in arguments]!r}]\n"
        "from samnn.cli import main\nmain()"
    )
    env = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    files = [line for line in lines if line.startswith("decoded")]
    return files, "\n".join(line for line in lines if not line.startswith("decoded"))


def test_a_second_run_decodes_nothing_and_prints_the_same_and_a_changed_file_only_its_method(
    copied, tmp_path, write_labels
):
    arguments = [*copied, "-o", tmp_path / "out", "--metrics", "dice", "--workers", "1"]
    files, shown = run_compare(*arguments)
    assert len(files) > 2 * 2 * len(CASES)  # both maps of each, and the pictures
    assert "0.850 ± 0.055" in shown
    assert "esophagus: missed in 1 of 6 cases by B (B)" in shown
    assert str(tmp_path / "out" / "report.html") in shown
    assert max(map(len, shown.split("Family")[0].splitlines())) <= 80
    first = (tmp_path / "out" / "report.html").read_bytes()
    assert run_compare(*arguments) == ([], shown)
    assert (tmp_path / "out" / "report.html").read_bytes() == first
    write_labels(copied[0] / "fold_0" / "validation" / f"{CASES[0]}.nii.gz", volume(5))
    again = [line for line in run_compare(*arguments)[0] if "B__" in line]
    assert len(again) <= 2 * 3  # of B only the pictures of worst, best and median
    assert (tmp_path / "out" / "report.html").read_bytes() != first


def test_kept_metrics_that_are_damaged_are_computed_again(methods, tmp_path, capsys):
    first = compare(methods, out=tmp_path / "out").tables["pairs"]
    kept = sorted((tmp_path / "out" / "metrics").glob("*/metrics.csv"))
    kept[0].write_text(kept[0].read_text().replace(",heart,dice,", ",heart,dice,1"))
    kept[1].with_name("summary.json").write_text("{")
    pandas.testing.assert_frame_equal(compare(methods, out=tmp_path / "out").tables["pairs"], first)
    assert capsys.readouterr().err.count("is damaged, and is computed again") == 2


def test_finished_cases_outlive_a_failure(copied, tmp_path, write_labels):
    bad = copied[0] / "fold_1" / "validation" / f"{CASES[1]}.nii.gz"
    good = bad.read_bytes()
    write_labels(bad, np.full((20, 16, 12), 9, np.uint8))
    with pytest.raises(SamnnError, match="5 of 6 cases are finished and kept"):
        compare(copied, out=tmp_path / "out")
    bad.write_bytes(good)
    compare(copied, out=tmp_path / "out")
    assert not list((tmp_path / "out" / "metrics").glob("unfinished*"))


# ---- the output


class Page(HTMLParser):
    """Collects the addresses that a page would load, and counts its tables and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]


def test_the_report_is_one_file_that_loads_nothing(finished):
    text = (finished[1] / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.loads and all(address.startswith("data:image/") for address in page.loads)
    assert "url(" not in text and "@import" not in text
    assert page.tags.count("table") == 5
    # 3 metrics × (values, differences, ranks), and worst, median and best of two classes
    assert page.tags.count("img") == 9 + 6


def test_the_report_shows_the_numbers_of_the_csv(finished):
    text = (finished[1] / "report.html").read_text(encoding="utf-8")
    pairs = pandas.read_csv(finished[1] / "tables" / "pairs.csv")
    for entry in pairs[pairs["metric"] == "dice"].to_dict("records"):
        assert f">{entry['mean_difference']:.3f}<" in text
        assert f">{entry['wilcoxon_p_holm']:.3f}<" in text
    for said in [*cautions_of(finished[0]), finished[0].settings["family"]]:
        assert said.replace("'", "&#39;") in text


def test_names_and_cases_cannot_inject_markup(methods, tmp_path):
    comparison = compare(methods, names=["<script>alert(1)</script>", "B & C | _%"], metrics=["dice"])
    write_comparison(comparison, tmp_path / "out")
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert r"B \& C \textbar{} \_\%" in (tmp_path / "out" / "tables" / "tables.tex").read_text(
        encoding="utf-8"
    )
    assert r"B & C \| _%" in (tmp_path / "out" / "tables" / "tables.md").read_text(encoding="utf-8")


def test_two_dimensional_maps_with_a_region_are_drawn_too(tmp_path, write_labels, write_dataset_json):
    write_dataset_json(tmp_path / "labels", {"background": 0, "all": [1, 2], "core": 2})
    for case in ("a", "b"):
        flat = np.zeros((20, 16), np.uint8)
        flat[3:13, 4:12], flat[5:8, 6:9] = 1, 2
        write_labels(tmp_path / "labels" / f"{case}.nii.gz", flat)
        for shift, name in enumerate(("A", "B")):
            write_labels(tmp_path / name / f"{case}.nii.gz", np.roll(flat, shift + 1, axis=0))
    comparison = compare([tmp_path / "A", tmp_path / "B"], reference=tmp_path / "labels", metrics=["dice"])
    write_comparison(comparison, tmp_path / "out")
    assert (
        len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 4
    )  # of two cases a worst and a best one
    assert row(comparison.tables["pairs"], **{"class": "all"})["mean_difference"] == pytest.approx(0.1)


def test_on_real_labels_the_smaller_shift_is_better_in_every_metric(shared, tmp_path):
    data = shared / "data" / "Dataset904_Hippocampus"
    for reference in sorted((data / "labelsTs").glob("*.nii.gz")):
        labels = read_labels(reference)
        for name, shift in (("near", 1), ("far", 2)):
            path = tmp_path / name / reference.name
            path.parent.mkdir(exist_ok=True)
            write_volume(path, Volume(np.roll(labels.voxels, shift, axis=1).astype(np.uint8), labels.grid))
    comparison = compare([tmp_path / "near", tmp_path / "far"], reference=data / "labelsTs")
    pairs = comparison.tables["pairs"]
    assert len(pairs) == 9
    assert (pairs["better_on_average"] == "near").all()
    assert (pairs["n"] == 10).all()
    assert (pairs.loc[pairs["metric"] == "dice", "permutation_p"] == 2 / 2**10).all()
    picture = draw_case(comparison, "anterior", comparison.cases[0], tmp_path / "pictures")
    greys = np.unique(matplotlib.image.imread(picture)[..., 0])
    assert len(greys) > 100  # the MR image is behind the outlines


def test_every_table_is_there_as_csv_json_markdown_and_latex(finished):
    comparison, out = finished
    content = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    for name, table in comparison.tables.items():
        stored = pandas.read_csv(out / "tables" / f"{name}.csv")
        assert list(stored.columns) == list(table.columns) == list(content["tables"][name][0])
        assert len(stored) == len(table) == len(content["tables"][name])
    assert content["settings"]["family"] == comparison.settings["family"]
    markdown, latex = (out / "tables" / "tables.md").read_text(), (out / "tables" / "tables.tex").read_text()
    assert len(re.findall("^## ", markdown, re.MULTILINE)) == 5
    # names, methods, failures, and for each of three metrics description, differences and ranking
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 12
    n_rows = sum(len(t) for name, t in comparison.tables.items() if name != "values")
    assert len([line for line in latex.splitlines() if line.endswith(r"\\")]) == 12 + 2 + n_rows


# ---- what is refused


def refused(*parts: str, sources, **options) -> None:
    with pytest.raises(SamnnError) as error:
        compare(sources, **options)
    for part in parts:
        assert part in str(error.value)


def test_missing_cases_are_named(copied):
    (copied[1] / "fold_1" / "validation" / f"{CASES[1]}.nii.gz").unlink()
    refused("B: lacks 1 of 6 cases: p1_2", "the same cases", sources=copied)


def test_one_fold_can_be_compared_with_one_fold_but_not_with_two(methods):
    folds = [method / "fold_0" for method in methods]
    assert len(compare(folds, names=["A", "B"]).cases) == 3
    refused("lacks 3 of 6 cases", "RESULTS/fold_0", sources=[methods[0], folds[1]])


def test_another_reference_is_refused_and_an_equal_copy_is_not(methods, study, tmp_path, write_labels):
    other = tmp_path / "labels"
    shutil.copytree(study / "raw" / DATASET / "labelsTr", other)
    shutil.copy(study / "raw" / DATASET / "dataset.json", other)
    table = evaluated(other, methods[1], tmp_path / "b")
    assert compare([methods[0], table], names=["A", "B"])
    write_labels(other / f"{CASES[2]}.nii.gz", volume(1))
    refused("B: its reference", "differs", CASES[2], sources=[methods[0], table], names=["A", "B"])
    shutil.rmtree(other)
    refused("labels: is gone", sources=[methods[0], table], names=["A", "B"])


def test_another_tolerance_is_refused(methods, tmp_path):
    table = evaluated(None, methods[1], tmp_path / "b", tolerance_mm=2)
    refused("tolerance_mm is 2, in A 1.0", sources=[methods[0], table], names=["A", "B"])
    assert compare([methods[0], table], names=["A", "B"], tolerance_mm=2)


def test_another_definition_is_refused_for_the_metric_that_has_it(methods, tmp_path):
    table = evaluated(None, methods[1], tmp_path / "b")
    summary = table.with_name("summary.json")
    content = json.loads(summary.read_text())
    content["definitions"]["nsd"]["definition"] = "border voxels"
    summary.write_text(json.dumps(content))
    refused("B: defines nsd differently", "'border voxels'", sources=[methods[0], table], names=["A", "B"])
    assert compare([methods[0], table], names=["A", "B"], metrics=["dice"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (",heart,dice,0.9,", ",heart,dice,0.99,", "was changed after samnn evaluate wrote it"),
        (",heart,dice,0.9,", ",heart,dice,better,", "is not the table that samnn evaluate wrote"),
        ("case,label,class", "case,label,organ", "is not the table that samnn evaluate wrote"),
        ("p1_1,1,heart,dice", "p1_2,1,heart,dice", "is not the table that samnn evaluate wrote"),
        (",mm\n", ",cm\n", "the unit of"),
    ],
)
def test_a_table_edited_by_hand_is_refused(methods, tmp_path, old, new, said):
    table = evaluated(None, methods[0], tmp_path / "a")
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1) if "mm" not in old else text.replace(old, new))
    refused(str(table), said, sources=[table])


def test_a_table_without_its_whole_summary_is_refused(methods, tmp_path):
    table = evaluated(None, methods[0], tmp_path / "a")
    summary = table.with_name("summary.json")
    content = json.loads(summary.read_text())
    summary.write_text(json.dumps({key: value for key, value in content.items() if key != "tolerance_mm"}))
    refused("summary.json lacks tolerance_mm", sources=[table])
    summary.unlink()
    refused("summary.json of samnn evaluate does not lie beside it", sources=[table])


def test_validation_is_never_mixed_with_training_cases(copied, study, monkeypatch, tmp_path):
    (copied[0] / "fold_1").rename(copied[0] / "fold_all")
    refused("fold_all validates on its own training cases", sources=[copied[0] / "fold_all"])
    table = evaluated(None, copied[0] / "fold_all", tmp_path / "all")
    refused("fold_all validates on its own training cases", sources=[table])
    (copied[0] / "fold_all").rename(copied[0] / "fold_1")

    splits = [{"train": CASES[1::2], "val": CASES[0::2]}, {"train": CASES[0::2], "val": CASES[1::2]}]
    known = tmp_path / "preprocessed" / DATASET
    known.mkdir(parents=True)
    (known / "splits_final.json").write_text(json.dumps(splits))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    compare(copied)
    twice = copied[0] / "fold_0" / "validation" / f"{CASES[1]}.nii.gz"
    shutil.copy(copied[0] / "fold_1" / "validation" / f"{CASES[1]}.nii.gz", twice)
    refused("is the same case as", sources=copied)
    refused(str(twice), "do not hold this case out", sources=[copied[0] / "fold_0"])


def test_names_must_be_different_and_as_many_as_methods(methods, copied):
    refused("Two methods are named 'A__nnUNetPlans__2d'", "--names", sources=[methods[0], copied[0]])
    refused("1 names for 2 methods", sources=methods, names=["A"])
    refused("cannot name a method", sources=methods, names=["A", " "])


def test_other_bad_input_is_refused_by_name(methods, tmp_path, write_labels):
    (tmp_path / "empty").mkdir()
    refused("holds no label maps", sources=[methods[0], tmp_path / "empty"])
    refused("no such folder", sources=[methods[0], tmp_path / "nowhere"])
    refused("Give --reference", sources=[tmp_path / "empty"])
    refused("has no metric 'dise'", "It has: dice", sources=methods, metrics=["dise"])
    refused("asked for twice", sources=methods, metrics=["dice", "dice"])
    refused("is no regular expression", sources=methods, group="(")
    refused("finds no patient in 2 cases: p3_1, p3_2", sources=methods, group="p[12]")
    refused("finds no patient in 6 cases", sources=methods, group="p(x)?")
    with pytest.raises(SamnnError, match="is a results folder"):
        check_comparison_target(methods[0])


def test_a_folder_of_somebody_else_is_left_alone(methods, tmp_path):
    out = tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    (out / "tables" / "precious.csv").write_text("1")
    with pytest.raises(SamnnError, match=r"tables: exists and is not from samnn compare"):
        write_comparison(compare(methods), out)
    assert sorted(path.name for path in out.rglob("*")) == ["precious.csv", "tables"]


def test_what_cannot_be_written_whole_leaves_the_earlier_output_as_it_was(methods, tmp_path):
    """No file may be larger than 50 kB in the second run, which the report is."""
    out = tmp_path / "out"
    write_comparison(compare(methods, out=out, metrics=["dice"]), out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(before[out / "report.html"]) > 50_000
    arguments = [*map(str, methods), "-o", str(out), "--metrics", "dice", "--names", "A,C"]
    done = subprocess.run(
        [sys.executable, "-m", "samnn.cli", "compare", *arguments],
        capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "report.html: cannot be written" in done.stderr
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path.parent.name != "pictures"} == {
        path: content for path, content in before.items() if path.parent.name != "pictures"
    }


# ---- costs


LOG = """
2026-01-02 03:04:05.000000: Epoch 0
2026-01-02 03:04:15: Epoch time: 10.5 s
2026-01-02 03:04:15.100000: Epoch 1
2026-01-02 03:04:35.100000: Epoch time: 20.0 s
"""
RESUMED = """
2026-01-02 04:00:00.000000: Epoch 1
2026-01-02 04:00:30.000000: Epoch time: 30.0 s
2026-01-02 04:01:00.000000: predicting p1_1
2026-01-02 04:01:00.100000: p1_1, shape torch.Size([1, 5, 5, 5]), rank 0
2026-01-02 04:01:04.000000: predicting p1_2
2026-01-02 04:01:10.000000: predicting p2_1
2026-01-02 04:05:00.000000: Validation complete
"""


def test_costs_come_from_logs_settings_and_file_sizes(copied):
    fold = copied[0] / "fold_0"
    (fold / "training_log_2026_1_2_03_04_05.txt").write_text(LOG)
    (fold / "training_log_2026_1_2_04_00_00.txt").write_text(RESUMED)
    (fold / "settings.json").write_text(json.dumps({"parameters": {"trainable": 12, "total": 34}}))
    (fold / "debug.json").write_text(json.dumps({"gpu_name": "A100", "device": "cuda"}))
    (fold / "checkpoint_final.pth").write_bytes(b"not a pickle, and never opened")
    assert costs_of(find_results(fold)) == {
        "trainable_parameters": 12,
        "total_parameters": 34,
        "checkpoint_bytes": 30,
        "n_epochs": 2,
        "training_hours": pytest.approx(40.5 / 3600),  # epoch 1 as it ran last
        "inference_seconds": 5.0,  # 4 and 6 s; the last case also waits for the exports
        "device": "A100",
    }


def test_damaged_settings_are_an_error_with_a_cure(copied):
    (copied[0] / "fold_0" / "settings.json").write_text('{"parameters": ')
    with pytest.raises(SamnnError, match=r"settings\.json: is no JSON object .* Move it away"):
        costs_of(find_results(copied[0]))


def test_what_no_file_says_is_not_known(copied, finished):
    assert set(costs_of(find_results(copied[1])).values()) == {None}
    assert costs_of(None) == costs_of(find_results(copied[1]))
    assert "not known" in (finished[1] / "report.html").read_text(encoding="utf-8")
