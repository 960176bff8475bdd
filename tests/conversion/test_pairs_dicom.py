"""Folders of DICOM files: one series is taken, and only a regular stack is a volume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pair_sources import GRID, convert, dicom_header, image, mask, save, save_rtstruct, save_series
from small_thorax import files
from test_pairs import assert_same

from samnn.dataset_conversion._dicom import find_series, read_series
from samnn.dataset_conversion._dicom_files import read_plain, scan
from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, read_slice

UPRIGHT = Grid((20, 16, 12), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))


def edit(path: Path, **tags: object) -> None:
    header = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path)


def test_rtstruct_dose_and_text_beside_the_series_are_ignored_and_named(tmp_path, capsys):
    folder = tmp_path / "images/a"
    save_series(folder, image())
    save_rtstruct(folder / "rs.dcm")
    dose = dicom_header(folder / "rd.dcm", "RTDOSE", pydicom.uid.RTDoseStorage, "1.2.9")
    dose.ImagePositionPatient = [0, 0, 0]
    dose.save_as(folder / "rd.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("hello")
    save(tmp_path / "masks/a.nii.gz", mask())
    dataset = convert(tmp_path, tmp_path / "raw")
    assert_same(dataset / "imagesTr/a_0000.nii.gz", image())
    said = " ".join(capsys.readouterr().out.split())
    ignored = json.loads((dataset / "conversion.json").read_text())["cases"]["a"]["ignored"]
    assert ignored == [
        "1 RTDOSE files without image slices",
        "1 RTSTRUCT files without image slices",
        "1 files that are not DICOM images",
    ]
    assert "RTSTRUCT" in said


def test_the_series_with_most_slices_is_taken_and_another_on_request(tmp_path):
    short = Volume(image(seed=1).voxels[:, :, :3], replace(GRID, shape=(7, 6, 3)))
    long_uid = save_series(tmp_path / "a", image())
    short_uid = save_series(tmp_path / "a/other", short, description="thin")
    assert find_series(tmp_path / "a").uid == long_uid
    for wanted in (short_uid, "thin"):
        series = find_series(tmp_path / "a", [wanted])
        assert series.uid == short_uid and long_uid in series.ignored[0]
        np.testing.assert_array_equal(read_series(series).voxels, short.voxels)


def test_equal_series_ask_for_a_choice(tmp_path):
    uids = [save_series(tmp_path / "a" / str(number), image(seed=number)) for number in range(2)]
    with pytest.raises(SamnnError, match="--series UID") as refusal:
        find_series(tmp_path / "a")
    assert all(uid in str(refusal.value) for uid in uids)


def test_rescale_is_honoured_even_where_it_differs_from_slice_to_slice(tmp_path):
    volume = Volume(np.abs(image(UPRIGHT).voxels) // 4 * 4, UPRIGHT)
    save_series(tmp_path / "a", volume, slope=2, intercept=-100)
    first = find_series(tmp_path / "a").slices[0].path
    stored = pydicom.dcmread(first).pixel_array
    edit(first, RescaleSlope=0.5, RescaleIntercept=10.25)
    voxels = read_series(find_series(tmp_path / "a")).voxels
    np.testing.assert_array_equal(voxels[:, :, 1:], volume.voxels[:, :, 1:])
    np.testing.assert_array_equal(voxels[:, :, 0], stored.T * 0.5 + 10.25)


def test_a_tilted_gantry_is_refused_with_its_angle(tmp_path):
    save_series(tmp_path / "a", image(UPRIGHT), sideways_mm=2 * np.tan(np.radians(15)))
    assert "gantry tilt of 15 degrees" in find_series(tmp_path / "a").irregularity


def test_a_missing_slice_is_refused_with_the_distances(tmp_path):
    save_series(tmp_path / "a", image(UPRIGHT))
    find_series(tmp_path / "a").slices[4].path.unlink()
    assert "2 to 4 mm apart" in find_series(tmp_path / "a").irregularity


def test_slices_rounded_to_hundredths_of_a_mm_are_even(tmp_path):
    save_series(tmp_path / "a", image(UPRIGHT), heights_mm=[round(number * 2 / 3, 2) for number in range(12)])
    assert find_series(tmp_path / "a").is_regular


def test_a_missing_slice_between_others_is_filled_in_on_the_same_grid(tmp_path):
    """An oblique series, whose positions have rounding noise: it must not widen the grid."""
    save_series(tmp_path / "a", Volume(np.full(GRID.shape, 7, np.int16), GRID))
    find_series(tmp_path / "a").slices[2].path.unlink()
    filled = read_series(find_series(tmp_path / "a"))
    assert GRID.differences(filled.grid, tolerance_mm=1e-3) == []
    assert (filled.voxels == 7).all()


def ramp(x_mm: np.ndarray, y_mm: np.ndarray, z_mm: np.ndarray) -> np.ndarray:
    """A world that linear interpolation reproduces exactly."""
    return 10 * x_mm + 100 * y_mm + 20 * z_mm


def test_a_tilted_and_uneven_series_is_resampled_to_where_its_voxels_lie(tmp_path):
    """Each voxel inside the slices has, on the upright grid, the value the world has at its place."""
    heights_mm = [0.0, 2, 4, 6, 8, 11, 12, 14, 16, 18, 20, 22]
    x, y = np.meshgrid(np.arange(20.0), np.arange(16.0), indexing="ij")
    slices = [ramp(x + 0.5 * number, y, height) for number, height in enumerate(heights_mm)]
    save_series(
        tmp_path / "images/a",
        Volume(np.stack(slices, axis=-1), UPRIGHT),
        intercept=0,
        sideways_mm=0.5,
        heights_mm=heights_mm,
    )
    series = find_series(tmp_path / "images/a")
    grid = series.grid
    assert grid.shape == (20 + 6, 16, 12) and grid.spacing_mm == (1, 1, 2)
    voxels = read_series(series).voxels
    for index in [(6, 3, 4), (10, 8, 5), (12, 15, 11), (18, 0, 7)]:
        place_mm = (grid.affine @ [*index, 1])[:3]
        assert voxels[index] == pytest.approx(ramp(*place_mm), abs=0.51), index
    save(tmp_path / "masks/a.nii.gz", Volume(np.ones(grid.shape, np.uint8), grid))
    with pytest.raises(SamnnError, match="Add --resample"):
        convert(tmp_path, tmp_path / "raw")
    dataset = convert(tmp_path, tmp_path / "raw", resample=True)
    changes = json.loads((dataset / "conversion.json").read_text())["cases"]["a"]["changes"]
    assert "gantry tilt" in changes[0] and "1 to 3 mm apart" in changes[0]


def resave(folder: Path, **tags: object) -> None:
    for path in folder.iterdir():
        edit(path, **tags)


SOME_PIXELS = Grid(
    (16, 12, 5), GRID.spacing_mm, GRID.origin_mm, GRID.direction
)  # RLE of tiny planes is beyond GDCM


@pytest.mark.parametrize("syntax", ["RLE", "JPEG lossless", "JPEG 2000", "deflated"])
def test_packed_pixels_are_the_same_voxels(tmp_path, syntax):
    volume = image(SOME_PIXELS)
    save_series(tmp_path / "a", volume, intercept=0)
    for path in (tmp_path / "a").iterdir():
        header = pydicom.dcmread(path)
        if syntax == "RLE":
            header.compress(pydicom.uid.RLELossless)
        elif syntax == "deflated":
            header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        else:
            picture = SimpleITK.Cast(SimpleITK.ReadImage(str(path)), SimpleITK.sitkInt16)
            writer = SimpleITK.ImageFileWriter()
            writer.SetFileName(str(tmp_path / "packed.dcm"))
            writer.SetUseCompression(True)
            writer.SetCompressor(syntax.split()[0] + ("2000" if "2000" in syntax else ""))
            writer.Execute(picture)
            packed = pydicom.dcmread(tmp_path / "packed.dcm")
            header.PixelData, header["PixelData"].VR = packed.PixelData, "OB"
            header.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        header.save_as(path)
    np.testing.assert_array_equal(read_series(find_series(tmp_path / "a")).voxels, volume.voxels)


def test_real_files_of_many_scanners_hold_what_pydicom_finds_in_them_or_are_refused(tmp_path):
    """The files that pydicom is tested with: odd, old, packed, damaged."""
    seen = {"equal": 0, "plain": 0, "refused": 0, "ignored": 0, "unusable": 0}
    for number, path in enumerate(sorted((Path(pydicom.__file__).parent / "data/test_files").rglob("*"))):
        if not path.is_file():
            continue
        (tmp_path / str(number)).mkdir()
        copied = Path(shutil.copy(path, tmp_path / str(number)))
        try:
            found = scan(copied.parent)
            voxels = read_slice(copied) if found.slices else None
        except SamnnError as refusal:
            assert copied.name in str(refusal)
            seen["refused"] += 1
            continue
        if voxels is None:
            assert len(found.unusable) + found.others.total() == 1, path
            seen["unusable" if found.unusable else "ignored"] += 1
            continue
        if path.name == "MR_small_jpeg_ls_lossless.dcm":  # the same picture; pydicom cannot unpack it alone
            path = path.with_name("MR_small.dcm")
        header = pydicom.dcmread(path)
        scale, offset = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
        np.testing.assert_array_equal(voxels, header.pixel_array.T * scale + offset, err_msg=str(path))
        if plain := found.slices[0].plain:
            read = read_plain(copied, found.slices[0].shape, plain)
            np.testing.assert_array_equal(voxels, read, err_msg=str(path))
            seen["plain"] += 1
        seen["equal"] += 1
    assert min(seen.values()) > 0 and seen["equal"] >= 30


@pytest.mark.parametrize("intercept", [None, 0, -1024, 1000])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "ImplicitVRLittleEndian"])
def test_plain_pixels_are_those_that_itk_reads(tmp_path, intercept, signed, bits, syntax):
    save_series(tmp_path / "a", image())
    path = next((tmp_path / "a").iterdir())
    header = pydicom.dcmread(path)
    chance = np.random.default_rng(bits)
    pixels = chance.integers(0, 2**16, (header.Rows, header.Columns)).astype(np.uint16)  # unused bits, too
    pixels[0, :2] = 0, 2**bits - 1
    header.PixelData, header.PixelRepresentation = pixels.tobytes(), signed
    header.BitsStored, header.HighBit = bits, bits - 1
    for name, value in (
        ("RescaleIntercept", intercept),
        ("RescaleSlope", intercept if intercept is None else 1),
    ):
        if value is None:
            header.pop(name, None)
        else:
            setattr(header, name, value)
    header.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    header.save_as(path, implicit_vr=syntax.startswith("Implicit"), little_endian=True)
    slices = {found.path: found for found in scan(tmp_path / "a").slices}
    assert slices[path].plain is not None
    np.testing.assert_array_equal(read_plain(path, slices[path].shape, slices[path].plain), read_slice(path))


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": 2},
        {"RescaleIntercept": -0.5},
        {"BitsStored": 12, "HighBit": 15},
        {"SOPClassUID": pydicom.uid.MRImageStorage},
        {"RescaleIntercept": ["-1024", "-1024"]},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"PixelData": bytes(7 * 6 * 2 + 40)},
    ],
)
def test_other_pixels_are_left_to_itk(tmp_path, tags):
    save_series(tmp_path / "a", image())
    path = next((tmp_path / "a").iterdir())
    edit(path, **tags)
    assert next(found for found in scan(tmp_path / "a").slices if found.path == path).plain is None


@pytest.mark.parametrize("lie", ["packed", "implicit"])
def test_pixels_that_are_stored_otherwise_than_the_header_says_are_refused(tmp_path, lie):
    """A packed fragment named plain, and types written in a file that says it has none: no voxel may be shifted."""
    save_series(tmp_path / "a", image())
    path = next((tmp_path / "a").iterdir())
    header = pydicom.dcmread(path)
    if lie == "packed":
        header.PixelData = pydicom.encaps.encapsulate([header.PixelData])
        header["PixelData"].VR = "OB"
        header["PixelData"].is_undefined_length = True
        header.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    header.save_as(path)
    if lie == "packed":
        said, named = pydicom.uid.RLELossless, pydicom.uid.ExplicitVRLittleEndian
    else:
        said, named = pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian
    content, padded = path.read_bytes(), named.encode().ljust(len(said) + len(said) % 2, b"\0")
    assert said.encode() in content
    path.write_bytes(content.replace(said.encode().ljust(len(padded), b"\0"), padded, 1))
    with pytest.raises(SamnnError):
        series = find_series(tmp_path / "a")
        assert next(found for found in series.slices if found.path == path).plain is None
        read_series(series)


def test_a_slice_that_is_gone_when_it_is_read_is_named(tmp_path):
    save_series(tmp_path / "a", image())
    series = find_series(tmp_path / "a")
    series.slices[1].path.unlink()
    with pytest.raises(SamnnError, match=rf"{series.slices[1].path.name}: cannot be read"):
        read_series(series)


def test_pixels_packed_as_gdcm_cannot_read_name_how_and_a_cure(tmp_path):
    save_series(tmp_path / "a", image())
    path = find_series(tmp_path / "a").slices[2].path
    header = pydicom.dcmread(path)
    header.PixelData = pydicom.encaps.encapsulate([bytes(100)])
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
    header.save_as(path)
    with pytest.raises(SamnnError, match=r"High-Throughput JPEG 2000.*export or convert them uncompressed"):
        read_series(find_series(tmp_path / "a"))


@pytest.mark.parametrize(
    "storage", ["CTImageStorage", "MRImageStorage", "PositronEmissionTomographyImageStorage"]
)
def test_slope_and_intercept_hold_for_every_modality(tmp_path, storage):
    volume = Volume(np.abs(image(UPRIGHT).voxels) // 4 * 4, UPRIGHT)
    save_series(tmp_path / "a", volume, slope=4, intercept=-100)
    resave(tmp_path / "a", SOPClassUID=getattr(pydicom.uid, storage))
    np.testing.assert_array_equal(read_series(find_series(tmp_path / "a")).voxels, volume.voxels)


def test_unsigned_pixels_above_32767_stay_so(tmp_path):
    save_series(tmp_path / "a", image(), intercept=0)
    for path in (tmp_path / "a").iterdir():
        edit(path, PixelRepresentation=0, PixelData=np.full((6, 7), 65000, np.uint16).tobytes())
    assert set(np.unique(read_series(find_series(tmp_path / "a")).voxels)) == {65000}


def test_files_without_ending_preamble_or_ascii_in_their_names_are_read(tmp_path):
    volume = image()
    save_series(tmp_path / "Jürgen 漢字", volume)
    for number, path in enumerate(sorted((tmp_path / "Jürgen 漢字").iterdir())):
        header = pydicom.dcmread(path)
        path.unlink()
        if number % 2:
            bare = pydicom.Dataset()
            bare.update(header)
            bare.save_as(path.with_name(f"{number}ü"), implicit_vr=True, little_endian=True)
        else:
            header.save_as(path.with_name(f"IM{number:06d}"))
    np.testing.assert_array_equal(read_series(find_series(tmp_path / "Jürgen 漢字")).voxels, volume.voxels)


def test_a_localizer_a_screenshot_and_a_dicomdir_beside_the_series_are_ignored_and_named(tmp_path):
    save_series(tmp_path / "a", image())
    scout = Volume(image().voxels[:, :, :1], replace(GRID, shape=(7, 6, 1)))
    save_series(tmp_path / "a/scout", scout, description="scout")
    save_series(tmp_path / "a/shot", scout, description="shot")
    for path in (tmp_path / "a/shot").iterdir():
        header = pydicom.dcmread(path)
        header.SOPClassUID, header.Modality = pydicom.uid.SecondaryCaptureImageStorage, "OT"
        del header.ImagePositionPatient, header.ImageOrientationPatient
        header.SamplesPerPixel = 3
        header.save_as(path)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    directory = pydicom.dataset.FileDataset(str(tmp_path), {}, file_meta=meta, preamble=bytes(128))
    directory.save_as(tmp_path / "a/DICOMDIR", enforce_file_format=True)
    series = find_series(tmp_path / "a")
    assert len(series.slices) == 5
    assert [" ".join(words.split()[:1] + words.split()[2:]) for words in series.ignored] == [
        "series 'scout' of 1 slices",
        "1 files without image slices",
        "1 that are not DICOM images",
    ]


def same_slice_twice(folder: Path, names: list[Path]) -> str:
    edit(
        names[0],
        SOPInstanceUID="1.2.3.4",
        ImagePositionPatient=pydicom.dcmread(names[1]).ImagePositionPatient,
    )
    return "lie at the same place"


def another_orientation(folder: Path, names: list[Path]) -> str:
    edit(names[2], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    return "are not parallel"


def another_spacing(folder: Path, names: list[Path]) -> str:
    edit(names[2], PixelSpacing=[1, 1])
    return "differ in size or spacing"


def one_slice(folder: Path, names: list[Path]) -> str:
    for path in names[1:]:
        path.unlink()
    return "has a single slice"


def multi_frame(folder: Path, names: list[Path]) -> str:
    edit(names[0], NumberOfFrames=3)
    return "is a multi-frame file of 3 slices"


def colour(folder: Path, names: list[Path]) -> str:
    edit(names[0], SamplesPerPixel=3)
    return "is a colour image"


def high_values_dark(folder: Path, names: list[Path]) -> str:
    edit(names[0], PhotometricInterpretation="MONOCHROME1")
    return "is MONOCHROME1"


def no_position(folder: Path, names: list[Path]) -> str:
    edit(names[0], ImagePositionPatient=[1, 2])
    return "is damaged"


def cut_voxels(folder: Path, names: list[Path]) -> str:
    names[0].write_bytes(names[0].read_bytes()[:-40])
    return names[0].name


def without_position(folder: Path, names: list[Path]) -> str:
    header = pydicom.dcmread(names[0])
    del header.ImagePositionPatient
    header.save_as(names[0])
    return f"{names[0]}: does not say where it lies: ImagePositionPatient missing"


def enhanced(folder: Path, names: list[Path]) -> str:
    """An enhanced CT has its positions in a sequence, none at the top."""
    for path in names[1:]:
        path.unlink()
    header = pydicom.dcmread(names[0])
    header.SOPClassUID, header.NumberOfFrames = pydicom.uid.EnhancedCTImageStorage, 5
    del header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing
    header.save_as(names[0])
    return "is a multi-frame file of 5 slices, which is not supported. Convert it to NIfTI first"


def enhanced_beside_a_localizer(folder: Path, names: list[Path]) -> str:
    scout = Volume(image().voxels[:, :, :2], replace(GRID, shape=(7, 6, 2)))
    said = enhanced(folder, names)
    save_series(folder / "scout", scout)
    return said


def slope_of_zero(folder: Path, names: list[Path]) -> str:
    edit(names[0], RescaleSlope=0)
    return "its rescale slope is 0"


def table_of_values(folder: Path, names: list[Path]) -> str:
    edit(names[0], ModalityLUTSequence=[pydicom.Dataset()])
    return "has a table (Modality LUT)"


def few_pixels(folder: Path, names: list[Path]) -> str:
    edit(names[0], PixelData=bytes(20))
    return f"{names[0]}: has fewer pixels than its header says"


def no_pixels(folder: Path, names: list[Path]) -> str:
    header = pydicom.dcmread(names[0])
    del header.PixelData
    header.save_as(names[0])
    return f"{names[0]}: has fewer pixels than its header says"


def first_slice_empty(folder: Path, names: list[Path]) -> str:
    first = find_series(folder).slices[0].path
    first.write_bytes(b"")
    return f"{first}: is no DICOM file, though named so"


def first_slice_cut_in_its_header(folder: Path, names: list[Path]) -> str:
    first = find_series(folder).slices[0].path
    first.write_bytes(first.read_bytes()[:500])
    return f"{first}: is "


def only_a_structure_set(folder: Path, names: list[Path]) -> str:
    for path in names:
        path.unlink()
    save_rtstruct(folder / "rs.dcm")
    return "holds no DICOM image slices (only 1 RTSTRUCT"


@pytest.mark.parametrize(
    "damage",
    [same_slice_twice, another_orientation, another_spacing, one_slice, multi_frame, colour, high_values_dark, no_position, cut_voxels,
     without_position, enhanced, enhanced_beside_a_localizer, slope_of_zero, table_of_values, few_pixels, no_pixels, first_slice_empty, first_slice_cut_in_its_header, only_a_structure_set],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
def test_a_damaged_series_is_refused_by_name_and_nothing_is_written(tmp_path, damage):
    save_series(tmp_path / "images/a", image())
    save(tmp_path / "masks/a.nii.gz", mask())
    expected = damage(tmp_path / "images/a", sorted((tmp_path / "images/a").iterdir()))
    before = files(tmp_path)
    with pytest.raises(SamnnError) as refusal:
        convert(tmp_path, tmp_path / "raw")
    assert expected in str(refusal.value)
    assert files(tmp_path) == before


def test_a_link_that_leads_in_a_circle_ends_the_search(tmp_path):
    save_series(tmp_path / "a", image())
    (tmp_path / "a/again").symlink_to(tmp_path / "a")
    assert len(find_series(tmp_path / "a").slices) == 5
