"""SegTHOR into nnU-Net raw format: what is written, what is decided, and that the source stays as it was."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from small_thorax import AFFINE, SHAPE, files, save, tamper, thorax

from samnn.dataset_conversion.segthor import Heart, convert
from samnn.errors import Problems, SamnnError
from samnn.io import read_grid, read_labels


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def record(target):
    return json.loads((target / "conversion.json").read_text())


def test_one_command_turns_the_course_copy_into_a_raw_dataset(segthor, samnn, tmp_path):
    done = samnn("convert", "segthor", segthor, "-d", 55)
    assert done.returncode == 0, done.stderr
    target = tmp_path / "raw" / "Dataset055_SegTHOR"
    assert sorted(files(target)) == [
        "conversion.json",
        "dataset.json",
        "imagesTr/Patient_01_0000.nii.gz",
        "imagesTr/Patient_02_0000.nii.gz",
        "imagesTs/Patient_41_0000.nii.gz",
        "labelsTr/Patient_01.nii.gz",
        "labelsTr/Patient_02.nii.gz",
    ]
    assert json.loads((target / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "esophagus": 1, "heart": 2, "trachea": 3, "aorta": 4},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["Dataset055_SegTHOR"]


def test_nnunet_finds_no_fault_with_the_dataset(segthor, tmp_path):
    convert(segthor, 55, output=tmp_path)
    check = (
        "from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity as verify;"
        f"verify({str(tmp_path / 'Dataset055_SegTHOR')!r}, num_processes=1)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Warning" not in done.stdout, done.stdout + done.stderr


def test_a_displaced_heart_comes_home_and_every_other_voxel_stays(segthor, tmp_path):
    convert(segthor, 55, output=tmp_path)
    truth = thorax(25)[1]
    before, after = tamper(truth), voxels(tmp_path / "Dataset055_SegTHOR/labelsTr/Patient_01.nii.gz")
    heart = after == 2
    assert (heart & (truth == 2)).sum() / (
        heart | (truth == 2)
    ).sum() > 0.98  # coarse grid; 0.99 on 512 x 512
    outside = ~heart & (before != 2)
    np.testing.assert_array_equal(after[outside], before[outside])
    assert not (after[(before == 2) & ~heart]).any()


def test_images_and_labels_that_need_no_change_are_copied_byte_for_byte(segthor, tmp_path):
    convert(segthor, 55, output=tmp_path)
    source, written = files(segthor), files(tmp_path / "Dataset055_SegTHOR")
    assert written["imagesTr/Patient_01_0000.nii.gz"] == source["train/Patient_01/Patient_01.nii.gz"]
    assert written["imagesTs/Patient_41_0000.nii.gz"] == source["test/Patient_41.nii.gz"]
    assert written["labelsTr/Patient_02.nii.gz"] == source["train/Patient_02/GT.nii.gz"]


def test_the_source_is_not_touched(segthor, tmp_path):
    before = files(segthor)
    convert(segthor, 55, output=tmp_path / "raw")
    assert files(segthor) == before


def test_repaired_labels_keep_an_oblique_geometry_to_the_bit(segthor, tmp_path):
    angle = np.deg2rad(7)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = AFFINE.copy()
    affine[:3, :3] = turn @ AFFINE[:3, :3]
    folder = segthor / "train" / "Patient_01"
    for file in (folder / "Patient_01.nii.gz", folder / "GT.nii.gz"):
        save(file, voxels(file), affine)
    convert(segthor, 55, output=tmp_path)
    before = nibabel.load(folder / "GT.nii.gz").header
    after = nibabel.load(tmp_path / "Dataset055_SegTHOR/labelsTr/Patient_01.nii.gz").header
    for name in before:
        if name not in ("datatype", "bitpix"):
            assert before[name].tobytes() == after[name].tobytes(), name


def test_converting_twice_gives_the_same_files(segthor, tmp_path):
    convert(segthor, 55, output=tmp_path)
    first = files(tmp_path / "Dataset055_SegTHOR")
    convert(segthor, 55, output=tmp_path, overwrite=True)
    assert files(tmp_path / "Dataset055_SegTHOR") == first


def test_repaired_hearts_are_kept_when_they_are_converted_again(segthor, tmp_path):
    convert(segthor, 55, output=tmp_path)
    repaired = tmp_path / "Dataset055_SegTHOR/labelsTr/Patient_01.nii.gz"
    (segthor / "train/Patient_01/GT.nii.gz").write_bytes(repaired.read_bytes())
    convert(segthor, 56, output=tmp_path)
    again = tmp_path / "Dataset056_SegTHOR"
    assert record(again)["cases"]["Patient_01"]["heart"]["decision"] == "keep"
    assert (again / "labelsTr/Patient_01.nii.gz").read_bytes() == repaired.read_bytes()


def test_the_record_tells_source_hashes_decisions_and_reasons(segthor, tmp_path):
    convert(segthor, 55, output=tmp_path)
    cases = record(tmp_path / "Dataset055_SegTHOR")["cases"]
    displaced = cases["Patient_01"]
    assert displaced["image"]["source"] == "train/Patient_01/Patient_01.nii.gz"
    assert len(displaced["labels"]["sha256"]) == 64
    assert displaced["heart"]["decision"] == "repair" and "in lung" in displaced["heart"]["because"]
    assert cases["Patient_02"]["heart"]["decision"] == "keep"
    assert cases["Patient_02"]["labels"]["rewritten_because"] == []


@pytest.mark.parametrize("is_mask", [False, True])
def test_the_outcome_is_compared_with_the_true_heart(segthor, tmp_path, is_mask):
    truth = thorax(25)[1]
    save(segthor / "train/Patient_01/GT2.nii.gz", (truth == 2).astype(np.uint8) if is_mask else truth)
    convert(segthor, 55, output=tmp_path)
    check = record(tmp_path / "Dataset055_SegTHOR")["cases"]["Patient_01"]["heart"]["against_true_heart"]
    assert check["iou"] > 0.98 and check["centroid_distance_mm"] < 0.5


def test_an_outcome_unlike_the_true_heart_is_noted(segthor, tmp_path):
    save(segthor / "train/Patient_02/GT2.nii.gz", tamper(thorax(24)[1]))
    convert(segthor, 55, output=tmp_path)
    case = record(tmp_path / "Dataset055_SegTHOR")["cases"]["Patient_02"]
    assert case["heart"]["against_true_heart"]["iou"] < 0.5 and "GT2" in case["notes"][0]


def test_keep_leaves_a_displaced_heart_where_it_is(segthor, tmp_path):
    convert(segthor, 55, output=tmp_path, heart=Heart.keep)
    written = tmp_path / "Dataset055_SegTHOR/labelsTr/Patient_01.nii.gz"
    assert written.read_bytes() == (segthor / "train/Patient_01/GT.nii.gz").read_bytes()


def test_a_heart_that_would_leave_the_volume_is_not_repaired_even_if_asked(segthor, tmp_path):
    with pytest.raises(Problems, match=r"Patient_02.*not displaced.*--heart-for Patient_02=keep"):
        convert(segthor, 55, output=tmp_path, heart=Heart.repair)
    convert(segthor, 55, output=tmp_path, heart=Heart.repair, heart_for=["Patient_02=keep"])
    cases = record(tmp_path / "Dataset055_SegTHOR")["cases"]
    assert [case.get("heart", {}).get("decision") for case in cases.values()] == ["repair", "keep", None]


def test_unclear_hearts_are_listed_together_and_settled_one_by_one(segthor, tmp_path):
    for name in ("Patient_01", "Patient_03"):
        save(segthor / f"train/{name}/{name}.nii.gz", np.full(SHAPE, 40, np.int16))
        save(segthor / f"train/{name}/GT.nii.gz", tamper(thorax(25)[1]))
    with pytest.raises(Problems) as caught:
        convert(segthor, 55, output=tmp_path / "raw")
    assert [p for p in caught.value.problems if "--heart-for Patient_01=repair" in p]
    assert [p for p in caught.value.problems if "--heart-for Patient_03=keep" in p]
    assert not (tmp_path / "raw").exists()
    convert(segthor, 55, output=tmp_path, heart_for=["Patient_01=repair", "Patient_03=keep"])
    cases = record(tmp_path / "Dataset055_SegTHOR")["cases"]
    assert [cases[f"Patient_0{n}"]["heart"]["decision"] for n in (1, 2, 3)] == ["repair", "keep", "keep"]


def test_a_patient_without_a_heart_is_kept_and_said(segthor, tmp_path):
    labels = thorax()[1]
    labels[labels == 2] = 0
    save(segthor / "train/Patient_01/GT.nii.gz", labels)
    convert(segthor, 55, output=tmp_path)
    heart = record(tmp_path / "Dataset055_SegTHOR")["cases"]["Patient_01"]["heart"]
    assert heart == {"decision": "keep", "because": "no heart labelled"}


def test_a_heart_cut_off_by_its_displacement_is_reported(segthor, tmp_path):
    image, labels = thorax(20)
    save(segthor / "train/Patient_01/Patient_01.nii.gz", image)
    save(segthor / "train/Patient_01/GT.nii.gz", tamper(labels))
    convert(segthor, 55, output=tmp_path)
    assert "edge" in record(tmp_path / "Dataset055_SegTHOR")["cases"]["Patient_01"]["notes"][0]


@pytest.mark.parametrize("signs", [(1, 1, 1, 1), (-1, -1, 1, 1)], ids=["NIfTI", "ITK"])
@pytest.mark.parametrize("name", ["Patient_01", "Patient_02"])
def test_labels_with_an_identity_affine_take_the_grid_of_the_image(segthor, tmp_path, name, signs):
    """With the heart repaired (01) and kept (02); the identity as NIfTI and as ITK writes it."""
    labels = segthor / "train" / name / "GT.nii.gz"
    before = voxels(labels)
    save(labels, before, np.diag(signs))
    convert(segthor, 55, output=tmp_path)
    target = tmp_path / "Dataset055_SegTHOR"
    written = target / "labelsTr" / f"{name}.nii.gz"
    assert read_grid(written) == read_grid(segthor / "train" / name / f"{name}.nii.gz")
    np.testing.assert_array_equal(voxels(written) == 4, before == 4)
    assert "identity affine" in record(target)["cases"][name]["notes"][0]


def test_whole_numbers_stored_as_floats_become_integers(segthor, tmp_path):
    labels = thorax(24)[1]
    save(segthor / "train/Patient_02/GT.nii.gz", labels.astype(np.float32))
    convert(segthor, 55, output=tmp_path)
    written = nibabel.load(tmp_path / "Dataset055_SegTHOR/labelsTr/Patient_02.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)


def test_labels_with_a_fourth_axis_of_one_voxel_are_converted(segthor, tmp_path):
    labels = thorax(24)[1]
    save(segthor / "train/Patient_02/GT.nii.gz", labels[..., None].astype(np.float32))
    convert(segthor, 55, output=tmp_path)
    written = tmp_path / "Dataset055_SegTHOR/labelsTr/Patient_02.nii.gz"
    np.testing.assert_array_equal(read_labels(written).voxels, labels)


def test_other_files_than_images_are_left_alone(segthor, tmp_path):
    for name in ("README.txt", "train/list.csv", "test/notes.md", ".hidden"):
        (segthor / name).touch()
    convert(segthor, 55, output=tmp_path)
    assert len(record(tmp_path / "Dataset055_SegTHOR")["cases"]) == 3


def test_the_train_folder_alone_is_enough(segthor, tmp_path):
    convert(segthor / "train", 55, output=tmp_path)
    assert sorted(record(tmp_path / "Dataset055_SegTHOR")["cases"]) == ["Patient_01", "Patient_02"]


def test_the_labels_of_a_test_patient_are_kept_for_evaluation(segthor, tmp_path):
    image, labels = thorax(24)
    save(segthor / "test/Patient_42/Patient_42.nii.gz", image)
    save(segthor / "test/Patient_42/GT.nii.gz", labels)
    convert(segthor, 55, output=tmp_path)
    target = tmp_path / "Dataset055_SegTHOR"
    assert [p.name for p in sorted((target / "imagesTs").iterdir())] == [
        "Patient_41_0000.nii.gz",
        "Patient_42_0000.nii.gz",
    ]
    assert [p.name for p in (target / "labelsTs").iterdir()] == ["Patient_42.nii.gz"]
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 2


def test_names_with_spaces_and_letters_of_any_language_work(segthor, samnn, tmp_path):
    odd = tmp_path / "Müller's Daten [b] 心"
    segthor.rename(odd)
    (odd / "train/Patient_01").rename(odd / "train/Pätient 1")
    (odd / "train/Pätient 1/Patient_01.nii.gz").rename(odd / "train/Pätient 1/Pätient 1.nii.gz")
    done = samnn(
        "convert", "segthor", odd, "-d", 7, "-o", tmp_path / "raw [ö]", "--heart-for", "Pätient 1=repair"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "raw [ö]/Dataset007_SegTHOR/labelsTr/Pätient 1.nii.gz").is_file()


def test_a_dry_run_prints_the_decisions_and_writes_nothing(segthor, samnn, tmp_path):
    done = samnn("convert", "segthor", segthor, "-d", 55, "--dry-run")
    assert done.returncode == 0 and "repair" in done.stdout and "Patient_02" in done.stdout
    assert not (tmp_path / "raw").exists()


def test_the_help_names_source_licence_citation_layout_and_an_example(samnn):
    text = samnn("convert", "segthor", "--help").stdout
    for word in ("Source:", "Licence:", "Citation:", "Layout:", "samnn convert segthor ~/segthor -d 55"):
        assert word in text


@pytest.mark.parametrize("dataset_id", [0, 1000, -3])
def test_dataset_numbers_outside_1_to_999_are_refused(segthor, tmp_path, dataset_id):
    with pytest.raises(SamnnError, match="1 to 999"):
        convert(segthor, dataset_id, output=tmp_path)
