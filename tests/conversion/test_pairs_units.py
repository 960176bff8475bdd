"""The parts of converting pairs: turns and grids, label names and regions, folds, names of files."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_sources import GRID, TURN, mask

from samnn.dataset_conversion._grids import Turn, fit
from samnn.dataset_conversion._label_names import names_for, read_label_names
from samnn.dataset_conversion._pair_files import clean
from samnn.dataset_conversion._splits import grouped_splits, patient_of
from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, resample_labels

turns = st.builds(
    Turn, st.permutations(range(3)).map(tuple), st.tuples(st.booleans(), st.booleans(), st.booleans())
)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
lengths = st.floats(0.2, 8)


@st.composite
def grids(draw) -> Grid:
    """Any place, any rotation or reflection: the Q of a random matrix."""
    rotation, _ = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 10**6))).normal(size=(3, 3)))
    origin_mm = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return Grid(draw(sizes), draw(st.tuples(*[lengths] * 3)), origin_mm, tuple(rotation.ravel()))


@given(grids(), turns)
def test_a_turn_leaves_every_voxel_at_its_place(grid, turn):
    """Each voxel carries the number of its place: (i, j, k) of the turned array is where its grid says."""
    index = np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3)
    places_mm = (index @ grid.affine[:3, :3].T + grid.affine[:3, 3]).reshape(*grid.shape, 3)
    turned = turn.of_grid(grid)
    index = np.stack(np.indices(turned.shape), axis=-1).reshape(-1, 3)
    expected_mm = (index @ turned.affine[:3, :3].T + turned.affine[:3, 3]).reshape(*turned.shape, 3)
    found_mm = np.stack([turn.of_voxels(places_mm[..., axis]) for axis in range(3)], axis=-1)
    np.testing.assert_allclose(found_mm, expected_mm, atol=1e-9)


@given(grids(), turns, st.integers(0, 10**6))
def test_a_turned_label_map_is_turned_back_exactly(grid, turn, seed):
    labels = np.random.default_rng(seed).integers(0, 9, grid.shape, dtype=np.uint8)
    found = fit(grid, turn.of_grid(grid))
    assert found.differences == []
    np.testing.assert_array_equal(found.turn.of_voxels(turn.of_voxels(labels)), labels)


@given(grids(), st.integers(0, 2), st.floats(0.02, 5))
def test_a_shift_beyond_the_tolerance_is_a_difference(grid, axis, shift_mm):
    origin_mm = np.array(grid.origin_mm)
    origin_mm[axis] += shift_mm
    assert fit(grid, replace(grid, origin_mm=tuple(origin_mm))).differences


@given(grids(), st.integers(0, 10**6))
def test_nearest_onto_the_same_grid_changes_nothing(grid, seed):
    labels = np.random.default_rng(seed).integers(0, 9, grid.shape, dtype=np.uint8)
    np.testing.assert_array_equal(resample_labels(Volume(labels, grid), grid).voxels, labels)


def test_nearest_takes_the_label_at_the_place_and_zero_outside():
    onto = Grid((9, 3, 3), (0.5, 2.0, 2.5), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[:, 0, 0] = 1, 2, 3  # at x = 0, 1, 2 mm; reaching to 2.5 mm
    grid = Grid((3, 3, 3), (1.0, 2.0, 2.5), (0.1, 0.0, 0.0), onto.direction)
    found = resample_labels(Volume(labels, grid), onto).voxels
    assert found[:, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 0, 0, 0]


def test_a_rotated_grid_is_another_grid():
    assert fit(replace(GRID, direction=tuple(np.eye(3).ravel())), GRID).differences
    slightly = TURN @ np.array([[1, -1e-3, 0], [1e-3, 1, 0], [0, 0, 1]])
    big = replace(GRID, shape=(200, 200, 50))
    assert fit(big, replace(big, direction=tuple(slightly.ravel()))).differences


# ---- labels


def test_values_are_renumbered_in_their_order_with_the_ignore_label_last():
    names = read_label_names("b=7,ignore=3,a=2")
    assert names.new_values == {0: 0, 2: 1, 7: 2, 3: 3}
    assert names.description() == {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
    assert names.renumber(np.array([0, 2, 3, 7])).tolist() == [0, 1, 3, 2]
    assert names.unknown([0, 1, 2, 9]) == [1, 9]


def test_nested_regions_are_painted_from_the_largest_to_the_smallest():
    """BraTS: whole tumour 1+2+4, core 1+4, enhancing 4: edema (2) is whole's own, necrosis (1) core's."""
    names = read_label_names("necrosis=1,edema=2,enhancing=4", ["whole=1+2+4", "core=necrosis+4", "inner=4"])
    assert names.description() == {
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "inner": 3},
        "regions_class_order": [2, 1, 3],
    }


@given(st.permutations([1, 2, 3]), st.integers(1, 3))
def test_painting_regions_in_their_order_gives_the_label_map_back(values, depth):
    """nnU-Net paints region after region; for nested regions the last one painted is the label itself."""
    nested = [tuple(sorted(values[start:])) for start in range(3)]
    regions = [f"r{number}={'+'.join(map(str, members))}" for number, members in enumerate(nested)]
    order = read_label_names("a=1,b=2,c=3", regions).description()["regions_class_order"]
    for label in values:
        painted = 0
        for members, value in zip(nested, order, strict=True):
            painted = value if label in members else painted
        assert painted == label


def test_a_label_in_no_region_stays_a_class_of_its_own():
    labels = names_for([0, 1, 2, 5], ["both=1+2"]).description()["labels"]
    assert labels == {"background": 0, "both": [1, 2], "label_5": 3}


def test_labels_are_read_from_a_dataset_json(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text('{"labels": {"background": 0, "whole": [1, 2], "core": 2}}')
    names = read_label_names(str(path))
    assert names.values == {"core": 2, "label_1": 1} and names.regions == {"whole": (1, 2)}


@pytest.mark.parametrize(
    "text", ["", "a", "a=", "=1", "a=1.5", "a=-1", "a=1,a=2", "a=1,b=1", "background=1", "a=70000"]
)
def test_labels_that_contradict_themselves_are_refused(text):
    with pytest.raises(SamnnError, match="--labels"):
        read_label_names(text)


@pytest.mark.parametrize("region", ["whole", "=1+2", "a=1+2", "whole=1+9", "ignore=1", "whole="])
def test_regions_that_make_no_sense_are_refused(region):
    with pytest.raises(SamnnError, match="--region"):
        read_label_names("a=1,b=2", [region])


def test_a_region_that_others_cover_completely_is_refused():
    with pytest.raises(SamnnError, match="cannot be painted"):
        read_label_names("a=1,b=2", ["both=1+2", "first=1", "second=2"])


# ---- folds and names


@given(
    st.dictionaries(
        st.text("abc123", min_size=1, max_size=5), st.sampled_from("PQRSTUV"), min_size=2, max_size=40
    )
)
def test_folds_part_all_cases_and_no_patient(patients):
    if len(set(patients.values())) < 2:
        with pytest.raises(SamnnError, match="two or more"):
            grouped_splits(patients)
        return
    folds = grouped_splits(patients)
    assert len(folds) == min(5, len(set(patients.values())))
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(patients)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(patients)
        assert not {patients[case] for case in fold["train"]} & {patients[case] for case in fold["val"]}
    assert grouped_splits(dict(reversed(patients.items()))) == folds


def test_folds_of_single_cases_differ_by_one_case_at_most():
    sizes = [len(fold["val"]) for fold in grouped_splits({f"c{n}": f"p{n}" for n in range(13)})]
    assert sorted(sizes) == [2, 2, 3, 3, 3]


def test_the_first_group_of_the_pattern_is_the_patient_or_all_it_matches():
    assert patient_of("P07_scan2", re.compile(r"^(P\d+)_")) == "P07"
    assert patient_of("P07_scan2", re.compile(r"P\d+")) == "P07"
    assert patient_of("scan", re.compile(r"P\d+")) is None


@given(st.text(max_size=30))
def test_a_clean_name_is_safe_in_a_path_and_cleaning_is_final(name):
    cleaned = clean(name)
    assert not set(cleaned) & set("/\\\0\n *?\"'$;:") and not cleaned.startswith((".", "-"))
    assert clean(cleaned) == cleaned


def test_the_mask_used_in_these_tests_has_no_symmetry():
    voxels = mask().voxels
    turned = [
        Turn(axes, flips)
        for axes in [(0, 1, 2), (1, 0, 2)]
        for flips in [(False, True, False), (True, False, True)]
    ]
    assert not any(np.array_equal(turn.of_voxels(voxels), voxels) for turn in turned)
