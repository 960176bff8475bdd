"""Pictures of single cases: the slice with most of the voxels in which the methods are wrong, a panel a method."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from samnn.atomic import whole_file
from samnn.errors import SamnnError
from samnn.io import Volume, read_labels, read_volume

from .comparison import Comparison
from .display import letters_of, number

REFERENCE_COLOUR, PREDICTION_COLOUR = "#F0E442", "#56B4E9"  # Okabe and Ito's yellow and sky blue
MARGIN = 12  # voxels around what is labelled


def chosen_cases(comparison: Comparison, class_name: str) -> dict[str, str]:
    """The worst, the best and the median case of a class, by the mean of all methods in the first metric asked for.

    Cases without a value in some method are taken for worst: a method has failed there.
    """
    metric = comparison.metrics[0]
    values, _ = comparison.values(metric, class_name, comparison.methods)
    absent = set().union(*(method.summary["classes"][class_name]["absent"] for method in comparison.methods))
    sign = 1 if comparison.definition(metric)["better"] == "higher" else -1
    scores = {
        case: -np.inf if np.isnan(score) else score
        for case, score in zip(comparison.cases, sign * values.mean(0), strict=True)
        if case not in absent
    }
    order = sorted(scores, key=lambda case: (scores[case], case))
    if not order:
        return {}
    chosen = {"worst": order[0], "best": order[-1], "median": order[len(order) // 2]}
    return {
        word: case for i, (word, case) in enumerate(chosen.items()) if case not in list(chosen.values())[:i]
    }


def draw_case(comparison: Comparison, class_name: str, case: str, folder: Path) -> Path | None:
    """Draw one class of one case, or take the picture that an earlier run drew of the same files.

    Returns:
        None where no method was given as a folder: then there are no label maps to draw.
    """
    methods = [method for method in comparison.methods if method.cases]
    if not methods:
        return None
    image = _image_path(methods[0].cases[case].reference, case)
    content = [class_name, case, str(image), comparison.metrics[0], *(f"{m.name} {m.key}" for m in methods)]
    picture = folder / f"{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}.png"
    if not picture.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _draw(comparison, methods, class_name, case, image, picture)
    return picture


def _draw(
    comparison: Comparison, methods: list, class_name: str, case: str, image: Path | None, picture: Path
) -> None:
    from matplotlib.figure import Figure

    values = [int(v) for v in methods[0].summary["classes"][class_name]["label"].split("+")]
    reference = read_labels(methods[0].cases[case].reference)
    maps = [np.isin(read_labels(m.cases[case].prediction).voxels, values) for m in methods]
    truth = np.isin(reference.voxels, values)
    background = _background(image, reference)
    if truth.ndim == 2:
        truth, background, maps = truth[..., None], background[..., None], [m[..., None] for m in maps]
    wrong = [(m != truth).sum((0, 1)) for m in maps]
    disagreement = np.sum([voxels / max(1, voxels.sum()) for voxels in wrong], axis=0)
    union = truth | np.any(maps, axis=0)
    z = int(disagreement.argmax()) if disagreement.any() else int(union.sum((0, 1)).argmax())
    window = _window(union)
    flips = tuple(slice(None, None, -1 if d < 0 else 1) for d in _axis_signs(reference))
    spacing = reference.grid.spacing_mm
    figure = Figure(figsize=(2.9 * len(maps), 3.3), layout="constrained")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    letters = letters_of(comparison)
    shown = background[:, :, z][window]
    limits = (0, 1) if shown.max() == shown.min() else tuple(np.percentile(shown, [1, 99]))
    for panel, method, prediction in zip(panels, methods, maps, strict=True):
        panel.imshow(
            shown[flips].T, cmap="gray", vmin=limits[0], vmax=limits[1], aspect=spacing[1] / spacing[0]
        )
        for mask, colour, style in [
            (truth, REFERENCE_COLOUR, "solid"),
            (prediction, PREDICTION_COLOUR, "dashed"),
        ]:
            outline = mask[:, :, z][window][flips].T
            if outline.any():
                panel.contour(
                    np.pad(outline, 1)[1:-1, 1:-1], [0.5], colors=colour, linestyles=style, linewidths=1.8
                )
        value = method.values[comparison.metrics[0]].loc[case, class_name]
        unit = comparison.definition(comparison.metrics[0])["unit"]
        panel.set_title(f"{letters[method.name]}: {comparison.metrics[0]} {number(value, unit)}", fontsize=10)
        panel.axis("off")
    figure.suptitle(
        f"{case}, {class_name}" + (f", slice {z}" if reference.voxels.ndim == 3 else ""), fontsize=10
    )
    with whole_file(picture) as part:
        figure.savefig(part, dpi=100, metadata={"Software": None})


def _background(image: Path | None, reference: Volume) -> np.ndarray:
    """The image where it lies on the reference's grid, else black."""
    if image is not None:
        try:
            volume = read_volume(image)
        except SamnnError:  # the picture does without it; nothing else here needs the image
            return np.zeros(reference.voxels.shape)
        if volume.voxels.shape == reference.voxels.shape:
            return volume.voxels.astype(float)
    return np.zeros(reference.voxels.shape)


def _image_path(reference: Path, case: str) -> Path | None:
    """The first channel in nnU-Net's raw folder: beside labelsTr, or of the dataset of gt_segmentations."""
    folder = reference.absolute().parent
    candidates = [folder.with_name(folder.name.replace("labels", "images"))]
    if raw := os.environ.get("nnUNet_raw"):
        candidates.append(Path(raw) / folder.parent.name / "imagesTr")
    ending = reference.name.removeprefix(case)
    paths = [candidate / f"{case}_0000{ending}" for candidate in candidates]
    return next((path for path in paths if path.is_file()), None)


def _window(union: np.ndarray) -> tuple[slice, slice]:
    """The box around everything labelled, with a margin, in the plane."""
    window = []
    for axis in (0, 1):
        where = np.flatnonzero(union.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (where[0], where[-1]) if len(where) else (0, union.shape[axis])
        window.append(slice(max(0, int(low) - MARGIN), int(high) + MARGIN + 1))
    return window[0], window[1]


def _axis_signs(reference: Volume) -> list[float]:
    n = reference.grid.n_dims
    return [reference.grid.direction[(n + 1) * axis] for axis in (0, 1)]
