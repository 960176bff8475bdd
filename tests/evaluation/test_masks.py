"""One pass counts and boxes all classes as looking at each class by itself would."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from samnn.errors import SamnnError
from samnn.evaluation3d.masks import mask_pairs
from samnn.labels import LabelSet


def pairs(reference, prediction, labels: LabelSet):
    spacing_mm = (1.0,) * reference.ndim
    return mask_pairs(reference, prediction, spacing_mm=spacing_mm, labels=labels, tolerance_mm=1.0)


def blocks(seed: int, shape: tuple[int, ...], values: list[int], dtype=np.uint8) -> np.ndarray:
    """Some boxes of random values on 0."""
    rng = np.random.default_rng(seed)
    voxels = np.zeros(shape, dtype)
    for value in rng.permutation(values):
        corner = [int(rng.integers(0, size)) for size in shape]
        voxels[tuple(slice(start, start + int(rng.integers(1, 5))) for start in corner)] = value
    return voxels


def assert_as_counted_alone(reference, prediction, labels: LabelSet):
    counted = np.ones(reference.shape, bool) if labels.ignore is None else reference != labels.ignore
    for name, pair in pairs(reference, prediction, labels).items():
        in_reference = np.isin(reference, labels.classes[name]) & counted
        in_prediction = np.isin(prediction, labels.classes[name]) & counted
        assert (pair.tp, pair.fp, pair.fn, pair.tn) == (
            (in_reference & in_prediction).sum(),
            (~in_reference & in_prediction & counted).sum(),
            (in_reference & ~in_prediction & counted).sum(),
            (~in_reference & ~in_prediction & counted).sum(),
        )
        where = np.nonzero(in_reference | in_prediction)
        box = tuple(slice(axis.min(), axis.max() + 1) if len(axis) else slice(0, 0) for axis in where)
        np.testing.assert_array_equal(pair.reference, reference[box])
        np.testing.assert_array_equal(pair.prediction, prediction[box])


ORDERS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "swapped": lambda a: a.swapaxes(0, 1).copy().swapaxes(0, 1),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(9, 7, 5), (12, 11), (1, 6, 7)])
@pytest.mark.parametrize(
    "labels",
    [
        LabelSet({"a": (1,), "b": (2,), "c": (3,)}),
        LabelSet({"whole": (1, 2, 3), "core": (2, 3), "rest": (1,)}),
        LabelSet({"a": (1,), "b": (2,)}, ignore=3),
        LabelSet({"a": (1, 3), "far": (300,), "b": (2,)}),
    ],
    ids=["classes", "regions", "ignore", "far values"],
)
def test_counts_and_boxes_equal_those_of_each_class_alone(labels, shape, order):
    for seed in range(5):
        values = sorted(labels.values - {0})
        reference = ORDERS[order](blocks(seed, shape, values, np.int16))
        prediction = ORDERS["C"](blocks(seed + 100, shape, values, np.int16))
        assert_as_counted_alone(reference, prediction, labels)


def test_more_classes_than_bits_in_a_word_of_memory():
    labels = LabelSet({f"class {value}": (value,) for value in range(1, 131)})
    values = list(range(1, 131))
    assert_as_counted_alone(blocks(1, (20, 20, 20), values), blocks(2, (20, 20, 20), values), labels)


def test_present_classes_are_found_among_thousands_of_absent_ones():
    labels = LabelSet({f"class {value}": (value,) for value in range(1, 5001)})
    values = [3, 17, 4999]
    reference, prediction = (
        blocks(1, (20, 20, 20), values, np.int32),
        blocks(2, (20, 20, 20), values, np.int32),
    )
    found = pairs(reference, prediction, labels)
    few = LabelSet({f"class {value}": (value,) for value in values})
    assert_as_counted_alone(reference, prediction, few)
    assert {name for name, pair in found.items() if pair.outcome != "absent"} == set(few.classes)


def test_maps_of_different_types_and_memory_orders_meet():
    labels = LabelSet({"a": (1,), "b": (2,), "c": (3,)})
    maps = blocks(1, (9, 7, 5), [1, 2, 3]), blocks(2, (9, 7, 5), [1, 2, 3])
    for mine in (np.uint64, ">i2", np.int8):
        for turn in (np.asfortranarray, lambda a: a[::-1].copy()[::-1], np.ascontiguousarray):
            assert_as_counted_alone(maps[0].astype(mine), turn(maps[1]), labels)


def test_beside_the_maps_less_than_one_of_them_is_held():
    """Single voxels in opposite corners, so that the box is the whole volume."""
    labels = LabelSet({"a": (1,)})
    reference, prediction = np.zeros((2, 400, 400, 200), np.uint8)
    reference[0, 0, 0] = reference[-1, -1, -1] = prediction[-1, 0, 5] = 1
    tracemalloc.start()
    try:
        pair = pairs(reference, prediction, labels)["a"]
        assert pair.reference.shape == reference.shape
        assert pair.surface.prediction_to_reference_mm.max() > 390
        assert tracemalloc.get_traced_memory()[1] < reference.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("strange", [-1, 4, 255, 65536, -(2**62)])
@pytest.mark.parametrize("role", ["reference", "prediction"])
def test_a_value_outside_the_label_set_is_named(role, strange):
    known = np.zeros((3, 3, 3), np.int64)
    unknown = known.copy()
    unknown[1, 1, 1] = strange
    maps = (unknown, known) if role == "reference" else (known, unknown)
    with pytest.raises(SamnnError, match=f"the {role}: holds the value {strange}, .*0, 1, 3"):
        pairs(*maps, LabelSet({"a": (1,), "b": (3,)}))


def test_the_ignore_value_hides_whatever_was_predicted_there():
    """A stray prediction under the ignore value moves neither counts, box nor surface."""
    labels = LabelSet({"organ": (1,)}, ignore=2)
    reference = np.zeros((12, 12, 12), np.uint8)
    reference[2:6, 2:6, 2:6] = 1
    clean = reference.copy()
    reference[8:] = 2
    stray = clean.copy()
    stray[10, 10, 10] = 1
    for prediction in (clean, stray):
        pair = pairs(reference, prediction, labels)["organ"]
        assert (pair.tp, pair.fp, pair.fn, pair.tn) == (64, 0, 0, 8 * 144 - 64)
        assert pair.reference.shape == (4, 4, 4)
        assert pair.surface.prediction_to_reference_mm.max() == 0


def test_ignored_voxels_inside_the_box_are_no_part_of_the_predicted_surface():
    """The prediction fills a hole that the reference ignores: with the hole left out both surfaces are one."""
    reference = np.zeros((9, 9, 9), np.uint8)
    reference[2:7, 2:7, 2:7] = 1
    prediction = reference.copy()
    reference[4, 4, 2:7] = 2
    pair = pairs(reference, prediction, LabelSet({"organ": (1,)}, ignore=2))["organ"]
    assert pair.surface.prediction_to_reference_mm.max() == 0
    assert pair.surface.reference_to_prediction_mm.max() == 0


def test_a_reference_equals_itself_with_an_ignore_label():
    voxels = blocks(3, (9, 9, 9), [1, 2, 3])
    pair = pairs(voxels, voxels, LabelSet({"a": (1,), "b": (2,)}, ignore=3))["a"]
    assert (pair.fp, pair.fn) == (0, 0)
