"""Whatever a raw folder holds, `samnn check` says what is wrong with it and never falls over."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from raw_folder import describe, found, load, save, small_hippocampus

from samnn.dataset_conversion import checks
from samnn.dataset_conversion.checks import _facts, _read
from samnn.dataset_conversion.checks._dataset import Case
from samnn.errors import SamnnError

IMAGE = "imagesTr/hippocampus_004_0000.nii.gz"
LABELS = "labelsTr/hippocampus_004.nii.gz"


@pytest.fixture
def small(shared: Path, tmp_path: Path) -> Path:
    return small_hippocampus(shared, tmp_path / "Dataset904_Hippocampus")


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "3", "null", "[" * 100_000, "\0", '{"labels": {"background": 0, "a": 1}', "{}",
    ],
    ids=lambda content: ascii(content)[:12],
)  # fmt: skip
def test_a_dataset_json_that_is_none_is_one_error(small, content):
    (small / "dataset.json").write_text(content)
    assert {entry for entry in found(small) if entry[0] == "error"} == {
        ("error", "description", "dataset.json")
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": [1, 2]},
        {"labels": {"background": 0, "anterior": {"a": 1}, "posterior": 2}},
        {"labels": {"background": 0, "anterior": 10**30, "posterior": 2}},
        {"labels": {}},
        {"channel_names": ["MRI"]},
        {"channel_names": {}},
        {"channel_names": {"0": 5}},
        {"numTraining": "five"},
        {"numTraining": [5]},
        {"numTraining": 5.0},
        {"numTraining": 1e400},
        {"file_ending": 5},
        {"file_ending": ""},
        {"file_ending": ".png"},
        {"dataset": []},
        {"dataset": {"a": 3, "b": {"images": "x", "label": "y"}, "c": {"images": [3], "label": None}}},
        {"dataset": {"a": {"images": ["\0"], "label": "x" * 5000}}},
    ],
    ids=lambda changes: json.dumps(changes)[:30],
)
def test_odd_entries_of_dataset_json_are_errors(small, changes):
    describe(small, **changes)
    assert "error" in {severity for severity, *_ in found(small)}


@pytest.mark.parametrize("path", [IMAGE, LABELS])
@pytest.mark.parametrize("what", ["folder", "dead link", "device", "pipe", "loop"])
def test_what_is_no_file_is_an_error_and_is_not_waited_for(small, path, what):
    (small / path).unlink()
    if what == "folder":
        (small / path).mkdir()
    elif what == "pipe":
        os.mkfifo(small / path)
    else:
        target = {"dead link": "nowhere", "device": "/dev/zero", "loop": Path(path).name}[what]
        (small / path).symlink_to(target)
    assert ("error", "files", path) in found(small)


def test_a_header_that_claims_more_than_fits_is_not_believed(small):
    content = bytearray(gzip.decompress((small / IMAGE).read_bytes()))
    content[42:48] = np.array([32767] * 3, "<i2").tobytes()
    (small / IMAGE).write_bytes(gzip.compress(bytes(content)))
    assert ("error", "voxels", IMAGE) in found(small)


def test_a_wrong_checksum_is_an_error(small):
    content = bytearray((small / IMAGE).read_bytes())
    content[-8] ^= 1
    (small / IMAGE).write_bytes(content)
    assert found(small) == {("error", "voxels", IMAGE)}


@pytest.mark.parametrize(
    "dtype", ["complex64", [("R", "u1"), ("G", "u1"), ("B", "u1")]], ids=["complex", "RGB"]
)
def test_complex_numbers_and_colours_are_errors(small, dtype):
    voxels, affine = load(small / IMAGE)
    save(small / IMAGE, np.zeros(voxels.shape, dtype), affine)
    assert found(small) == {("error", "voxels", IMAGE)}


def test_a_name_that_is_not_utf8_or_looks_like_markup_is_shown(small, samnn):
    shutil.copyfile(small / IMAGE, os.fsencode(small / "imagesTr") + b"/\xff[bold]\n_0000.nii.gz")
    done = samnn("check", small, "-o", "report.json")
    assert done.returncode == 1 and "Traceback" not in done.stderr and r"\udcff[bold]\n_0000" in done.stdout
    json.loads((small.parent / "report.json").read_text())


@pytest.mark.parametrize("name", ["absent", "file", "1234", "x" * 5000, "\0"])
def test_a_folder_that_is_none_is_refused(tmp_path, monkeypatch, name):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SamnnError, match=r"no such folder|is not a folder"):
        checks.check(name)


def test_an_empty_folder_has_no_dataset_json(tmp_path):
    folder = tmp_path / "Dataset001_Empty"
    folder.mkdir()
    assert ("error", "description", "dataset.json") in found(folder)


def test_a_change_that_the_disk_refuses_is_reported_and_loses_nothing(small, monkeypatch):
    voxels, affine = load(small / LABELS)
    save(small / LABELS, voxels.astype(np.float32), affine)
    content = (small / LABELS).read_bytes()
    report = checks.check(str(small), workers=1)
    (small / "labelsTr").rename(small / "elsewhere")
    checks.mend(report)
    assert report.not_fixed and [name for name, _ in report.findings] == ["voxels"]
    assert (small / "elsewhere" / Path(LABELS).name).read_bytes() == content


@pytest.mark.parametrize(
    "ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".gipl", ".png", ".bmp", ".tif", ".tiff"]
)
def test_files_with_wrong_bytes_never_raise(small, tmp_path, ending):
    """Header bytes exchanged at random, ends cut off: there are facts, or words why there are none."""
    import SimpleITK
    from skimage.io import imsave

    voxels, affine = load(small / LABELS)
    sound = tmp_path / f"sound{ending}"
    if ending in (".png", ".bmp", ".tif", ".tiff"):
        imsave(sound, voxels[:, :, 15], check_contrast=False)
    elif ending in (".nrrd", ".mha", ".gipl"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(sound))
    else:
        nibabel.save(nibabel.Nifti1Image(voxels, affine), sound)
    compressed = ending == ".nii.gz"
    content = gzip.decompress(sound.read_bytes()) if compressed else sound.read_bytes()
    chance = random.Random(ending)
    for turn in range(40):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 6)):
            changed[chance.randrange(min(400, len(changed)))] = chance.randrange(256)
        changed = changed[: chance.randrange(len(changed))] if turn % 5 == 0 else changed
        path = tmp_path / f"{turn}{ending}"
        path.write_bytes(gzip.compress(bytes(changed)) if compressed else bytes(changed))
        for reader in _read.ENDINGS[ending]:
            facts = _facts.measure(Case("x", False, {0: path}, path), reader)
            assert facts.images[0].unreadable or facts.images[0].digest
        path.unlink()
