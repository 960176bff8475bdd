"""Pairs that cannot be converted are refused by name, all at once, and nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import typer
from pair_sources import GRID, convert, image, mask, pair, ras, save, save_itk, save_nifti
from small_thorax import command, files

from samnn.errors import Problems, SamnnError
from samnn.io import Volume


def missing_mask(source: Path) -> str:
    (source / "masks/a.nii.gz").unlink()
    return "a.nii.gz has no mask. Add a to"


def missing_image(source: Path) -> str:
    save(source / "masks/c.nii.gz", mask())
    return "c.nii.gz has no image"


def dicom_files_without_a_folder(source: Path) -> str:
    (source / "images/a.nii.gz").rename(source / "images/a_1.dcm")
    return "a_1.dcm. DICOM series need a folder each."


def missing_channel(source: Path) -> str:
    (source / "images/a.nii.gz").rename(source / "images/a_0001.nii.gz")
    return "case a has channel(s) 0001"


def same_name_in_two_formats(source: Path) -> str:
    save_itk(source / "images/a.nrrd", image())
    return "a.nii.gz has the same name"


def names_that_fall_together(source: Path) -> str:
    pair(source, "b 1")
    pair(source, "b_1")
    return "cases 'b 1', 'b_1' all become 'b_1'"


def names_that_differ_in_capitals(source: Path) -> str:
    pair(source, "A")
    return "cases 'A', 'a' all become 'A' or differ only in capitals"


def a_name_of_nothing(source: Path) -> str:
    pair(source, "-")
    return "nothing is left of its name"


def link_to_nothing(source: Path) -> str:
    (source / "images/b.nii.gz").symlink_to("unplugged")
    return "b.nii.gz: is a link to nothing"


def ending_in_capitals(source: Path) -> str:
    (source / "masks/a.nii.gz").rename(source / "masks/a.NII.GZ")
    return "a.NII.GZ: its ending is not in small letters"


def half_a_voxel(source: Path) -> str:
    """In the middle of all axes at once, so no axis shows it alone."""
    shift = np.reshape(GRID.direction, (3, 3)) @ (np.array(GRID.spacing_mm) / 2)
    grid = replace(GRID, origin_mm=tuple(np.array(GRID.origin_mm) + shift))
    save(source / "masks/a.nii.gz", Volume(mask().voxels, grid))
    return "corners up to"


def another_spacing(source: Path) -> str:
    save(source / "masks/a.nii.gz", Volume(mask().voxels, replace(GRID, spacing_mm=(0.8, 1.25, 3.0))))
    return "against (0.800000012, 1.25, 3)"


def another_angle(source: Path) -> str:
    save(source / "masks/a.nii.gz", Volume(mask().voxels, replace(GRID, direction=tuple(np.eye(3).ravel()))))
    return "direction (0.96"


def another_shape(source: Path) -> str:
    save(source / "masks/a.nii.gz", Volume(mask().voxels[:, :, :4], replace(GRID, shape=(7, 6, 4))))
    return "shape (7, 6, 5) against (7, 6, 4)"


def four_dimensions(source: Path) -> str:
    save_nifti(source / "images/a.nii.gz", np.zeros((7, 6, 5, 3), np.int16), ras(GRID))
    return "has 4 dimensions, 3 volumes"


def two_dimensions(source: Path) -> str:
    save_nifti(source / "images/a.nii.gz", image().voxels[:, :, 0], np.eye(4))
    return "has 2 dimensions; expected 3. Put slices together, or give it a third axis of one voxel."


def mask_of_four_dimensions(source: Path) -> str:
    save_nifti(source / "masks/a.nii.gz", np.zeros((7, 6, 5, 2), np.uint8), ras(GRID))
    return "has 4 dimensions; expected 3. Is it a label map?"


def colours(source: Path) -> str:
    rgb = np.zeros(GRID.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    save_nifti(source / "images/a.nii.gz", rgb, ras(GRID))
    return "has 3 values per voxel"


def complex_voxels(source: Path) -> str:
    save_nifti(source / "images/a.nii.gz", np.zeros(GRID.shape, np.complex64), ras(GRID))
    return "complex"


def vector_image(source: Path) -> str:
    (source / "images/a.nii.gz").unlink()
    SimpleITK.WriteImage(
        SimpleITK.Image([7, 6, 5], SimpleITK.sitkVectorFloat32, 2), str(source / "images/a.nrrd")
    )
    return "has 2 values per voxel"


def sheared(source: Path, *, qform: bool = False) -> str:
    affine = ras(GRID)
    affine[:3, 2] += 0.1 * affine[:3, 0]
    picture = nibabel.Nifti1Image(image().voxels, affine)
    picture.set_sform(affine, 1)
    picture.set_qform(ras(GRID) if qform else None, int(qform))
    nibabel.save(picture, source / "images/a.nii.gz")
    return "its axes are sheared"


def sheared_with_an_upright_qform(source: Path) -> str:
    return sheared(source, qform=True)


def sheared_nrrd(source: Path) -> str:
    (source / "images/a.nii.gz").unlink()
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 7 6 5\n"
        "space directions: (1,0,0) (0,1,0) (0.3,0,2)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        "space origin: (0,0,0)\n\n"
    )
    (source / "images/a.nrrd").write_bytes(header.encode() + image().voxels.tobytes(order="F"))
    return "its axes are sheared, 8.53 degrees"


def fractions(source: Path) -> str:
    save(source / "masks/a.nii.gz", Volume(mask().voxels * np.float32(0.5), GRID))
    return "holds fractional values"


def cut_image(source: Path) -> str:
    path = source / "images/a.nii.gz"
    path.write_bytes(path.read_bytes()[:-50])
    return "images/a.nii.gz: cannot be read"


def cut_mask(source: Path) -> str:
    path = source / "masks/a.nii.gz"
    path.write_bytes(path.read_bytes()[:-9])
    return "masks/a.nii.gz: cannot be read"


def nan_image(source: Path) -> str:
    voxels = image().voxels.astype(np.float32)
    voxels[3, 3, 3] = np.nan
    save_nifti(source / "images/a.nii.gz", voxels, ras(GRID))
    return "holds NaN"


def no_image(source: Path) -> str:
    (source / "images/a.nii.gz").write_text("not an image")
    return "images/a.nii.gz: cannot be read"


def vtk(source: Path) -> str:
    (source / "images/a.nii.gz").unlink()
    save_itk(
        source / "images/a.vtk", Volume(image().voxels, replace(GRID, direction=tuple(np.eye(3).ravel())))
    )
    return "ITK does not notice when a file of this format is cut short"


def analyze(source: Path) -> str:
    (source / "images/a.nii.gz").unlink()
    save_itk(source / "images/a.hdr", image())
    return "left and right are not sure"


def only_empty_masks(source: Path) -> str:
    save(source / "masks/a.nii.gz", Volume(np.zeros(GRID.shape, np.uint8), GRID))
    return "no voxel other than 0"


DAMAGES = [
    missing_mask, missing_image, dicom_files_without_a_folder, missing_channel, same_name_in_two_formats, names_that_fall_together,
    names_that_differ_in_capitals, a_name_of_nothing, link_to_nothing, ending_in_capitals, half_a_voxel,
    another_spacing, another_angle, another_shape, two_dimensions, four_dimensions, mask_of_four_dimensions, colours, complex_voxels,
    vector_image, sheared, sheared_with_an_upright_qform, sheared_nrrd, fractions, cut_image, cut_mask, nan_image,
    no_image, vtk, analyze, only_empty_masks,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_pair_is_refused_by_name_and_nothing_is_written(tmp_path, damage):
    pair(tmp_path)
    expected = damage(tmp_path)
    before = files(tmp_path)
    with pytest.raises(SamnnError) as refusal:
        convert(tmp_path, tmp_path / "raw")
    assert expected in str(refusal.value)
    assert files(tmp_path) == before
    assert not list(tmp_path.glob("raw/*"))


def test_all_refused_cases_are_listed_at_once(tmp_path):
    for name in "abc":
        pair(tmp_path, name)
    expected = [half_a_voxel(tmp_path)]
    save(tmp_path / "masks/b.nii.gz", Volume(mask().voxels * np.float32(0.5), GRID))
    save(tmp_path / "masks/c.nii.gz", Volume(mask().voxels * np.uint8(100), GRID))
    with pytest.raises(Problems) as refusal:
        convert(tmp_path, tmp_path / "raw", labels="a=1,b=2")
    for message in [*expected, "holds fractional values", "holds value(s) [100, 200]; the labels are"]:
        assert message in str(refusal.value)


def test_skip_refused_writes_the_others_and_still_exits_with_1(tmp_path, capsys):
    for name in "ab":
        pair(tmp_path, name)
    half_a_voxel(tmp_path)
    with pytest.raises(typer.Exit) as stop:
        convert(tmp_path, tmp_path / "raw", skip_refused=True)
    assert stop.value.exit_code == 1 and "refused" in capsys.readouterr().out
    dataset = tmp_path / "raw/Dataset012_Own"
    assert [path.name for path in (dataset / "labelsTr").iterdir()] == ["b.nii.gz"]
    assert list(json.loads((dataset / "conversion.json").read_text())["refused"]) == ["a"]


def test_cases_of_different_channel_counts_are_refused(tmp_path):
    pair(tmp_path, "a")
    for channel in range(2):
        save(tmp_path / f"images/b_{channel:04d}.nii.gz", image())
    save(tmp_path / "masks/b.nii.gz", mask())
    with pytest.raises(Problems, match=r"b_0000.nii.gz: has 2 channel\(s\); a has 1"):
        convert(tmp_path, tmp_path / "raw")


def test_channels_on_different_grids_are_refused(tmp_path):
    save(tmp_path / "images/a_0000.nii.gz", image())
    save(tmp_path / "images/a_0001.nii.gz", Volume(image().voxels, replace(GRID, origin_mm=(0, 0, 0))))
    save(tmp_path / "masks/a.nii.gz", mask())
    with pytest.raises(Problems, match=r"is not on the grid of a_0000.nii.gz: origin"):
        convert(tmp_path, tmp_path / "raw")


def test_an_empty_mask_among_others_is_kept_and_said(tmp_path, capsys):
    pair(tmp_path, "a")
    pair(tmp_path, "b")
    only_empty_masks(tmp_path)
    convert(tmp_path, tmp_path / "raw")
    assert "the mask is empty" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected case, image"),
        ("case,image\n", "no images found"),
        ("case,picture,mask\na,b,c\n", "expected case, image"),
        ("case,image,mask\na,,c\n", "row 2: a case or image is empty"),
        ("case,image,mask\na,b,c,d\n", "row 2: a case or image is empty, or there are too many cells"),
        ("case,image,mask\na,missing.nii.gz,masks/a.nii.gz\n", "row 2: missing.nii.gz is missing"),
        (
            "case,image,mask\na,images/a.nii.gz,masks/a.nii.gz\na,images/a.nii.gz,masks/a.nii.gz\n",
            "cases 'a', 'a'",
        ),
        ("case,image_0000,image_0002,mask\na,b,c,d\n", "expected case, image"),
        ('case,image,mask\n"a,b', "cannot be read as a table"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path, text, expected, monkeypatch):
    pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("cases.csv").write_text(text)
    with pytest.raises(SamnnError) as refusal:
        convert(tmp_path, tmp_path / "raw", table=Path("cases.csv"))
    assert expected in str(refusal.value)


@pytest.mark.parametrize("link", ["a file", "the folder"])
def test_a_source_linked_into_the_dataset_to_be_replaced_is_refused_and_stays(tmp_path, link):
    pair(tmp_path / "source")
    inside = tmp_path / "raw/Dataset012_Own/imagesTr"
    inside.mkdir(parents=True)
    if link == "a file":
        shutil.move(tmp_path / "source/images/a.nii.gz", inside)
        (tmp_path / "source/images/a.nii.gz").symlink_to(inside / "a.nii.gz")
    else:
        shutil.move(tmp_path / "source/images/a.nii.gz", inside)
        (tmp_path / "source/images").rmdir()
        (tmp_path / "source/images").symlink_to(inside)
    with pytest.raises(SamnnError, match="the source in it"):
        convert(tmp_path / "source", tmp_path / "raw", overwrite=True)
    assert (inside / "a.nii.gz").is_file()


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    pair(tmp_path)
    for kind in ("images", "masks"):
        shutil.copy(tmp_path / kind / "a.nii.gz", os.fsencode(tmp_path / kind) + b"/\xff.nii.gz")
    with pytest.raises(SamnnError, match="is not UTF-8"):
        convert(tmp_path, tmp_path / "raw")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give --images and --masks"),
        (["--images", "images"], "give --images and --masks"),
        (["--images", "nowhere", "--masks", "masks"], "nowhere: is not a folder"),
        (["--images", "images", "--masks", "masks", "--patient", "("], "is not a regular expression"),
        (["--images", "images", "--masks", "masks", "--patient", "P"], "finds no patient in"),
        (["--images", "images", "--masks", "masks", "--labels", "liver"], "'liver' does not fit"),
        (["--images", "images", "--masks", "masks", "--region", "r=9"], "'9' is no label"),
    ],
)
def test_wrong_arguments_are_said_without_a_traceback(tmp_path, arguments, expected):
    pair(tmp_path)
    done = subprocess.run(
        [command(), "convert", "pairs", "-d", "12", "--name", "Own", "-o", "raw", *arguments],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode in (1, 2) and expected in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "raw").exists()
