"""Which files are evaluated against which, and under which names: plain folders and nnU-Net results folders."""

from __future__ import annotations

import json
import shutil
import unicodedata

import numpy as np
import pytest

from samnn.errors import SamnnError
from samnn.evaluation3d import evaluate_folder

LABELS = {"background": 0, "heart": 1, "aorta": 2}


def cube(value: int = 1) -> np.ndarray:
    voxels = np.zeros((6, 6, 6), np.uint8)
    voxels[2:4, 2:4, 2:4] = value
    return voxels


@pytest.fixture
def folders(tmp_path, write_labels):
    """A reference and a prediction folder with the cases a and b, the same in both; no dataset.json."""
    reference, prediction = tmp_path / "raw" / "labelsTs", tmp_path / "predictions"
    for folder in (reference, prediction):
        write_labels(folder / "a.nii.gz", cube(1))
        write_labels(folder / "b.nii.gz", cube(2))
    return reference, prediction


@pytest.fixture
def results(tmp_path, write_labels, write_dataset_json, monkeypatch):
    """A trained model of two folds with validation predictions a and b, c; its dataset's labels; the variables."""
    name = "Dataset077_Thorax"
    model = tmp_path / "nnUNet_results" / name / "nnUNetTrainerENet__nnUNetPlans__2d"
    write_dataset_json(model, LABELS)
    truth = tmp_path / "nnUNet_preprocessed" / name / "gt_segmentations"
    for fold, cases in [(0, "a"), (1, "bc")]:
        validation = model / f"fold_{fold}" / "validation"
        for case in cases:
            write_labels(validation / f"{case}.nii.gz", cube(1))
            (validation / f"{case}.npz").write_bytes(b"not looked at")
            (validation / f"{case}.pkl").write_bytes(b"not looked at")
        (validation / "summary.json").write_text("{}")
    for case in "abcd":
        write_labels(truth / f"{case}.nii.gz", cube(1))
    write_dataset_json(truth.parent, LABELS)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    return model


def cases_of(evaluation) -> list[str]:
    return list(evaluation.results)


def test_classes_are_named_by_the_dataset_json_above_the_reference(folders, write_dataset_json):
    write_dataset_json(folders[0].parent, LABELS)
    assert list(evaluate_folder(*folders).results["a"]) == ["heart", "aorta"]


def test_classes_are_named_by_the_dataset_json_beside_the_predictions(folders, write_dataset_json):
    write_dataset_json(folders[1], LABELS)
    assert list(evaluate_folder(*folders).results["a"]) == ["heart", "aorta"]


def test_a_labels_file_overrules_what_lies_beside_the_folders(folders, tmp_path, write_dataset_json):
    write_dataset_json(folders[0].parent, LABELS)
    mine = write_dataset_json(tmp_path / "mine", {"background": 0, "both": [1, 2]})
    evaluation = evaluate_folder(*folders, labels=mine)
    assert evaluation.results["a"]["both"].label == "1+2"


def test_two_dataset_json_that_disagree_must_be_settled(folders, write_dataset_json):
    write_dataset_json(folders[0].parent, LABELS)
    write_dataset_json(folders[1], {"background": 0, "aorta": 1, "heart": 2})
    with pytest.raises(SamnnError, match="--labels"):
        evaluate_folder(*folders)


def test_without_dataset_json_the_classes_are_the_values_of_the_references(folders):
    evaluation = evaluate_folder(*folders)
    assert list(evaluation.results["a"]) == ["1", "2"]
    assert evaluation.results["a"]["2"].outcome == "absent"


def test_without_dataset_json_a_predicted_value_of_no_reference_is_an_error(folders, write_labels):
    stray = write_labels(folders[1] / "a.nii.gz", cube(9))
    with pytest.raises(SamnnError, match=rf"{stray}: holds the value 9"):
        evaluate_folder(*folders)


def test_an_image_is_not_mistaken_for_a_label_map(folders, write_labels):
    ct = write_labels(folders[0] / "a.nii.gz", np.arange(216, dtype=np.int16).reshape(6, 6, 6) - 100)
    with pytest.raises(SamnnError, match=rf"{ct}: holds 216 different values from -100 to 115"):
        evaluate_folder(*folders)


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_other_endings_are_read_and_matched_by_name(folders, write_labels, ending):
    for case, value in [("a", 1), ("b", 2)]:
        (folders[1] / f"{case}.nii.gz").unlink()
        write_labels(folders[1] / f"{case}{ending}", cube(value))
    evaluation = evaluate_folder(*folders)
    assert evaluation.results["a"]["1"].values["dice"] == 1.0


def test_the_file_ending_of_dataset_json_says_which_files_are_label_maps(folders, write_dataset_json):
    write_dataset_json(folders[0].parent, LABELS)
    (folders[1] / "a picture.png").write_bytes(b"not looked at")
    (folders[1] / "._a.nii.gz").write_bytes(b"hidden")
    assert cases_of(evaluate_folder(*folders)) == ["a", "b"]


@pytest.mark.parametrize("name", ["Müller, Jörg", "患者 17", "a b  c", "x.y.z", "№1 (2)"])
def test_names_with_spaces_and_other_letters_simply_work(folders, write_labels, name):
    for folder in folders:
        write_labels(folder / f"{name}.nii.gz", cube())
    assert evaluate_folder(*folders).results[name]["1"].values["dice"] == 1.0


def test_a_name_matches_in_either_way_of_writing_an_umlaut(folders, write_labels):
    write_labels(folders[0] / (unicodedata.normalize("NFC", "Jörg") + ".nii.gz"), cube())
    write_labels(folders[1] / (unicodedata.normalize("NFD", "Jörg") + ".nii.gz"), cube())
    assert "Jörg" in cases_of(evaluate_folder(*folders))


def test_whole_numbers_stored_as_floats_are_labels(folders, write_labels):
    write_labels(folders[1] / "a.nii.gz", cube().astype(np.float32))
    assert evaluate_folder(*folders).results["a"]["1"].values["dice"] == 1.0


def test_a_missing_prediction_may_be_allowed(folders):
    (folders[1] / "b.nii.gz").unlink()
    evaluation = evaluate_folder(*folders, allow_missing=True)
    assert cases_of(evaluation) == ["a"]
    assert evaluation.case_set.missing == ["b"]


def test_a_results_folder_gathers_the_validation_cases_of_all_folds(results):
    assert cases_of(evaluate_folder(None, results)) == ["a", "b", "c"]


def test_a_fold_and_its_validation_folder_hold_that_folds_cases(results):
    assert cases_of(evaluate_folder(None, results / "fold_1")) == ["b", "c"]
    assert cases_of(evaluate_folder(None, results / "fold_1" / "validation")) == ["b", "c"]


def test_a_fold_is_recognised_from_inside_it(results, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(results / "fold_1" / "validation")
    assert cases_of(evaluate_folder(None, Path("."))) == ["b", "c"]


def test_the_labels_of_a_results_folder_may_come_from_the_raw_dataset(results, tmp_path):
    raw = tmp_path / "nnUNet_raw" / "Dataset077_Thorax" / "labelsTr"
    shutil.copytree(tmp_path / "nnUNet_preprocessed" / "Dataset077_Thorax" / "gt_segmentations", raw)
    shutil.rmtree(tmp_path / "nnUNet_preprocessed")
    evaluation = evaluate_folder(None, results)
    assert evaluation.case_set.reference == raw
    assert list(evaluation.labels.classes) == ["heart", "aorta"]  # from the model's own dataset.json


def test_a_results_folder_may_be_given_a_reference_of_its_own(results, tmp_path, write_labels):
    for case in "abc":
        write_labels(tmp_path / "second reader" / f"{case}.nii.gz", cube(2))
    evaluation = evaluate_folder(tmp_path / "second reader", results)
    assert evaluation.results["a"]["heart"].outcome == "false"


def test_labels_found_nowhere_are_an_error_that_says_where_they_were_looked_for(
    results, tmp_path, monkeypatch
):
    shutil.rmtree(tmp_path / "nnUNet_preprocessed")
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(
        SamnnError,
        match=r"(?s)--reference of samnn compare.*gt_segmentations: no such.*nnUNet_raw is not set",
    ):
        evaluate_folder(None, results)


def test_a_results_folder_outside_of_a_dataset_needs_a_reference(results, tmp_path):
    moved = shutil.move(results, tmp_path / "baseline")
    with pytest.raises(SamnnError, match="first argument of samnn evaluate, --reference of samnn compare"):
        evaluate_folder(None, moved)


def test_a_plain_folder_needs_a_reference(folders):
    with pytest.raises(
        SamnnError, match=rf"{folders[1]}: is no nnU-Net results folder.*first argument of samnn evaluate"
    ):
        evaluate_folder(None, folders[1])


def test_a_case_in_two_folds_is_an_error_naming_both_files(results):
    validations = [results / f"fold_{fold}" / "validation" for fold in (0, 1)]
    shutil.copy(validations[0] / "a.nii.gz", validations[1])
    with pytest.raises(SamnnError) as error:
        evaluate_folder(None, results)
    assert all(str(validation / "a.nii.gz") in str(error.value) for validation in validations)


def test_folds_without_validation_are_all_named(results):
    for fold in (0, 1):
        shutil.rmtree(results / f"fold_{fold}" / "validation")
    with pytest.raises(
        SamnnError, match=r"(?s)fold_0/validation: no such folder.*fold_1/validation: no such"
    ):
        evaluate_folder(None, results)


def test_an_empty_validation_folder_is_an_error(results):
    for file in (results / "fold_0" / "validation").iterdir():
        file.unlink()
    with pytest.raises(SamnnError, match="fold_0/validation: holds no label maps"):
        evaluate_folder(None, results)


def test_a_validation_prediction_without_a_reference_is_an_error(results, write_labels):
    extra = write_labels(results / "fold_0" / "validation" / "x.nii.gz", cube())
    with pytest.raises(SamnnError, match=f"{extra}: has no reference"):
        evaluate_folder(None, results)


def test_fold_all_counts_only_where_it_is_named_itself(results):
    """It validates on its training cases, so it never mixes with held-out ones."""
    shutil.copytree(results / "fold_0", results / "fold_all")
    evaluation = evaluate_folder(None, results)
    assert cases_of(evaluation) == ["a", "b", "c"]
    assert any("fold_all" in note for note in evaluation.case_set.notes)
    assert cases_of(evaluate_folder(None, results / "fold_all")) == ["a"]
    shutil.rmtree(results / "fold_0")
    shutil.rmtree(results / "fold_1")
    with pytest.raises(SamnnError, match="fold_all"):
        evaluate_folder(None, results)


@pytest.fixture
def splits(results, tmp_path):
    """nnU-Net's splits: fold 0 holds out a, and d, of which there is no prediction."""
    path = tmp_path / "nnUNet_preprocessed" / results.parent.name / "splits_final.json"
    path.write_text('[{"train": ["b", "c"], "val": ["a", "d"]}, {"train": ["a", "d"], "val": ["b", "c"]}]')
    return path


def test_a_case_that_nnunets_splits_hold_out_needs_a_prediction(results, splits):
    for unfinished in (results, results / "fold_0"):
        with pytest.raises(SamnnError, match=r"d\.nii\.gz: has no prediction .*fold_0/validation"):
            evaluate_folder(None, unfinished)
    evaluation = evaluate_folder(None, results, allow_missing=True)
    assert (cases_of(evaluation), evaluation.case_set.missing) == (["a", "b", "c"], ["d"])
    assert cases_of(evaluate_folder(None, results / "fold_1")) == ["b", "c"]


def test_folds_that_are_not_there_are_noted(results, splits):
    held_out = [*json.loads(splits.read_text()), *[{"train": [], "val": [case]} for case in "efg"]]
    held_out[0]["val"] = ["a"]
    splits.write_text(json.dumps(held_out))
    (results / "fold_1").rename(results / "fold_3")
    held_out[3]["val"] = ["b", "c"]
    splits.write_text(json.dumps(held_out))
    notes = evaluate_folder(None, results).case_set.notes
    assert notes == [
        f"fold_1, fold_2, fold_4 of the 5 folds in {splits}: not there; 4 held-out cases are in no mean."
    ]
    assert evaluate_folder(None, results / "fold_0").case_set.notes == []


def test_damaged_splits_are_named(results, splits):
    for content in ["[", "[1]", '{"val": 1}', '[{"val": [1]}]', "[" * 100_000]:
        splits.write_text(content)
        with pytest.raises(SamnnError, match=f"{splits}: cannot be read"):
            evaluate_folder(None, results)


@pytest.mark.parametrize("ours", [None, '{\n  "samnn_version": "1"}'], ids=["no summary", "summary of ours"])
def test_an_unfinished_validation_is_noted(results, ours):
    summary = results / "fold_0" / "validation" / "summary.json"
    summary.unlink()
    if ours is not None:
        summary.write_text(ours)
    notes = evaluate_folder(None, results).case_set.notes
    assert len(notes) == 1
    assert "fold_0/validation: has no summary.json" in notes[0]
