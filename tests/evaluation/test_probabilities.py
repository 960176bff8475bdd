"""Saved probabilities as predictions: nnU-Net's .npz and 4-D NIfTI, softmax and regions, good files and bad ones."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from samnn.errors import SamnnError
from samnn.evaluation3d import evaluate_folder, summarise, write_outputs
from samnn.evaluation3d.probabilities import Channels, read_probabilities
from samnn.evaluation3d.stored import read_blocks
from samnn.io import read_labels
from samnn.labels import LabelSet

LABELS = {"background": 0, "heart": 1, "aorta": 2}
SPACING_MM = (1.5, 1.0, 3.0)
SHAPE = (7, 6, 5)  # (x, y, z)


def softmax(seed: int = 0, n: int = 3, shape=SHAPE) -> np.ndarray:
    """Probabilities in nnU-Net's order, (classes, z, y, x)."""
    e = np.exp(2 * np.random.default_rng(seed).normal(size=(n, *shape[::-1])))
    return (e / e.sum(0)).astype(np.float32)


def save(path: Path, probabilities: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, probabilities=probabilities)
    return path


@pytest.fixture
def folders(tmp_path, write_labels, write_dataset_json):
    """A reference of three classes, and an empty folder for its prediction."""
    write_dataset_json(tmp_path, LABELS)
    truth = softmax(1).argmax(0).astype(np.uint8).transpose()
    reference, prediction = tmp_path / "reference", tmp_path / "prediction"
    write_labels(reference / "a.nii.gz", truth)
    prediction.mkdir()
    return reference, prediction


def by_class(evaluation, metric: str) -> dict[str, float]:
    return {name: result.values[metric] for name, result in evaluation.results["a"].items()}


def truth_of(folders) -> np.ndarray:
    return read_labels(folders[0] / "a.nii.gz").voxels.transpose()


def test_every_other_metric_is_that_of_the_argmax(folders, write_labels):
    p = softmax()
    labelled = folders[1].parent / "labelled"
    write_labels(labelled / "a.nii.gz", p.argmax(0).astype(np.uint8).transpose())
    save(folders[1] / "a.npz", p)
    expected, found = evaluate_folder(folders[0], labelled), evaluate_folder(*folders)
    for name, result in expected.results["a"].items():
        values = found.results["a"][name].values
        assert {metric: values[metric] for metric in result.values} == pytest.approx(result.values, abs=0)
        assert set(values) - set(result.values) == {"ece", "brier", "nll"}


def test_brier_and_nll_equal_their_formulas_on_whole_arrays(folders):
    p = softmax()
    save(folders[1] / "a.npz", p)
    evaluation = evaluate_folder(*folders)
    for value, name in enumerate(["heart", "aorta"], start=1):
        of, y = p[value].astype(float), truth_of(folders) == value
        assert by_class(evaluation, "brier")[name] == pytest.approx(((of - y) ** 2).mean())
        log = np.where(y, np.log(of), np.log1p(-of))
        assert by_class(evaluation, "nll")[name] == pytest.approx(-log.mean())


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_nifti_with_the_classes_last_gives_the_same(folders, ending, dtype):
    """Also as bytes with a slope of 1/255, whose rounding stays within the tolerance of a sum of 1 here."""
    p = softmax()
    if dtype == np.uint8:
        p = np.stack([255 - 3 * (k := np.round(p[0] * 80)), k, 2 * k]) / 255
    save(folders[1] / "a.npz", p)
    expected = evaluate_folder(*folders)
    image = nibabel.Nifti1Image(p.transpose(), np.diag([-1.5, -1, 3, 1]))
    image.header.set_data_dtype(dtype)
    if dtype == np.uint8:
        image = nibabel.Nifti1Image(np.round(p * 255).astype(np.uint8).transpose(), image.affine)
        image.header.set_slope_inter(1 / 255, 0)
    target = folders[1].parent / "nifti" / f"a{ending}"
    target.parent.mkdir()
    nibabel.save(image, target)
    found = evaluate_folder(folders[0], target.parent, probabilities=True)
    for metric in ("dice", "ece", "brier", "nll"):
        assert by_class(found, metric) == pytest.approx(by_class(expected, metric), rel=1e-6)


def test_nifti_on_another_grid_is_refused(folders):
    image = nibabel.Nifti1Image(softmax().transpose(), np.diag([-1.5, -1, 4, 1]))
    nibabel.save(image, folders[1] / "a.nii.gz")
    with pytest.raises(SamnnError, match=r"a\.nii\.gz: lies on another grid .* spacing"):
        evaluate_folder(*folders, probabilities=True)


def test_four_dimensions_among_label_maps_are_an_error_that_names_the_option(folders):
    nibabel.save(nibabel.Nifti1Image(softmax().transpose(), np.eye(4)), folders[1] / "a.nii.gz")
    with pytest.raises(SamnnError, match="samnn evaluate --probabilities"):
        evaluate_folder(*folders)


def test_label_maps_go_before_probabilities_unless_asked_for(folders, write_labels):
    """nnU-Net writes both; they may differ after postprocessing."""
    p = softmax()
    save(folders[1] / "a.npz", p)
    write_labels(folders[1] / "a.nii.gz", truth_of(folders).transpose())
    default, asked = evaluate_folder(*folders), evaluate_folder(*folders, probabilities=True)
    assert by_class(default, "dice") == {"heart": 1, "aorta": 1}
    assert "ece" not in default.results["a"]["heart"].values
    assert by_class(asked, "dice")["heart"] < 1
    assert asked.case_set.notes == []


def test_without_label_maps_the_probabilities_are_taken_and_that_is_noted(folders):
    save(folders[1] / "a.npz", softmax())
    assert ["no label maps" in note for note in evaluate_folder(*folders).case_set.notes] == [True]


def test_a_class_of_several_values_has_the_sum_of_their_probabilities(folders, write_dataset_json):
    p = softmax()
    save(folders[1] / "a.npz", p)
    mine = write_dataset_json(folders[0].parent / "mine", {**LABELS, "both": [1, 2]})
    evaluation = evaluate_folder(*folders, labels=mine)
    y = truth_of(folders) > 0
    assert by_class(evaluation, "brier")["both"] == pytest.approx((((1 - p[0]) - y) ** 2).mean(), rel=1e-5)


def test_regions_follow_regions_class_order_and_have_a_channel_each(
    folders, write_labels, write_dataset_json
):
    """nnU-Net's rule: above 0.5, later ones over earlier ones; 0.5 itself is not."""
    labels = {"background": 0, "whole": [1, 2], "aorta": 2}
    write_dataset_json(folders[0].parent, labels, regions_class_order=[1, 2])
    p = np.random.default_rng(3).random((2, *SHAPE[::-1])).astype(np.float32)
    p[:, 0, 0, :] = 0.5
    expected = np.zeros(SHAPE[::-1], np.uint8)
    expected[p[0] > 0.5] = 1
    expected[p[1] > 0.5] = 2
    save(folders[1] / "a.npz", p)
    labelled = folders[1].parent / "labelled"
    write_labels(labelled / "a.nii.gz", expected.transpose())
    found, of_map = evaluate_folder(*folders), evaluate_folder(folders[0], labelled)
    for metric in ("dice", "hausdorff", "nsd"):
        assert by_class(found, metric) == by_class(of_map, metric)
    y = truth_of(folders) > 0
    assert by_class(found, "brier")["whole"] == pytest.approx(((p[0] - y) ** 2).mean(), rel=1e-5)


def test_ignored_voxels_count_for_nothing(folders, write_labels, write_dataset_json):
    """Whatever is predicted there, the numbers are those of the other voxels."""
    write_dataset_json(folders[0].parent, {**LABELS, "ignore": 3})
    truth = truth_of(folders).copy()
    truth[:2] = 3
    write_labels(folders[0] / "a.nii.gz", truth.transpose())
    p = softmax()
    save(folders[1] / "a.npz", p)
    before = evaluate_folder(*folders)
    of, y = p[1, 2:].astype(float), truth[2:] == 1
    assert by_class(before, "brier")["heart"] == pytest.approx(((of - y) ** 2).mean())
    p[:, :2] = softmax(9)[:, :2]
    save(folders[1] / "a.npz", p)
    assert evaluate_folder(*folders).table.equals(before.table)


def test_two_dimensions_as_nnunet_saves_them(tmp_path, write_labels, write_dataset_json):
    """A picture is one slice: (classes, 1, y, x)."""
    write_dataset_json(tmp_path, LABELS, file_ending=".png")
    p = softmax(shape=(9, 8, 1))
    write_labels(tmp_path / "reference" / "a.png", p[:, 0].argmax(0).astype(np.uint8).transpose())
    save(tmp_path / "prediction" / "a.npz", p)
    found = evaluate_folder(tmp_path / "reference", tmp_path / "prediction")
    assert by_class(found, "dice") == {"heart": 1, "aorta": 1}
    save(tmp_path / "prediction" / "a.npz", p[:, 0])
    assert evaluate_folder(tmp_path / "reference", tmp_path / "prediction").table.equals(found.table)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_every_floating_type_is_read(folders, dtype):
    """Sixteen bits round: their sum is 1 within the tolerance."""
    p = softmax().astype(dtype)
    save(folders[1] / "a.npz", p)
    y = truth_of(folders) == 1
    found = by_class(evaluate_folder(*folders), "brier")["heart"]
    assert found == pytest.approx(((p[1].astype(float) - y) ** 2).mean())


def one_nan(p):
    p[1, 2, 3, 4] = np.nan
    return p


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (one_nan, "NaN or infinity, first in channel 1"),
        (np.log, r"holds -\d.* to .* in channel 0; .* logits\? Apply the softmax"),
        (lambda p: p / 2, "add up to 0.5; expected 1 within 0.001"),
        (lambda p: p[:2], "has 2 channels, but dataset.json stands for 3, background included"),
        (lambda p: p.transpose(0, 3, 2, 1), r"has the shape \(3, 7, 6, 5\); expected .* \(5, 6, 7\)"),
        (lambda p: p[0], r"has the shape \(5, 6, 7\)"),
        (lambda p: np.float32(1), r"has the shape \(\)"),
        (lambda p: p.astype(complex), "holds complex128"),
        (lambda p: np.array([{"a": 1}]), "pickled objects, which are never read"),
        (lambda p: np.asfortranarray(p), "Fortran order"),
    ],
)
def test_arrays_that_are_no_probabilities_of_the_case_are_refused(folders, change, fault):
    path = save(folders[1] / "a.npz", change(softmax()))
    with pytest.raises(SamnnError, match=f"{path}: .*{fault}"):
        evaluate_folder(*folders)


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "change", [damaged, lambda content: content[:-200], lambda content: b"", lambda content: b"no zip at all"]
)
def test_damaged_npz_files_are_named(folders, change):
    path = save(folders[1] / "a.npz", softmax())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SamnnError, match=f"{path}: cannot be read .*damaged or cut short"):
        evaluate_folder(*folders)


@pytest.mark.parametrize("ending", [".npz", ".nii.gz"])
def test_numbers_that_fail_their_checksum_are_refused(folders, ending):
    """A byte of a stored .npz is another one; the checksum at the end of a .nii.gz is."""
    path = folders[1] / f"a{ending}"
    if ending == ".npz":
        np.savez(path, probabilities=np.full((3, *SHAPE[::-1]), 1 / 3))
        content = bytearray(path.read_bytes())
        content[1000] ^= 1  # the last bit of some number
    else:
        nibabel.save(nibabel.Nifti1Image(softmax().transpose(), np.diag([-1.5, -1, 3, 1])), path)
        content = bytearray(path.read_bytes())
        content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(SamnnError, match=f"{path}: cannot be read .*CRC"):
        list(read_blocks(path))


def test_of_equal_probabilities_the_first_class_is_taken(folders):
    """As argmax does, and so nnU-Net."""
    p = np.full((3, *SHAPE[::-1]), np.float32([0.2, 0.4, 0.4]).reshape(3, 1, 1, 1))
    save(folders[1] / "a.npz", p)
    assert by_class(evaluate_folder(*folders), "sensitivity") == {"heart": 1, "aorta": 0}


def test_an_npz_that_ends_before_its_shape_does_is_cut_short(folders):
    path = save(folders[1] / "a.npz", softmax())
    with zipfile.ZipFile(path) as archive:
        whole = archive.read("probabilities.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("probabilities.npy", whole[:-4])
    with pytest.raises(SamnnError, match="ends early"):
        evaluate_folder(*folders)


def test_an_npz_without_probabilities_names_what_it_holds(folders):
    np.savez(folders[1] / "a.npz", softmax=softmax())
    with pytest.raises(SamnnError, match=r"a\.npz: has no array 'probabilities', only softmax"):
        evaluate_folder(*folders)


def test_the_pickle_beside_is_never_read(folders):
    save(folders[1] / "a.npz", softmax())
    (folders[1] / "a.pkl").write_bytes(
        b"c__builtin__\nexit\n(I3\ntR."
    )  # ends the process of whoever unpickles it
    assert evaluate_folder(*folders).results


def test_probabilities_need_the_dataset_json_of_their_model(folders):
    (folders[0].parent / "dataset.json").unlink()
    save(folders[1] / "a.npz", softmax())
    with pytest.raises(SamnnError, match=r"need the dataset\.json .* --labels"):
        evaluate_folder(*folders)


@pytest.mark.parametrize(
    ("labels", "order", "fault"),
    [
        ({"background": 0, "heart": 1, "aorta": 5}, None, "the label values are 0, 1, 5"),
        ({"background": 0, "whole": [1, 2], "aorta": 2}, [1], "regions_class_order is"),
        ({"background": 0, "whole": [1, 2], "aorta": 2}, [1, 7], "regions_class_order is"),
        ({"background": 0, "whole": [1, 2], "aorta": 2}, [1, [2]], "regions_class_order is"),
        ({"background": 0, "whole": [1, 2], "aorta": 2}, 1, "regions_class_order is"),
    ],
)
def test_labels_that_no_model_can_have_are_refused(folders, write_dataset_json, labels, order, fault):
    write_dataset_json(folders[0].parent, labels, regions_class_order=order)
    save(folders[1] / "a.npz", softmax())
    with pytest.raises(SamnnError, match=fault):
        evaluate_folder(*folders)


def test_probabilities_in_turned_axes_are_refused(folders):
    save(folders[1] / "a.npz", softmax())
    (folders[1] / "plans.json").write_text('{"image_reader_writer": "SimpleITKIOWithReorient"}')
    with pytest.raises(SamnnError, match=r"plans\.json: its image_reader_writer turns images"):
        evaluate_folder(*folders)


def test_a_fold_without_probabilities_is_named(tmp_path, write_labels, write_dataset_json):
    """One fold was validated with --npz, the other without."""
    model = tmp_path / "Dataset001_X" / "nnUNetTrainer__nnUNetPlans__2d"
    write_dataset_json(model, LABELS)
    for fold, case in enumerate("ab"):
        folder = model / f"fold_{fold}" / "validation"
        write_labels(folder / f"{case}.nii.gz", np.ones(SHAPE, np.uint8))
        write_labels(tmp_path / "truth" / f"{case}.nii.gz", np.ones(SHAPE, np.uint8))
    save(model / "fold_0" / "validation" / "a.npz", softmax())
    with pytest.raises(SamnnError, match=r"fold_1/validation: holds no saved probabilities"):
        evaluate_folder(tmp_path / "truth", model, probabilities=True)


def test_the_command_writes_the_metrics_the_bins_and_the_plot(folders, tmp_path, run_evaluate, write_labels):
    p = softmax()
    save(folders[1] / "a.npz", p)
    write_labels(folders[1] / "a.nii.gz", p.argmax(0).astype(np.uint8).transpose())
    out = tmp_path / "out"
    write_outputs(evaluate_folder(*folders), out)
    process = run_evaluate(*folders, "--probabilities", "-o", out)
    assert process.returncode == 0, process.stderr
    assert "ECE, Brier score, NLL" in process.stdout and "reliability.png" in process.stdout
    assert sorted(path.name for path in out.iterdir()) == ["metrics.csv", "reliability.png", "summary.json"]
    assert (out / "reliability.png").read_bytes().startswith(b"\x89PNG")
    with open(out / "metrics.csv", newline="") as table:
        units = {row["metric"]: row["unit"] for row in csv.DictReader(table)}
    assert (units["ece"], units["brier"], units["nll"]) == ("fraction", "fraction", "nats")
    heart = json.loads((out / "summary.json").read_text())["classes"]["heart"]
    bins = heart["reliability"]
    assert sum(bins["n"]) == truth_of(folders).size and len(bins["edges"]) == 16
    gaps = [
        n * abs(p - y)
        for n, p, y in zip(bins["n"], bins["mean_probability"], bins["observed_fraction"], strict=True)
        if n
    ]
    assert sum(gaps) / sum(bins["n"]) == pytest.approx(heart["metrics"]["ece"]["mean"])

    write_outputs(evaluate_folder(*folders), out)  # of label maps: no plot from before stays
    assert sorted(path.name for path in out.iterdir()) == ["metrics.csv", "summary.json"]


def test_a_picture_of_somebody_else_is_never_replaced(folders, tmp_path):
    save(folders[1] / "a.npz", softmax())
    theirs = tmp_path / "out" / "reliability.png"
    theirs.parent.mkdir()
    theirs.write_bytes(b"\x89PNG mine")
    with pytest.raises(SamnnError, match=f"{theirs}: exists and is not from samnn evaluate"):
        write_outputs(evaluate_folder(*folders), theirs.parent)
    assert theirs.read_bytes() == b"\x89PNG mine"


def test_bins_of_all_cases_are_put_together(folders, write_labels):
    write_labels(folders[0] / "b.nii.gz", truth_of(folders).transpose())
    for case in "ab":
        save(folders[1] / f"{case}.npz", softmax())
    heart = summarise(evaluate_folder(*folders))["classes"]["heart"]
    assert sum(heart["reliability"]["n"]) == 2 * truth_of(folders).size


EXPORT = """
import json, sys
import numpy as np, torch
from pathlib import Path
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
plans = PlansManager({
    "transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2], "image_reader_writer": "SimpleITKIO",
    "configurations": {"3d_fullres": {
        "architecture": {}, "spacing": [2.0, 1.0, 1.0],
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
    }},
})
properties = {  # (z, y, x) = (6, 8, 10) with spacing (3, 1, 1.5); the network sees (y, z, x), cropped and resampled
    "sitk_stuff": {"spacing": (1.5, 1.0, 3.0), "origin": (-5.0, 20.0, 7.0), "direction": tuple(np.eye(3).ravel())},
    "spacing": [3.0, 1.0, 1.5],
    "shape_before_cropping": (8, 6, 10),
    "bbox_used_for_cropping": [[1, 8], [0, 6], [2, 9]],
    "shape_after_cropping_and_before_resampling": (7, 6, 7),
}
for name, dataset in json.loads(sys.argv[2]).items():
    n = 2 if name == "regions" else 3
    logits = torch.from_numpy(np.random.default_rng(5).normal(size=(n, 4, 18, 10)).astype(np.float32)) * 4
    out = Path(sys.argv[1], name)
    out.mkdir(parents=True)
    export_prediction_from_logits(
        logits, properties, plans.get_configuration("3d_fullres"), plans, dataset, str(out / "a"), True, 1
    )
    (out / "dataset.json").write_text(json.dumps(dataset))
"""


def test_what_nnunet_exports_has_the_argmax_of_the_label_map_beside_it(tmp_path, write_labels):
    """nnU-Net itself resamples, undoes its cropping and its transposition, and writes .npz, .pkl and label map."""
    regions = {"labels": {"background": 0, "whole": [1, 2], "aorta": 2}, "regions_class_order": [1, 2]}
    datasets = {"softmax": {"labels": LABELS}, "regions": regions}
    for dataset in datasets.values():
        dataset |= {"file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    process = subprocess.run(
        [sys.executable, "-c", EXPORT, tmp_path, json.dumps(datasets)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    for name in datasets:
        predicted, reference = tmp_path / name, tmp_path / f"reference of {name}"
        assert {path.name for path in predicted.iterdir()} == {"a.npz", "a.pkl", "a.nii.gz", "dataset.json"}
        labelled = read_labels(predicted / "a.nii.gz").voxels
        assert set(np.unique(labelled)) == {0, 1, 2}
        write_labels(reference / "a.nii.gz", labelled, origin_mm=(-5.0, 20.0, 7.0))
        for probabilities in (False, True):
            found = evaluate_folder(reference, predicted, probabilities=probabilities)
            assert set(by_class(found, "dice").values()) == {1.0}
            assert set(by_class(found, "hausdorff").values()) == {0.0}


def test_memory_does_not_grow_with_the_number_of_classes(tmp_path):
    """Both times at most 64 bytes a voxel; all 24 classes at once would be 96, before anything is computed."""
    n_voxels, peaks = 96**3, []
    for n in (2, 24):
        path = tmp_path / f"{n}.npz"
        np.savez(path, probabilities=np.broadcast_to(np.float32(1 / n), (n, 96, 96, 96)))
        labels = LabelSet({str(value): (value,) for value in range(1, n)})
        reference = np.zeros((96, 96, 96), np.uint8)
        tracemalloc.start()
        read_probabilities(path, reference, labels=labels, channels=Channels(n))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.02 * peaks[0]
    assert max(peaks) < 64 * n_voxels
