"""`samnn check` finds each defect of a raw dataset, that one and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from raw_folder import copy_of, describe, found, load, relative, save, small_hippocampus
from scipy.ndimage import binary_dilation

from samnn.dataset_conversion import checks
from samnn.errors import SamnnError

IMAGE = "imagesTr/hippocampus_004_0000.nii.gz"
LABELS = "labelsTr/hippocampus_004.nii.gz"
JSON = "dataset.json"


@pytest.fixture
def small(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return small_hippocampus(shared, tmp_path / "Dataset904_Hippocampus")


@pytest.fixture
def headneck(shared: Path, tmp_path: Path) -> Path:
    """Ten training cases of 901, enough to say what is usual."""
    folder = copy_of(shared / "data/Dataset901_OpenKBPHN", tmp_path / "Dataset901_OpenKBPHN")
    for path in [*folder.glob("*Ts/*"), *folder.glob("*Tr/okbp_013*"), *folder.glob("*Tr/okbp_022*")]:
        path.unlink()
    describe(folder, numTraining=10)
    return folder


def error(check: str, *paths: str) -> set[tuple[str, str, str]]:
    return {("error", check, path) for path in paths}


def warning(check: str, *paths: str) -> set[tuple[str, str, str]]:
    return {("warning", check, path) for path in paths}


# ---- what is sound


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Dataset901_OpenKBPHN", set()),
        ("Dataset904_Hippocampus", warning("voxels", "labelsTr/hippocampus_003.nii.gz")),  # float32
        ("Dataset905_TSAbdomenSlabs", set()),
        ("Dataset907_TSThoraxCTA", warning("files", ".")),  # no training cases
    ],
)
def test_real_datasets_have_no_errors_and_hardly_a_warning(shared, name, expected):
    assert found(shared / "data" / name) == expected


def as_nii(folder: Path) -> None:
    for path in folder.rglob("*.nii.gz"):
        save(path.with_suffix(""), *load(path))
        path.unlink()
    describe(folder, file_ending=".nii")


def as_itk(folder: Path, ending: str) -> None:
    import SimpleITK

    for path in folder.rglob("*.nii.gz"):
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(path).replace(".nii.gz", ending))
        path.unlink()
    describe(folder, file_ending=ending)


def as_colours(folder: Path) -> None:
    from skimage.io import imsave

    for path in folder.rglob("*.nii.gz"):
        pixels = load(path)[0]
        pixels = pixels[:, :, pixels.shape[2] // 2].astype(np.uint8)
        if "images" in path.parent.name:
            pixels = np.stack([pixels, pixels // 2, 255 - pixels], -1)
        imsave(str(path).replace(".nii.gz", ".png"), pixels, check_contrast=False)
        path.unlink()
    describe(folder, file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"})


def as_tiff_stacks(folder: Path) -> None:
    import tifffile

    for path in folder.rglob("*.nii.gz"):
        tifffile.imwrite(str(path).replace(".nii.gz", ".tif"), load(path)[0].transpose())
        stem = path.name.removesuffix(".nii.gz").removesuffix("_0000")
        (path.parent / f"{stem}.json").write_text('{"spacing": [1, 1, 1]}')
        path.unlink()
    describe(folder, file_ending=".tif")


def as_list(folder: Path) -> None:
    (folder / "imagesTr").rename(folder / "pictures")
    (folder / "labelsTr").rename(folder / "masks")
    listed = {
        path.name.removesuffix(".nii.gz"): {
            "images": [f"pictures/{path.name.replace('.nii.gz', '_0000.nii.gz')}"],
            "label": str(path),
        }
        for path in (folder / "masks").iterdir()
    }
    describe(folder, dataset=listed)


def as_channels_in_one_file(folder: Path) -> None:
    for path in folder.glob("images*/*"):
        voxels, affine = load(path)
        save(path, np.stack([voxels, voxels + 1], -1), affine)
    describe(folder, channel_names={"0": "A", "1": "B"})


def with_regions(folder: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "posterior": 2}
    describe(folder, labels=labels, regions_class_order=[1, 2])


@pytest.mark.parametrize(
    "dress",
    [
        as_nii,
        lambda folder: as_itk(folder, ".nrrd"),
        lambda folder: as_itk(folder, ".mha"),
        as_colours,
        as_tiff_stacks,
        as_list,
        as_channels_in_one_file,
        with_regions,
    ],
    ids=["nii", "nrrd", "mha", "png", "tif", "list", "4D", "regions"],
)
def test_every_format_and_form_that_nnunet_takes_is_sound(small, dress):
    dress(small)
    assert found(small) == set()


# ---- one defect each: the function makes it and returns all that must be found


def wrong_number(folder):
    describe(folder, numTraining=7)
    return error("description", JSON)


def no_json(folder):
    (folder / JSON).unlink()
    return error("description", JSON)


def half_a_json(folder):
    (folder / JSON).write_text((folder / JSON).read_text()[:50])
    return error("description", JSON)


def missing_keys(folder):
    describe(folder, numTraining=None, file_ending=None)
    return error("description", JSON)


def gap_in_labels(folder):
    describe(folder, labels={"background": 0, "anterior": 1, "posterior": 2, "head": 4})
    return error("description", JSON) | warning("classes", JSON)


def no_background(folder):
    describe(folder, labels={"anterior": 1, "posterior": 2})
    return error("description", JSON)


def ignore_in_between(folder):
    describe(folder, labels={"background": 0, "anterior": 1, "posterior": 2, "ignore": 5})
    return error("description", JSON)


def regions_without_order(folder):
    describe(folder, labels={"background": 0, "whole": [1, 2], "posterior": 2})
    return error("description", JSON)


def channels_from_one(folder):
    describe(folder, channel_names={"1": "MRI"})
    return error("description", JSON)


def unknown_ending(folder):
    describe(folder, file_ending=".mnc")
    for path in folder.rglob("*.nii.gz"):
        path.rename(str(path).replace(".nii.gz", ".mnc"))
    return error("description", JSON)


def unknown_reader(folder):
    describe(folder, overwrite_image_reader_writer="DicomIO")
    return warning("description", JSON)


def class_never_seen(folder):
    describe(folder, labels={"background": 0, "anterior": 1, "posterior": 2, "head": 3})
    return warning("classes", JSON)


def no_image(folder):
    (folder / IMAGE).unlink()
    return warning("files", LABELS) | error("description", JSON)


def labels_without_image_left_out_of_the_number(folder):
    (folder / IMAGE).unlink()
    describe(folder, numTraining=4)
    return warning("files", LABELS)


def no_labels(folder):
    (folder / LABELS).unlink()
    return error("files", IMAGE)


def no_labels_folder(folder):
    shutil.rmtree(folder / "labelsTr")
    images = [relative(path, folder) for path in folder.glob("imagesTr/*")]
    return error("files", "labelsTr", *images)


def no_channel_number(folder):
    (folder / IMAGE).rename(folder / "imagesTr/hippocampus_004.nii.gz")
    return error("files", "imagesTr/hippocampus_004.nii.gz")


def labels_named_as_images(folder):
    (folder / LABELS).rename(folder / "labelsTr/hippocampus_004_0000.nii.gz")
    return error("files", "labelsTr/hippocampus_004_0000.nii.gz")


def patients_with_four_digits(folder):
    names = []
    for number, path in enumerate(sorted(folder.glob("labelsTr/*")), start=1):
        image = folder / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz")
        image.rename(image.with_name(f"p_{number:04d}.nii.gz"))
        path.rename(path.with_name(f"p_{number:04d}.nii.gz"))
        names.append(f"imagesTr/p_{number:04d}.nii.gz")
    return error("files", *names)


def channel_too_many(folder):
    shutil.copyfile(folder / IMAGE, folder / IMAGE.replace("_0000", "_0001"))
    return error("files", IMAGE.replace("_0000", "_0001"))


def channel_missing(folder):
    voxels = {path: load(path) for path in folder.glob("images*/*")}
    for path, (image, affine) in voxels.items():
        save(Path(str(path).replace("_0000", "_0001")), image + 1, affine)
    describe(folder, channel_names={"0": "A", "1": "B"})
    (folder / IMAGE).unlink()
    return error("files", IMAGE.replace("_0000", "_0001"))


def channels_fewer_than_named(folder):
    describe(folder, channel_names={"0": "A", "1": "B"})
    return error("voxels", *(relative(path, folder) for path in folder.glob("images*/*")))


def other_ending(folder):
    (folder / "imagesTr/notes.txt").touch()
    return warning("files", "imagesTr/notes.txt")


def hidden_twin_of_a_mac(folder):
    (folder / "imagesTr/._hippocampus_004_0000.nii.gz").write_bytes(b"\0\5\26\7")
    return error("files", "imagesTr/._hippocampus_004_0000.nii.gz")


def uncompressed_twin(folder):
    save(folder / IMAGE.removesuffix(".gz"), *load(folder / IMAGE))
    return error("files", IMAGE.removesuffix(".gz")) | error("voxels", IMAGE)


def a_test_case_named_as_training_case(folder):
    test = next(folder.glob("imagesTs/*"))
    test.rename(folder / IMAGE.replace("Tr", "Ts"))
    return warning("files", IMAGE.replace("Tr", "Ts"))


def cut_short(folder):
    (folder / IMAGE).write_bytes((folder / IMAGE).read_bytes()[:-2000])
    return error("voxels", IMAGE)


def empty_file(folder):
    (folder / LABELS).write_bytes(b"")
    return error("voxels", LABELS)


def unknown_value(folder):
    voxels, affine = load(folder / LABELS)
    voxels[0, 0, 0] = 7
    save(folder / LABELS, voxels, affine)
    return error("voxels", LABELS)


def float_labels(folder):
    voxels, affine = load(folder / LABELS)
    save(folder / LABELS, voxels.astype(np.float32), affine)
    return warning("voxels", LABELS)


def fractions_in_labels(folder):
    voxels, affine = load(folder / LABELS)
    save(folder / LABELS, voxels + np.float32(0.25), affine)
    return error("voxels", LABELS)


def nan_in_labels(folder):
    voxels, affine = load(folder / LABELS)
    save(folder / LABELS, np.where(voxels == 1, np.nan, voxels).astype(np.float32), affine)
    return error("voxels", LABELS)


def image_as_labels(folder):
    voxels, affine = load(folder / IMAGE)
    save(folder / LABELS, np.arange(voxels.size, dtype=np.int32).reshape(voxels.shape), affine)
    return error("voxels", LABELS)


def nan_in_image(folder):
    voxels, affine = load(folder / IMAGE)
    voxels = voxels.astype(np.float32)
    voxels[3, 4, 5] = np.nan
    save(folder / IMAGE, voxels, affine)
    return error("voxels", IMAGE)


def infinity_in_image(folder):
    voxels, affine = load(folder / IMAGE)
    voxels = voxels.astype(np.float32)
    voxels[3, 4, 5] = -np.inf
    save(folder / IMAGE, voxels, affine)
    return error("voxels", IMAGE)


def constant_image(folder):
    voxels, affine = load(folder / IMAGE)
    save(folder / IMAGE, np.full_like(voxels, 9), affine)
    return warning("voxels", IMAGE)


def background_only(folder):
    voxels, affine = load(folder / LABELS)
    save(folder / LABELS, np.zeros_like(voxels), affine)
    return warning("classes", LABELS)


def header_noise(folder):
    voxels, affine = load(folder / LABELS)
    affine[0, 3] += 0.05
    save(folder / LABELS, voxels, affine)
    return warning("grids", LABELS)


def rounded_spacing(folder):
    voxels, affine = load(folder / LABELS)
    affine[0, 0] *= 1.0005  # 0.02 mm at the other end: noise, but nnU-Net stops
    save(folder / LABELS, voxels, affine)
    return error("grids", LABELS)


def shifted_header(folder):
    voxels, affine = load(folder / LABELS)
    affine[1, 3] += 3
    save(folder / LABELS, voxels, affine)
    return error("grids", LABELS)


def flipped_header(folder):
    voxels, affine = load(folder / LABELS)
    affine[:, 0] *= -1
    save(folder / LABELS, voxels, affine)
    return error("grids", LABELS)


def other_shape(folder):
    voxels, affine = load(folder / LABELS)
    save(folder / LABELS, voxels[:-1], affine)
    return error("grids", LABELS)


def other_orientation(folder):
    for file in (IMAGE, LABELS):
        image = nibabel.load(folder / file)
        turned = image.as_reoriented([[1, 1], [0, 1], [2, 1]])
        save(folder / file, np.array(turned.dataobj), turned.affine)
    return warning("grids", IMAGE)


def other_spacing(folder):
    for file in (IMAGE, LABELS):
        voxels, affine = load(folder / file)
        save(folder / file, voxels, affine @ np.diag([1, 1, 10, 1]))
    return warning("grids", IMAGE)


def one_of_two_dimensions(folder):
    for file in (IMAGE, LABELS):
        voxels, _ = load(folder / file)
        save(folder / file, voxels[:, :, 15], np.diag([-1, -1, 1, 1]))
    return error("grids", IMAGE)


def patient_twice(folder):
    for kind, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        shutil.copyfile(folder / kind / f"hippocampus_004{ending}", folder / kind / f"zz{ending}")
    describe(folder, numTraining=6)
    return warning("duplicates", "imagesTr/zz_0000.nii.gz")


def training_patient_in_test(folder):
    voxels, affine = load(folder / IMAGE)
    save(folder / "imagesTs/zz_0000.nii.gz", voxels.astype(np.float32), affine)
    return error("duplicates", "imagesTs/zz_0000.nii.gz")


def labels_of_another(folder):
    other = "labelsTr/hippocampus_006.nii.gz"
    for file in (IMAGE, LABELS):  # of one size, so that only the copy is wrong
        voxels, affine = load(folder / file.replace("004", "006"))
        save(folder / file, voxels + (1 if file == IMAGE else 0), affine)
    return warning("duplicates", other)


def splits_of_other_cases(folder):
    preprocessed = folder.parent / "preprocessed" / folder.name
    preprocessed.mkdir(parents=True)
    names = [path.name.removesuffix(".nii.gz") for path in folder.glob("labelsTr/*")]
    splits = [{"train": [*names, "gone"], "val": []}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    return error("splits", "splits_final.json")


def listed_file_missing(folder):
    as_list(folder)
    (folder / "masks/hippocampus_004.nii.gz").unlink()
    return error("files", "masks/hippocampus_004.nii.gz")


SMALL_DEFECTS = [
    wrong_number, no_json, half_a_json, missing_keys, gap_in_labels, no_background, ignore_in_between,
    regions_without_order, channels_from_one, unknown_ending, unknown_reader, class_never_seen, no_image,
    labels_without_image_left_out_of_the_number, no_labels,
    no_labels_folder, no_channel_number, labels_named_as_images, patients_with_four_digits, channel_too_many,
    channel_missing, channels_fewer_than_named, other_ending, hidden_twin_of_a_mac, uncompressed_twin,
    a_test_case_named_as_training_case, cut_short, empty_file, unknown_value, float_labels, fractions_in_labels,
    nan_in_labels, image_as_labels, nan_in_image, infinity_in_image, constant_image, background_only, header_noise,
    rounded_spacing, shifted_header, flipped_header, other_shape, other_orientation, other_spacing,
    one_of_two_dimensions, patient_twice, training_patient_in_test, labels_of_another, splits_of_other_cases,
    listed_file_missing,
]  # fmt: skip


@pytest.mark.parametrize("make", SMALL_DEFECTS, ids=lambda make: make.__name__)
def test_a_defect_is_found_and_nothing_else(small, make):
    expected = make(small)
    assert found(small) == expected


def test_the_copy_that_is_broken_above_is_sound(small):
    assert found(small) == set()


# ---- defects that only the other cases show, in head-neck CT

CT = "labelsTr/okbp_059.nii.gz"
PAROTIDS = (6, 7)


def mirrored_mask(folder):
    voxels, affine = load(folder / CT)
    save(folder / CT, voxels[::-1], affine)
    return error("sides", CT)


def exchanged_parotids(folder):
    voxels, affine = load(folder / CT)
    save(folder / CT, np.choose(voxels, [0, 1, 2, 3, 4, 5, *PAROTIDS[::-1]]).astype(np.uint8), affine)
    return error("sides", CT)


def mirrored_patient(folder):
    for path in (folder / CT, folder / CT.replace("labels", "images").replace(".nii", "_0000.nii")):
        voxels, affine = load(path)
        save(path, voxels[::-1], affine)
    return error("sides", CT)


def all_parotids_named_wrongly(folder):
    labels = json.loads((folder / JSON).read_text())["labels"]
    describe(folder, labels=labels | {"parotid_left": 7, "parotid_right": 6})
    return error("sides", ".")


def upside_down_mask(folder):
    voxels, affine = load(folder / CT)
    save(folder / CT, voxels[:, :, ::-1], affine)
    return warning("sides", CT) | warning("placement", CT)


def mask_turned_front_to_back(folder):
    voxels, affine = load(folder / CT)
    save(folder / CT, voxels[:, ::-1], affine)
    return warning("sides", CT) | warning("placement", CT)


def shifted_mask(folder):
    voxels, affine = load(folder / CT)
    save(folder / CT, np.roll(voxels, round(25 / affine[0, 0]), axis=0), affine)
    return warning("placement", CT)


def swollen_class(folder):
    voxels, affine = load(folder / CT)
    voxels[binary_dilation(voxels == 4, iterations=5) & (voxels == 0)] = 4
    save(folder / CT, voxels, affine)
    return warning("classes", CT)


def class_forgotten(folder):
    voxels, affine = load(folder / CT)
    save(folder / CT, np.where(voxels == 3, 0, voxels).astype(np.uint8), affine)
    return warning("classes", CT)


def class_nearly_empty(folder):
    voxels, affine = load(folder / CT)
    voxels[tuple(np.argwhere(voxels == 3)[3:].T)] = 0
    save(folder / CT, voxels, affine)
    return warning("classes", CT)


@pytest.mark.parametrize(
    "make",
    [
        mirrored_mask,
        exchanged_parotids,
        mirrored_patient,
        all_parotids_named_wrongly,
        upside_down_mask,
        mask_turned_front_to_back,
        shifted_mask,
        swollen_class,
        class_forgotten,
        class_nearly_empty,
    ],
    ids=lambda make: make.__name__,
)
def test_a_case_unlike_the_others_is_found_and_nothing_else(headneck, make):
    expected = make(headneck)
    assert found(headneck) == expected


def test_left_and_right_are_told_by_whole_words():
    from samnn.dataset_conversion.checks.sides import pairs

    assert pairs(["parotid_left", "parotid_right", "leftover", "Lung L", "lung r", "rib"]) == [
        ("parotid_left", "parotid_right"),
        ("Lung L", "lung r"),
    ]


# ---- mending


MENDABLE = [wrong_number, no_channel_number, labels_named_as_images, patients_with_four_digits, float_labels]
MENDABLE += [header_noise, rounded_spacing]


@pytest.mark.parametrize("make", MENDABLE, ids=lambda make: make.__name__)
def test_what_was_mended_is_not_found_again(small, make):
    expected = make(small)
    report = checks.check(str(small), workers=1)
    checks.mend(report)
    assert len(report.fixed) == len(expected) and not report.findings and not report.not_fixed
    assert found(small) == set()


def test_mending_all_at_once_changes_no_voxel_and_leaves_nothing_behind(small):
    voxels, affine = load(small / LABELS)
    before, image_affine = voxels.copy(), load(small / IMAGE)[1]
    affine[0, 3] += 0.05
    save(small / LABELS, voxels.astype(np.float64), affine)
    labels_named_as_images(small)
    wrong_number(small)
    report = checks.check(str(small), workers=1)
    checks.mend(report)
    assert len(report.fixed) == 4 and not report.not_fixed
    after, mended_affine = load(small / LABELS)
    assert after.dtype == np.uint8 and np.array_equal(after, before)
    assert np.array_equal(mended_affine, image_affine)
    assert json.loads((small / JSON).read_text())["numTraining"] == 5
    assert not [path for path in small.rglob(".*")]
    assert found(small) == set()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_labels_and_headers_are_mended_in_other_formats(small, ending):
    import SimpleITK

    as_itk(small, ending)
    path = small / LABELS.replace(".nii.gz", ending)
    image = SimpleITK.Cast(SimpleITK.ReadImage(str(path)), SimpleITK.sitkFloat32)
    before = SimpleITK.GetArrayFromImage(image)
    image.SetOrigin([place + 0.05 for place in image.GetOrigin()])
    SimpleITK.WriteImage(image, str(path))
    report = checks.check(str(small), workers=1)
    checks.mend(report)
    assert [name for name, _ in report.fixed] == ["grids", "voxels"] and found(small) == set()
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), before)


@pytest.mark.parametrize("kind", ["scaled", "big-endian", "2D"])
def test_labels_stored_in_odd_ways_are_mended(small, kind):
    for file in sorted(small.glob("*/*.nii.gz")):
        voxels, affine = load(file)
        if kind == "2D":
            voxels, affine = voxels[:, :, voxels.shape[2] // 2], np.diag([-1, -1, 1, 1])
        save(file, voxels, affine)
    voxels, affine = load(small / LABELS)
    image = nibabel.Nifti1Image(voxels.astype(">f4" if kind == "big-endian" else "f4"), affine)
    if kind == "scaled":
        image = nibabel.Nifti1Image((voxels * 2).astype(np.int16), affine)
        image.header.set_slope_inter(0.5, 0)
    nibabel.save(image, small / LABELS)
    assert found(small) == warning("voxels", LABELS)
    checks.mend(checks.check(str(small), workers=1))
    assert found(small) == set() and np.array_equal(load(small / LABELS)[0], voxels)


def test_a_link_is_replaced_and_what_it_points_to_stays(small, tmp_path):
    float_labels(small)
    original = tmp_path / "original.nii.gz"
    (small / LABELS).rename(original)
    (small / LABELS).symlink_to(original)
    content = original.read_bytes()
    checks.mend(checks.check(str(small), workers=1))
    assert original.read_bytes() == content and not (small / LABELS).is_symlink()
    assert found(small) == set()


def test_a_listed_file_outside_of_the_folder_is_not_touched(small, tmp_path):
    float_labels(small)
    as_list(small)
    content = json.loads((small / JSON).read_text())["dataset"]
    outside = (small / "masks/hippocampus_004.nii.gz").rename(tmp_path / "outside.nii.gz")
    content["hippocampus_004"]["label"] = str(outside)
    describe(small, dataset=content)
    report = checks.check(str(small), workers=1)
    assert [(name, finding.path, finding.fix) for name, finding in report.findings] == [
        ("voxels", outside, None)
    ]


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(small):
    no_channel_number(small)
    report = checks.check(str(small), workers=1)
    (small / IMAGE).write_text("mine")
    checks.mend(report)
    assert "File exists" in report.not_fixed[0] and (small / IMAGE).read_text() == "mine"


# ---- the command


def test_the_command_says_all_and_exits_by_the_worst_finding(small, samnn):
    done = samnn("check", small)
    assert (
        done.returncode == 0 and "Nothing is wrong" in done.stdout and "5 training and 1 test" in done.stdout
    )
    float_labels(small)
    done = samnn("check", small)
    assert done.returncode == 0 and "1 warning" in done.stdout and "--fix mends 1" in done.stdout
    unknown_value(small)
    wrong_number(small)
    done = samnn("check", small, "-o", "report.json")
    assert done.returncode == 1 and "2 errors" in done.stdout and "numTraining 7" in done.stdout
    report = json.loads((small.parent / "report.json").read_text())
    assert {entry["check"] for entry in report["findings"]} == {"description", "voxels"}
    assert report["classes"]["anterior"]["n_cases"] == 5 and report["n_training"] == 5


def test_a_dry_run_changes_nothing_and_fix_does_what_it_announced(small, samnn):
    header_noise(small)
    wrong_number(small)
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    done = samnn("check", small, "--fix", "--dry-run")
    assert done.returncode == 1 and "Would be mended" in done.stdout
    assert "numTraining 7 becomes 5" in done.stdout and "takes the header" in done.stdout
    assert {path: path.read_bytes() for path in small.rglob("*") if path.is_file()} == before
    done = samnn("check", small, "--fix")
    assert done.returncode == 0 and "Mended" in done.stdout and "Nothing else is wrong" in done.stdout


def test_a_dataset_is_found_by_its_number_and_name(small, tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    moved = small.rename(tmp_path / "raw" / small.name)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("904", small.name):
        assert checks.check(name, workers=1).data.dataset.folder == moved
    (tmp_path / "raw/Dataset904_Other").mkdir()
    for name, wrong in [("904", "found Dataset904_Hippocampus, Dataset904_Other"), ("905", "found none")]:
        with pytest.raises(SamnnError, match=wrong):
            checks.check(name)


def test_a_dry_run_of_nothing_and_a_report_in_the_place_of_dataset_json_are_refused(small, samnn):
    for arguments, wrong in [(["--dry-run"], "add --fix"), (["-o", small / JSON], "another file")]:
        done = samnn("check", small, *arguments)
        assert done.returncode == 2 and wrong in done.stderr


def test_two_processes_find_the_same_as_one(small):
    unknown_value(small)
    alone, together = (checks.check(str(small), workers=workers) for workers in (1, 2))
    assert [str(finding) for _, finding in alone.findings] == [
        str(finding) for _, finding in together.findings
    ]
    assert alone.data.cases == together.data.cases
