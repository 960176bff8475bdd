"""Bad SegTHOR folders: one clear message that names the files, exit code 1, nothing half-written."""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from small_thorax import AFFINE, command, files, save, tamper, thorax

from samnn.dataset_conversion import _heart, _layout
from samnn.dataset_conversion.segthor import Heart, convert
from samnn.errors import Problems, SamnnError


def refusal(source, tmp_path, **options):
    """The message of a conversion that must fail and leave nothing behind."""
    with pytest.raises(SamnnError) as caught:
        convert(source, 55, output=tmp_path / "raw", **options)
    assert not (tmp_path / "raw").exists()
    return str(caught.value)


def without_gt(source):
    (source / "train/Patient_01/GT.nii.gz").unlink()
    return "Patient_01: GT.nii.gz missing"


def without_image(source):
    (source / "train/Patient_01/Patient_01.nii.gz").unlink()
    return "Patient_01: Patient_01.nii.gz missing"


def other_grid(source):
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    save(source / "train/Patient_01/GT.nii.gz", thorax()[1], shifted)
    return "GT.nii.gz: does not lie on the grid of Patient_01.nii.gz: origin (mm)"


def other_shape(source):
    save(source / "train/Patient_01/GT.nii.gz", thorax()[1][:, :, :-1])
    return "shape (128, 128, 36) against (128, 128, 35)"


def unknown_label(source):
    labels = thorax()[1]
    labels[0, 0, 0] = 7
    save(source / "train/Patient_01/GT.nii.gz", labels)
    return "GT.nii.gz: holds label(s) [7]"


def fractional_label(source):
    save(source / "train/Patient_01/GT.nii.gz", thorax()[1] * np.float32(0.5))
    return "GT.nii.gz: holds fractional values"


def cut_image(source):
    image = source / "train/Patient_01/Patient_01.nii.gz"
    image.write_bytes(image.read_bytes()[:-200])
    return "Patient_01.nii.gz: cannot be read"


def cut_labels_in_a_whole_gzip_stream(source):
    labels = source / "train/Patient_01/GT.nii.gz"
    labels.write_bytes(gzip.compress(gzip.decompress(labels.read_bytes())[:-1000]))
    return "GT.nii.gz: is cut short, 1000 bytes"


def nan_affine(source):
    image = source / "train/Patient_01/Patient_01.nii.gz"
    content = bytearray(gzip.decompress(image.read_bytes()))
    content[292:296] = np.float32(np.nan).tobytes()  # srow_x[3]
    image.write_bytes(gzip.compress(bytes(content)))
    return "Patient_01.nii.gz: its affine or spacing holds NaN"


def twin(source):
    image = source / "train/Patient_01/Patient_01.nii.gz"
    nibabel.save(nibabel.load(image), image.with_suffix(""))
    return "Patient_01.nii.gz: Patient_01.nii lies beside it"


def duplicate_by_zeros(source):
    shutil.copytree(source / "train/Patient_01", source / "train/Patient_1")
    (source / "train/Patient_1/Patient_01.nii.gz").rename(source / "train/Patient_1/Patient_1.nii.gz")
    return "the same patient 2 times"


def duplicate_in_test(source):
    shutil.copy(source / "train/Patient_01/Patient_01.nii.gz", source / "test/patient_01.nii.gz")
    return "the same patient 2 times"


def uncompressed_test_image(source):
    (source / "test/Patient_43.nii").write_bytes(b"")
    return "Patient_43.nii: is not compressed"


def four_dimensions(source):
    save(source / "test/Patient_42.nii.gz", np.zeros((4, 4, 4, 2), np.int16))
    return "Patient_42.nii.gz: has 4 dimensions"


def true_heart_without_a_heart(source):
    save(source / "train/Patient_01/GT2.nii.gz", np.where(thorax()[1] == 2, 0, thorax()[1]))
    return "GT2.nii.gz: holds no label 2"


def loose_training_image(source):
    shutil.copy(source / "train/Patient_01/Patient_01.nii.gz", source / "train/Patient_09.nii.gz")
    return "Patient_09.nii.gz: is a file. Expected train/Patient_XX"


def patient_beside_train(source):
    shutil.copytree(source / "train/Patient_01", source / "Patient_09")
    return "Patient_09: lies beside train and test"


def patient_linked_to_nothing(source):
    (source / "train/Patient_09").symlink_to("unplugged")
    return "Patient_09: is a link to nothing"


def patient_linked_to_itself(source):
    (source / "train/Patient_09").symlink_to("Patient_09")
    return "Patient_09: is a link that leads to itself"


def train_linked_to_nothing(source):
    shutil.rmtree(source / "train")
    (source / "train").symlink_to("unplugged")
    return "train: is a link to nothing"


def no_training_patients(source):
    shutil.rmtree(source / "train")
    return "no training patients found"


def file_named_test(source):
    shutil.rmtree(source / "test")
    (source / "test").touch()
    return "test: is a file, expected a folder"


def ending_in_capitals(source):
    (source / "test/Patient_41.nii.gz").rename(source / "test/Patient_41.NII.GZ")
    return "Patient_41.NII.GZ: its ending is not in small letters"


def gt_that_is_a_folder(source):
    without_gt(source)
    (source / "train/Patient_01/GT.nii.gz").mkdir()
    return "Patient_01: GT.nii.gz is a folder."


def gt2_linked_to_nothing(source):
    (source / "train/Patient_01/GT2.nii.gz").symlink_to("unplugged")
    return "Patient_01: GT2.nii.gz is a link to nothing"


def nan_image(source):
    image = source / "train/Patient_01/Patient_01.nii.gz"
    save(image, np.full((128, 128, 36), np.nan, np.float32))
    return "Patient_01.nii.gz: holds NaN"


def heart_of_one_voxel_that_would_be_erased(source):
    """Nearest neighbour skips this voxel when it moves the heart back."""
    labels = np.zeros((128, 128, 36), np.uint8)
    seeds = (tuple(index) for index in np.ndindex(40, 40))
    for x, y in seeds:
        labels[:] = 0
        labels[60 + x, 40 + y, 5] = 2
        if not _heart.outside(labels == 2) and not _heart.move_back(labels == 2).any():
            break
    save(source / "train/Patient_01/GT.nii.gz", labels)
    return "0% of its 1 voxels would be left"


DAMAGES = [
    loose_training_image,
    patient_beside_train,
    patient_linked_to_nothing,
    patient_linked_to_itself,
    train_linked_to_nothing,
    no_training_patients,
    file_named_test,
    ending_in_capitals,
    gt_that_is_a_folder,
    gt2_linked_to_nothing,
    nan_image,
    heart_of_one_voxel_that_would_be_erased,
    without_gt,
    without_image,
    other_grid,
    other_shape,
    unknown_label,
    fractional_label,
    cut_image,
    cut_labels_in_a_whole_gzip_stream,
    nan_affine,
    twin,
    duplicate_by_zeros,
    duplicate_in_test,
    uncompressed_test_image,
    four_dimensions,
    true_heart_without_a_heart,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_folder_is_refused_by_name_and_nothing_is_written(segthor, tmp_path, damage):
    expected = damage(segthor)
    assert expected in refusal(segthor, tmp_path)


def test_all_problems_of_a_folder_are_listed_at_once(segthor, samnn, tmp_path):
    expected = [
        cut_image(segthor),
        unknown_label(segthor),
        uncompressed_test_image(segthor),
        four_dimensions(segthor),
    ]
    shutil.copytree(segthor / "train/Patient_02", segthor / "train/Patient_03")
    done = samnn("convert", "segthor", segthor, "-d", 55, "--heart-for", "Patient_99=keep")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for message in [*expected, "Patient_03.nii.gz missing", "--heart-for Patient_99=keep: no such patient"]:
        assert message in done.stderr
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    "make", [lambda folder: None, lambda folder: folder.mkdir()], ids=["absent", "empty"]
)
def test_a_source_without_patients_is_refused_with_the_layout_expected(tmp_path, make):
    make(tmp_path / "source")
    assert "Expected train/Patient_XX" in refusal(tmp_path / "source", tmp_path)


def test_a_heart_that_repair_would_erase_is_not_repaired_even_if_asked(segthor, tmp_path):
    heart_of_one_voxel_that_would_be_erased(segthor)
    message = refusal(segthor, tmp_path, heart_for=["Patient_01=repair"])
    assert "0% of the 1 voxels of the heart would be left" in message


def test_a_heart_that_repair_would_erase_is_asked_about_without_offering_repair(segthor, tmp_path):
    heart_of_one_voxel_that_would_be_erased(segthor)
    message = refusal(segthor, tmp_path)
    assert "--heart-for Patient_01=keep" in message and "Patient_01=repair" not in message


def test_a_choice_for_one_patient_that_contradicts_another_or_has_no_labels_is_refused(segthor, tmp_path):
    choices = ["Patient_01=keep", "Patient_01=repair", "Patient_41=keep"]
    message = refusal(segthor, tmp_path, heart_for=choices)
    assert (
        "contradicts Patient_01=keep" in message and "Patient_41=keep: this patient has no labels" in message
    )


@pytest.mark.parametrize("output", ["source", "source/train", "link"])
def test_a_target_in_the_source_is_refused(segthor, tmp_path, output):
    (tmp_path / "link").symlink_to(segthor)
    before = files(segthor)
    with pytest.raises(SamnnError, match="lies in the source"):
        convert(segthor, 55, output=tmp_path / output, overwrite=True)
    assert files(segthor) == before


@pytest.mark.parametrize("inner", [".", "train"])
def test_a_source_that_the_target_would_replace_is_refused_and_stays(segthor, tmp_path, inner):
    source = segthor.rename(tmp_path / "Dataset055_SegTHOR")
    before = files(source)
    with pytest.raises(SamnnError, match="the source in it"):
        convert(source / inner, 55, output=tmp_path, overwrite=True)
    assert files(source) == before


def test_a_patient_linked_into_the_dataset_to_be_replaced_is_refused_and_stays(segthor, tmp_path):
    inside = tmp_path / "Dataset055_SegTHOR/Patient_01"
    inside.parent.mkdir()
    (segthor / "train/Patient_01").rename(inside)
    (segthor / "train/Patient_01").symlink_to(inside)
    with pytest.raises(SamnnError, match="the source in it"):
        convert(segthor, 55, output=tmp_path, overwrite=True)
    assert (inside / "GT.nii.gz").is_file()


@pytest.mark.parametrize(
    "arguments", [["", "-d", "55"], ["source", "-d", "55", "-o", ""], ["source", "-d", "55", "--output="]]
)
def test_an_empty_path_is_refused_and_not_the_current_folder(segthor, samnn, arguments):
    done = samnn("convert", "segthor", *arguments)
    assert done.returncode == 2 and "is empty" in done.stderr


def test_a_path_too_long_for_the_system_is_said_without_a_traceback(segthor, samnn):
    for arguments in (["x" * 300, "-o", "raw"], [segthor, "-o", "x" * 300]):
        done = samnn("convert", "segthor", "-d", 55, *arguments)
        assert done.returncode == 1 and "File name too long" in done.stderr and "Traceback" not in done.stderr


def test_a_file_where_the_dataset_should_be_is_refused_and_stays(segthor, tmp_path):
    (tmp_path / "Dataset055_SegTHOR").write_text("mine")
    with pytest.raises(SamnnError, match="not a folder"):
        convert(segthor, 55, output=tmp_path, overwrite=True)
    assert (tmp_path / "Dataset055_SegTHOR").read_text() == "mine"


def test_while_a_number_is_being_written_it_is_taken(segthor, tmp_path):
    with _layout.new_dataset(tmp_path / "Dataset055_Other") as other:
        with pytest.raises(SamnnError, match="another process is writing"):
            convert(segthor, 55, output=tmp_path)
        (other.folder / "file").touch()
    assert [path.name for path in tmp_path.glob("*055*")] == ["Dataset055_Other"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_nobody_can_take_does_not_cost_the_dataset(segthor, tmp_path):
    arguments = [command(), "convert", "segthor", str(segthor), "-d", "55", "-o", str(tmp_path / "raw")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "cannot be printed" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "raw/Dataset055_SegTHOR/dataset.json").is_file()


def test_a_choice_that_is_neither_repair_nor_keep_is_refused(segthor, tmp_path):
    assert "write PATIENT=repair" in refusal(segthor, tmp_path, heart_for=["Patient_01=yes"])


def test_without_a_target_the_message_says_how_to_name_one(segthor, samnn):
    done = samnn("convert", "segthor", segthor, "-d", 55, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 1 and "nnUNet_raw is not set" in done.stderr and "--output" in done.stderr


def test_an_existing_dataset_is_only_replaced_on_request(segthor, tmp_path):
    convert(segthor, 55, output=tmp_path)
    target = tmp_path / "Dataset055_SegTHOR"
    first = files(target)
    with pytest.raises(SamnnError, match="--overwrite"):
        convert(segthor, 55, output=tmp_path, heart=Heart.keep)
    assert files(target) == first
    convert(segthor, 55, output=tmp_path, heart=Heart.keep, overwrite=True)
    assert files(target)["labelsTr/Patient_01.nii.gz"] != first["labelsTr/Patient_01.nii.gz"]
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_number_taken_by_another_dataset_is_refused(segthor, tmp_path):
    (tmp_path / "Dataset055_Hippocampus").mkdir()
    with pytest.raises(SamnnError, match="taken by Dataset055_Hippocampus"):
        convert(segthor, 55, output=tmp_path)


def test_a_bad_source_does_not_cost_the_dataset_it_should_have_replaced(segthor, tmp_path):
    convert(segthor, 55, output=tmp_path)
    before = files(tmp_path / "Dataset055_SegTHOR")
    without_gt(segthor)
    with pytest.raises(Problems):
        convert(segthor, 55, output=tmp_path, overwrite=True)
    assert files(tmp_path / "Dataset055_SegTHOR") == before


def test_a_target_that_cannot_be_written_is_said_without_a_traceback(segthor, samnn, tmp_path):
    (tmp_path / "raw").write_text("a file where the folder should be")
    without_gt(segthor)  # the patients are not looked at
    done = samnn("convert", "segthor", segthor, "-d", 55, "--dry-run")
    assert done.returncode == 1 and "raw is not a folder" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_leaves_the_old_dataset_and_the_next_run_goes_on(segthor, tmp_path):
    """A limit on file sizes stands for the full disk: the write call fails in the middle of an image."""
    convert(segthor, 55, output=tmp_path / "raw", heart=Heart.keep)
    before = files(tmp_path / "raw")
    done = subprocess.run(
        [
            command(),
            "convert",
            "segthor",
            str(segthor),
            "-d",
            "55",
            "-o",
            str(tmp_path / "raw"),
            "--overwrite",
        ],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    after = files(tmp_path / "raw")
    assert {name: content for name, content in after.items() if not name.startswith(".part-")} == before
    convert(segthor, 55, output=tmp_path / "raw", heart=Heart.keep, overwrite=True)
    assert files(tmp_path / "raw") == before


@pytest.fixture
def many_patients(segthor):
    """Enough files that a kill can meet each state of the folder being written."""
    image, labels = thorax(25)
    for number in range(3, 9):
        save(segthor / f"train/Patient_{number:02d}/Patient_{number:02d}.nii.gz", image)
        save(segthor / f"train/Patient_{number:02d}/GT.nii.gz", tamper(labels))
    return segthor


@pytest.mark.parametrize("files_seen", [0, 1, 7, 13, 18])
def test_killed_at_any_moment_and_run_again_it_ends_as_one_clean_run(many_patients, tmp_path, files_seen):
    """Killed (SIGKILL) once so many files are seen in the hidden folder; the old dataset is there all the time."""
    raw, clean = tmp_path / "raw", tmp_path / "clean"
    convert(many_patients, 55, output=clean)
    convert(many_patients, 55, output=raw, heart=Heart.keep)
    old = files(raw)
    arguments = [command(), "convert", "segthor", many_patients, "-d", "55", "-o", raw, "--overwrite"]
    process = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        part = next(raw.glob(".part-*"), None)
        if part is not None and sum(len(names) for *_, names in os.walk(part)) >= files_seen:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.001)
    assert process.returncode == -signal.SIGKILL, "the conversion ended before it could be killed"
    assert {name: content for name, content in files(raw).items() if not name.startswith(".")} == old
    convert(many_patients, 55, output=raw, overwrite=True)
    assert files(raw) == files(clean)
