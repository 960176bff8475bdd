"""Each metric against numbers worked out by hand, and the promises every metric file makes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from samnn.errors import SamnnError
from samnn.evaluation3d import evaluate_case
from samnn.evaluation3d.metric import BY_FORMULA
from samnn.evaluation3d.metrics import find_metrics

SPACING_MM = (1.5, 1.0, 3.0)
T = math.sqrt(3) / 8  # area of a corner's surfel at 1 mm: a triangle with legs of half a voxel
E = math.sqrt(1 / 2)  # area of an edge's surfel at 1 mm: one voxel long, a diagonal of half voxels wide
FRACTIONS = ["dice", "iou", "nsd", "precision", "sensitivity", "specificity", "voe", "volumetric_similarity"]
DISTANCES = ["assd", "hausdorff", "hausdorff95", "masd"]


def values(reference, prediction, *, spacing_mm=SPACING_MM, tolerance_mm=1.0, surface="surfel"):
    case = evaluate_case(
        reference,
        prediction,
        spacing_mm=spacing_mm,
        labels={"organ": 1},
        tolerance_mm=tolerance_mm,
        surface=surface,
    )
    return case["organ"].values


def rod(start: int, stop: int) -> np.ndarray:
    """A rod along x, one voxel thick."""
    voxels = np.zeros((50, 5, 5), np.uint8)
    voxels[start:stop, 2, 2] = 1
    return voxels


def test_the_promised_metrics_are_there_in_the_promised_units():
    units = {name: metric.declared.unit for name, metric in find_metrics().items()}
    promised = dict.fromkeys(FRACTIONS, "fraction") | dict.fromkeys(DISTANCES, "mm") | {"volume_error": "ml"}
    assert units.items() >= promised.items()


def test_overlap_of_two_boxes_two_voxels_apart(box):
    """480 voxels each, 8/10 of them common: TP 384, FP 96, FN 96, TN 3840 - 576."""
    found = values(box(), box(moved=2))
    assert found["dice"] == pytest.approx(768 / 960)
    assert found["iou"] == pytest.approx(384 / 576)
    assert found["sensitivity"] == pytest.approx(384 / 480)
    assert found["precision"] == pytest.approx(384 / 480)
    assert found["specificity"] == pytest.approx(3264 / 3360)
    assert found["volumetric_similarity"] == 1.0
    assert found["voe"] == pytest.approx(1 - 384 / 576)
    assert found["volume_error"] == 0.0


def test_overlap_of_a_box_and_its_half(box):
    """240 of 480 voxels found, nothing else: TP 240, FP 0, FN 240."""
    half = box()
    half[8:] = 0
    found = values(box(), half)
    assert found["dice"] == pytest.approx(480 / 720)
    assert found["iou"] == pytest.approx(0.5)
    assert found["sensitivity"] == pytest.approx(0.5)
    assert found["precision"] == 1.0
    assert found["specificity"] == 1.0
    assert found["volumetric_similarity"] == pytest.approx(1 - 240 / 720)
    assert found["voe"] == pytest.approx(0.5)
    assert found["volume_error"] == pytest.approx(-1.08)  # 240 voxels of 4.5 mm³ are missing
    assert values(half, box())["volume_error"] == pytest.approx(1.08)


@pytest.mark.parametrize(("axis", "expected_mm"), [(0, 3.0), (1, 2.0), (2, 6.0)])
def test_hausdorff_of_boxes_two_voxels_apart_is_two_spacings_of_that_axis(box, axis, expected_mm):
    found = values(box(), np.roll(box(), 2, axis))
    assert found["hausdorff"] == pytest.approx(expected_mm)


def test_surfaces_of_two_single_voxels():
    """Eight equal surfels each, on corners at x 0 and 1.5 mm against 3 and 4.5 mm: half at 3 mm, half at 1.5 mm."""
    found = values(rod(10, 11), rod(12, 13), tolerance_mm=1.5)
    assert found["hausdorff"] == found["hausdorff95"] == 3.0
    assert found["assd"] == pytest.approx(2.25)
    assert found["nsd"] == pytest.approx(0.5)  # a distance equal to the tolerance is within it
    assert values(rod(10, 11), rod(12, 13), tolerance_mm=1.4)["nsd"] == 0.0


def test_surface_elements_count_by_their_area():
    """One voxel inside a rod of three: only the rod's 8 corner surfels are away, 1 mm; its 8 edge surfels are not."""
    found = values(rod(10, 11), rod(9, 12), spacing_mm=(1, 1, 1), tolerance_mm=0.5)
    assert found["assd"] == pytest.approx(8 * T / (8 * T + 8 * T + 8 * E))
    assert found["nsd"] == pytest.approx((8 * T + 8 * E) / (8 * T + 8 * T + 8 * E))
    assert found["masd"] == pytest.approx(8 * T / (8 * T + 8 * E) / 2)
    assert found["hausdorff"] == found["hausdorff95"] == 1.0


def test_two_parallel_plates():
    """Plates 40 × 40 × 1 mm, moved by 3 mm: the near face of each is 2 mm away from the other, the far face 3 mm."""
    reference = np.zeros((42, 42, 9), np.uint8)
    reference[1:41, 1:41, 2] = 1
    prediction = np.roll(reference, 3, axis=2)
    found = values(reference, prediction, spacing_mm=(1, 1, 1), tolerance_mm=2.5)
    assert found["hausdorff"] == found["hausdorff95"] == 3.0
    assert [found["assd"], found["masd"]] == pytest.approx(
        [2.5, 2.5]
    )  # half of the area at 3 mm, half at 2 mm
    assert found["nsd"] == pytest.approx(0.5)


def test_border_voxels_of_a_cube_and_a_larger_one():
    """3³ inside 5³ (1 mm): 26 border voxels against 98. The small one's are all 1 mm away (its centre is inside);
    of the large one's 54 are 1 mm away, 36 (edges) √2 and 8 (corners) √3.
    """
    reference = np.zeros((9, 9, 9), np.uint8)
    prediction = reference.copy()
    reference[3:6, 3:6, 3:6] = 1
    prediction[2:7, 2:7, 2:7] = 1
    found = values(reference, prediction, spacing_mm=(1, 1, 1), tolerance_mm=1.0, surface="voxel")
    back_mm = (54 + 36 * math.sqrt(2) + 8 * math.sqrt(3)) / 98
    assert found["hausdorff"] == pytest.approx(math.sqrt(3))
    assert found["masd"] == pytest.approx((1 + back_mm) / 2)
    assert found["assd"] == pytest.approx((26 + 98 * back_mm) / 124)
    assert found["nsd"] == pytest.approx((26 + 54) / (26 + 98))
    assert found["hausdorff95"] == pytest.approx(
        math.sqrt(3)
    )  # 0.95·123 = 116.85: between the 117th and the 118th


def test_hausdorff95_of_border_voxels_is_interpolated_over_both_directions():
    """Rods of 2 and 9 voxels, 1 mm: distances 0, 0 and 0, 0, 1, … 7; the place 0.95·10 = 9.5 is between 6 and 7."""
    found = values(rod(5, 7), rod(5, 14), spacing_mm=(1, 1, 1), surface="voxel")
    assert found["hausdorff95"] == pytest.approx(6.5)


def test_hausdorff95_forgives_what_hausdorff_does_not():
    """A rod one voxel longer: its last four corners hold 4T / (8T + 156E), under 1 % of its surface."""
    found = values(rod(5, 44), rod(5, 45), spacing_mm=(1, 1, 1))
    assert found["hausdorff"] == 1.0
    assert found["hausdorff95"] == 0.0


def test_two_dimensions():
    """Squares of 4 × 4 mm, 1 mm apart along x: 12 of 16 pixels common, contours 1 mm apart at most."""
    reference = np.zeros((12, 12), np.uint8)
    reference[3:7, 3:7] = 1
    found = values(reference, np.roll(reference, 1, axis=0), spacing_mm=(1, 1))
    assert found["dice"] == pytest.approx(24 / 32)
    assert found["hausdorff"] == 1.0
    assert found["nsd"] == 1.0
    assert math.isnan(found["volume_error"])  # an area has no volume


@pytest.mark.parametrize("name", find_metrics())
def test_a_perfect_prediction_has_the_best_value(name, box):
    best = 1.0 if find_metrics()[name].declared.better == "higher" else 0.0
    assert values(box(), box())[name] == best


@pytest.mark.parametrize("name", find_metrics())
def test_values_stay_in_the_declared_range(name):
    rng = np.random.default_rng(7)
    low, high = find_metrics()[name].declared.range
    for density in (0.02, 0.3, 0.9):
        reference, prediction = (rng.random((2, 9, 8, 7)) < density).astype(np.uint8)
        assert low <= values(reference, prediction)[name] <= high


@pytest.mark.parametrize(
    ("metric", "both", "reference", "prediction"),
    [
        ("dice", None, 0, 0),
        ("iou", None, 0, 0),
        ("sensitivity", None, None, 0),
        ("specificity", None, 3360 / 3840, 1),
        ("precision", None, 0, None),
        ("volumetric_similarity", None, 0, 0),
        ("voe", None, 1, 1),
        ("nsd", None, 0, 0),
        ("volume_error", None, 2.16, -2.16),
        ("masd", None, None, None),
        ("assd", None, None, None),
        ("hausdorff", None, None, None),
        ("hausdorff95", None, None, None),
    ],
)
def test_empty_masks(metric, both, reference, prediction, box):
    """None: undefined. `reference`: it is the empty one. The box has 480 of 3840 voxels of 4.5 mm³."""
    none = np.zeros_like(box())
    expected = [math.nan if value is None else value for value in (both, reference, prediction)]
    found = [values(none, none), values(none, box()), values(box(), none)]
    assert [case[metric] for case in found] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("name", ["dice", "iou", "sensitivity", "precision", "volumetric_similarity", "voe"])
def test_declared_values_for_one_empty_mask_are_the_formula_or_its_zero_denominator(name):
    from samnn.evaluation3d.masks import mask_pairs
    from samnn.labels import LabelSet

    metric = find_metrics()[name]
    full, none = np.ones((2, 2, 2), np.uint8), np.zeros((2, 2, 2), np.uint8)
    for pair, declared in [
        ((none, full), metric.declared.if_reference_empty),
        ((full, none), metric.declared.if_prediction_empty),
    ]:
        found = mask_pairs(*pair, spacing_mm=(1, 1, 1), labels=LabelSet({"organ": (1,)}), tolerance_mm=1.0)
        assert declared is not BY_FORMULA
        if math.isnan(declared):
            with pytest.raises(ZeroDivisionError):
                metric.functions["surfel"](found["organ"])
        else:
            assert metric.functions["surfel"](found["organ"]) == declared


def test_specificity_is_undefined_where_the_reference_fills_the_image():
    full = np.ones((4, 4, 4), np.uint8)
    assert math.isnan(values(full, full)["specificity"])


def test_the_table_in_the_docs_says_what_the_files_declare():
    docs = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [re.split(r"\s*\|\s*", line.strip("| \n")) for line in docs.splitlines() if line.startswith("| `")]

    def word(value):
        return "by formula" if value is None else "undefined" if math.isnan(value) else f"{value:g}"

    expected = {
        f"`{name}`": [
            f"`{name}`",
            metric.formulas["surfel"],
            metric.declared.unit,
            metric.declared.better,
            word(metric.declared.if_both_empty),
            word(metric.declared.if_reference_empty),
            word(metric.declared.if_prediction_empty),
        ]
        for name, metric in find_metrics(probabilities=True).items()
    }
    assert {row[0].strip("`") for row in rows} == set(find_metrics(probabilities=True))
    for row in rows:
        assert row == expected[row[0]], "write: | " + " | ".join(expected[row[0]]) + " |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spacing_mm": (1, 1)}, "spacing"),
        ({"spacing_mm": (1, 1, 0)}, "spacing"),
        ({"spacing_mm": (1, 1, math.nan)}, "spacing"),
        ({"tolerance_mm": -1}, "tolerance"),
        ({"tolerance_mm": math.nan}, "tolerance"),
        ({"surface": "corner"}, "surface is 'corner'; expected one of surfel, voxel"),
        ({"prediction": np.zeros((4, 4, 5), np.uint8)}, "shape"),
        ({"prediction": np.zeros((4, 4, 4))}, "whole numbers"),
        ({"prediction": np.full((4, 4, 4), 2, np.uint8)}, "the prediction: holds the value 2"),
        ({"reference": np.full((4, 4, 4), -1, np.int16)}, "the reference: holds the value -1"),
    ],
)
def test_unfit_arrays_are_refused_in_words(arguments, message):
    cube = np.zeros((4, 4, 4), np.uint8)
    given = {
        "reference": cube,
        "prediction": cube,
        "spacing_mm": (1, 1, 1),
        "labels": {"organ": 1},
        **arguments,
    }
    with pytest.raises(SamnnError, match=message):
        evaluate_case(given.pop("reference"), given.pop("prediction"), **given)
