"""The made-up thorax is the same every time, looks like a CT, and takes part in the hearts' story."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from scipy.ndimage import label

from samnn.dataset_conversion import _heart
from samnn.dataset_conversion.segthor import convert
from samnn.phantom import AORTA, ESOPHAGUS, HEART, SHAPE, SPACING_MM, TRACHEA, thorax, write_segthor


@pytest.fixture(scope="module")
def patients():
    return {seed: thorax(seed) for seed in range(1, 8)}  # those of the demo


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_segthor(folder, displace=_heart.displace, n_training=2, n_test=1)
    return folder


def test_the_same_seed_gives_the_same_patient_and_another_seed_another(patients):
    again = thorax(3)
    np.testing.assert_array_equal(again[0], patients[3][0])
    np.testing.assert_array_equal(again[1], patients[3][1])
    assert (patients[3][1] != patients[4][1]).any()


def test_tissues_have_the_hounsfield_units_of_a_chest_ct(patients):
    expected_hu = {0: None, ESOPHAGUS: (-20, 60), HEART: (30, 130), TRACHEA: (-1000, -750), AORTA: (40, 140)}
    for image, labels in patients.values():
        assert image.dtype == np.int16 and image.shape == labels.shape == SHAPE
        for organ, bounds in expected_hu.items():
            if bounds:
                assert bounds[0] < np.median(image[labels == organ]) < bounds[1]
        assert 0.05 < ((image > -950) & (image < -700)).mean() < 0.3  # lung
        assert np.median(image[:5, :5]) < -950  # air around the body


def test_each_organ_is_one_piece_of_plausible_size(patients):
    """A heart has 300 to 700 ml, the others tens to 200 ml."""
    for _, labels in patients.values():
        voxel_ml = np.prod(SPACING_MM) / 1000
        volume_ml = {organ: (labels == organ).sum() * voxel_ml for organ in (1, 2, 3, 4)}
        assert 250 < volume_ml[HEART] < 700 and 80 < volume_ml[AORTA] < 250
        assert 20 < volume_ml[ESOPHAGUS] < 100 and 10 < volume_ml[TRACHEA] < 60
        assert all(label(labels == organ, np.ones((3, 3, 3)))[1] == 1 for organ in (1, 2, 3))


def test_displaced_hearts_stay_inside_so_that_nothing_is_lost(patients):
    for _, labels in patients.values():
        assert not _heart.touches_border(_heart.displace(labels == HEART))


def test_the_converter_sees_which_hearts_were_displaced_and_gives_them_back(phantom, tmp_path):
    convert(phantom, 999, output=tmp_path)
    target = tmp_path / "Dataset999_SegTHOR"
    for number in (1, 2):
        heart = np.asarray(nibabel.load(target / f"labelsTr/Patient_0{number}.nii.gz").dataobj) == HEART
        truth = thorax(number)[1] == HEART
        assert (heart & truth).sum() / (heart | truth).sum() > 0.97  # a fifth of SegTHOR's resolution
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(target / "labelsTs/Patient_03.nii.gz").dataobj), thorax(3)[1]
    )


def test_the_layout_is_that_of_segthor(phantom):
    names = sorted(path.relative_to(phantom).as_posix() for path in phantom.rglob("*.gz"))
    assert names == [
        "test/Patient_03/GT.nii.gz",
        "test/Patient_03/Patient_03.nii.gz",
        "train/Patient_01/GT.nii.gz",
        "train/Patient_01/GT2.nii.gz",
        "train/Patient_01/Patient_01.nii.gz",
        "train/Patient_02/GT.nii.gz",
        "train/Patient_02/Patient_02.nii.gz",
    ]
