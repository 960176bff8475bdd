"""SegTHOR, the challenge's copy and the course's with its displaced hearts, into nnU-Net raw format."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from samnn.errors import Problems, SamnnError
from samnn.geometry import Grid
from samnn.io import Volume, read_labels, read_volume, stores_integers

from . import _heart, _layout
from ._label_names import LabelNames
from ._options import Job, Workers
from ._segthor_folder import Patient, find_patients
from ._writing import Dataset, each

LABELS = {"background": 0, "esophagus": 1, "heart": 2, "trachea": 3, "aorta": 4}
HEART = LABELS["heart"]
LEAST_IOU_WITH_TRUE_HEART = 0.95


class Heart(str, Enum):
    """What to do with the hearts."""

    auto = "auto"
    repair = "repair"
    keep = "keep"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="The SegTHOR folder, with train/ and test/ inside.",
        ),
    ],
    dataset_id: Annotated[
        int, typer.Option("--dataset-id", "-d", help="Number of the new dataset, 1 to 999.")
    ],
    name: Annotated[str, typer.Option(help="Name of the new dataset, after its number.")] = "SegTHOR",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of raw datasets.  [default: $nnUNet_raw]"),
    ] = None,
    heart: Annotated[
        Heart,
        typer.Option(help="Move displaced hearts back: where the image says so, in all patients, in none."),
    ] = Heart.auto,
    heart_for: Annotated[
        list[str] | None,
        typer.Option(metavar="PATIENT=repair|keep", help="Decide for one patient; may be repeated."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the dataset if it exists.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and decide, print the table, write nothing.")
    ] = False,
    workers: Workers = None,
) -> None:
    """Convert SegTHOR: thoracic CT with esophagus, heart, trachea and aorta.

    - **Source:** the SegTHOR challenge, https://competitions.codalab.org/competitions/21145
    - **Licence:** the challenge's terms, after registration; ask its organisers before passing the data on
    - **Citation:** Lambert, Petitjean, Dubray, Ruan: SegTHOR: Segmentation of Thoracic Organs at Risk in CT
      images. IPTA 2020, arXiv:1912.05950
    - **Layout:** `SOURCE/train/Patient_XX/{Patient_XX.nii.gz, GT.nii.gz}` and `SOURCE/test/Patient_YY.nii.gz`, or
      the `train` folder alone; a test patient may also be a folder like those of training, whose `GT.nii.gz` then
      goes to `labelsTs`

    In the course copy the heart of every `GT.nii.gz` was moved by a known map. `--heart auto` looks at each
    patient's image: a displaced heart lies partly in lung. Where a `GT2.nii.gz` holds the true heart, the outcome is
    compared with it. The source is never changed; `conversion.json` says what was decided and why. The same command goes
    on after a stop.

    **Examples**

        samnn convert segthor ~/segthor -d 55

        samnn convert segthor ~/segthor -d 55 --dry-run

        samnn convert segthor ~/segthor -d 55 --heart-for Patient_17=repair --overwrite
    """
    target = _layout.dataset_folder(
        _layout.raw_root(output), dataset_id, name, source=source, overwrite=overwrite
    )
    patients, problems = find_patients(source)
    for file in (file for patient in patients for file in patient.files):
        _layout.refuse_overlap(file, target)
    chosen = _choices(patients, heart_for or [], problems)
    job = Job(dataset_id, name, output, overwrite, dry_run, skip_refused=False, workers=workers)
    refused: dict[str, list[str]] = {}
    found = each(
        "Checking", _inspect, patients, source, chosen, heart.value, workers=job.n_workers, refused=refused
    )
    by_name = {finding.case.name: finding for finding in found}
    findings = [by_name[patient.name] for patient in patients if patient.name in by_name]
    problems += [problem for patient in patients for problem in refused.get(patient.name, [])]
    problems += _unclear(findings)
    if problems:
        raise Problems(f"{source}: nothing was converted, {len(problems)} problem(s):", problems)
    if dry_run:
        _print_report(findings, f"{len(findings)} patients checked, nothing written")
        return
    organs = LabelNames({organ: value for organ, value in LABELS.items() if value})
    conversion = {"converter": "segthor", "source": str(source.resolve())}
    dataset = Dataset(findings, organs, ["CT"], None, {}, link=False, conversion=conversion)
    dataset.write(target, workers=job.n_workers, overwrite=overwrite, skip_refused=False)
    # printed last: a table that nobody takes must not cost the dataset
    _print_report(findings, f"{len(findings)} patients written to {target}")


@dataclass
class Finding:
    """What was seen in one patient's files and what will be done with them."""

    case: Patient
    source: Path  # the whole set's folder
    heart: str = ""  # what is done with it, empty without labels
    because: str = ""
    can_be_repaired: bool = True  # asked for where the image does not tell
    true_heart: dict[str, float] = field(default_factory=dict)  # the outcome against GT2
    rewrite: list[str] = field(default_factory=list)  # why the labels cannot be copied byte for byte
    header: Path | None = None  # whose header rewritten labels get
    notes: list[str] = field(default_factory=list)
    values: set[int] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def called(self) -> str:
        return self.case.name

    @property
    def patient(self) -> str:
        return self.case.name

    @property
    def is_test(self) -> bool:
        return self.case.test

    @property
    def has_labels(self) -> bool:
        return self.case.labels is not None

    @property
    def n_channels(self) -> int:
        return 1

    @property
    def changes(self) -> list[str]:
        return self.notes

    @property
    def sources(self) -> list[Path]:
        return self.case.files

    def asked(self) -> dict[str, Any]:
        return {"heart": self.heart, "rewrite": self.rewrite, "header": str(self.header)}

    def to_do(self, names: LabelNames) -> dict[str, Any]:
        return {"heart": self.heart, "rewritten_because": self.rewrite}

    def write(
        self, dataset: _layout.RawDataset, names: LabelNames, *, n_channels: int, link: bool
    ) -> dict[str, Any]:
        """Write one patient and return its entry in conversion.json."""
        return _write(dataset, self)


def _choices(patients: Sequence[Patient], heart_for: Sequence[str], problems: list[str]) -> dict[str, str]:
    """What PATIENT=repair|keep say of single patients; what cannot be done goes to `problems`."""
    named, chosen = {patient.name: patient for patient in patients}, {}
    for entry in heart_for:
        name, _, choice = entry.rpartition("=")
        if choice not in ("repair", "keep"):
            problems.append(f"--heart-for {entry}: write PATIENT=repair or PATIENT=keep.")
        elif name not in named:
            problems.append(f"--heart-for {entry}: no such patient, or its files are wrong.")
        elif named[name].labels is None:
            problems.append(f"--heart-for {entry}: this patient has no labels, so no heart to decide on.")
        elif chosen.setdefault(name, choice) != choice:
            problems.append(f"--heart-for {entry}: contradicts {name}={chosen[name]}. Keep one of them.")
    return chosen


def _inspect(patient: Patient, source: Path, chosen: Mapping[str, str], otherwise: str) -> Finding:
    """Read a patient's files to the last byte, and decide what to do with the labels.

    Raises:
        Problems: all that is wrong with them.
    """
    problems: list[str] = []
    image = _read(read_volume, patient.image, problems)
    if image is not None and image.grid.n_dims != 3:
        problems.append(f"{patient.image}: has {image.grid.n_dims} dimensions; expected 3.")
    finding = Finding(patient, source, header=patient.labels)
    labels = _read(read_labels, patient.labels, problems) if patient.labels else None
    truth = _read(read_labels, patient.true_heart, problems) if patient.true_heart else None
    if labels is not None:
        unknown = sorted(set(np.unique(labels.voxels).tolist()) - set(LABELS.values()))
        if unknown:
            problems.append(f"{patient.labels}: holds label(s) {unknown}; SegTHOR has {LABELS}.")
    if truth is not None and not _true_heart(truth.voxels).any():
        problems.append(f"{patient.true_heart}: holds no label {HEART}, and is no mask of one structure.")
    if image is not None:
        for path, volume in ((patient.labels, labels), (patient.true_heart, truth)):
            if volume is not None and not _takes_grid(volume.grid, image.grid):
                differences = "; ".join(image.grid.differences(volume.grid))
                problems.append(f"{path}: does not lie on the grid of {patient.image.name}: {differences}.")
    if problems:
        raise Problems(patient.name, problems)
    if labels is None:
        return finding

    if image.grid.differences(labels.grid):
        finding.notes.append("GT has an identity affine: it takes the image's grid")
        finding.rewrite.append("identity affine")
        finding.header = patient.image
    if not stores_integers(patient.labels):
        finding.rewrite.append("not stored as integers")
    heart = np.ascontiguousarray(labels.voxels == HEART)
    if not heart.any():
        finding.heart, finding.because = "keep", "no heart labelled"
        return finding
    _decide(finding, chosen.get(patient.name, otherwise), image.voxels, heart)
    if finding.heart == "repair":
        finding.rewrite.append("heart moved back")
        if _heart.touches_border(heart):
            finding.notes.append("the displaced heart ends at the volume's edge: what lay beyond is lost")
        heart = _heart.move_back(heart)
    if truth is not None:
        iou, distance_mm = _heart.agreement(_true_heart(truth.voxels), heart, image.grid)
        finding.true_heart = {"iou": round(iou, 5), "centroid_distance_mm": round(distance_mm, 3)}
        if iou < LEAST_IOU_WITH_TRUE_HEART:
            finding.notes.append("the heart does not agree with GT2: look at both")
    return finding


def _read(reader: Callable[[Path], Volume], path: Path, problems: list[str]) -> Volume | None:
    """Read a volume; if it cannot be read, enter why into `problems`."""
    try:
        return reader(path)
    except SamnnError as problem:
        problems.append(str(problem))
        return None


def _takes_grid(grid: Grid, image: Grid) -> bool:
    """Whether labels on `grid` belong on the image's: it is the same, or an identity affine of the same shape."""
    return not image.differences(grid) or (grid.shape == image.shape and _is_identity(grid))


def _is_identity(grid: Grid) -> bool:
    """Whether a grid says nothing: the identity affine, as NIfTI (RAS) or ITK (LPS) understands it."""
    directions = [tuple(np.diag([sign, sign, 1]).ravel()) for sign in (-1.0, 1.0)]
    return grid.spacing_mm == (1, 1, 1) and grid.origin_mm == (0, 0, 0) and grid.direction in directions


def _decide(finding: Finding, choice: str, image_hu: np.ndarray, heart: np.ndarray) -> None:
    """Settle on `repair` or `keep`, or `unclear` where the image does not tell."""
    finding.heart, finding.because = choice, "as asked"
    if choice == "auto":
        verdict = _heart.judge(image_hu, heart)
        finding.heart, finding.because = verdict.choice or "unclear", verdict.reason
        finding.can_be_repaired = verdict.can_be_repaired
    elif choice == "repair" and _heart.outside(heart) > _heart.MOST_OUTSIDE:
        raise SamnnError(
            f"{finding.case.labels}: moved back, {_heart.outside(heart):.0%} of the heart would leave the volume, "
            f"so it was not displaced in this way. Use {_settle(finding.case, 'keep')}."
        )
    elif choice == "repair" and _heart.left(heart) < _heart.LEAST_LEFT:
        raise SamnnError(
            f"{finding.case.labels}: moved back, {_heart.left(heart):.0%} of the {np.count_nonzero(heart)} voxels "
            f"of the heart would be left. Use {_settle(finding.case, 'keep')}."
        )


def _settle(patient: Patient, choice: str) -> str:
    return f"--heart-for {shlex.quote(f'{patient.name}={choice}')}"


def _true_heart(labels: np.ndarray) -> np.ndarray:
    """The heart in a label map, or the one structure in a mask; empty if there is neither."""
    values = set(np.unique(labels).tolist()) - {0}
    return labels == (values.pop() if len(values) == 1 else HEART)


def _write(dataset: _layout.RawDataset, finding: Finding) -> dict[str, Any]:
    patient = finding.case

    def origin(path: Path) -> dict[str, str]:
        return {"source": path.relative_to(finding.source).as_posix(), "sha256": _layout.sha256(path)}

    def sizes(*paths: Path) -> dict[str, int]:
        return {str(path.relative_to(dataset.folder)): path.stat().st_size for path in paths}

    image = dataset.add_image(patient.image, patient.name, test=patient.test)
    entry: dict[str, Any] = {"test": patient.test, "image": origin(patient.image)}
    if patient.labels is None:
        return entry | {"files": sizes(image)}
    entry["labels"] = origin(patient.labels) | {"rewritten_because": finding.rewrite}
    entry["heart"] = {"decision": finding.heart, "because": finding.because}
    if finding.rewrite:
        labels = read_labels(patient.labels).voxels.astype(np.uint8)
        if finding.heart == "repair":
            entry["heart"] |= _move_heart_back(labels)
        written = dataset.write_labels(labels, patient.name, like=finding.header, test=patient.test)
    else:
        written = dataset.add_labels(patient.labels, patient.name, test=patient.test)
    if patient.true_heart is not None:
        entry["heart"]["against_true_heart"] = origin(patient.true_heart) | finding.true_heart
    if finding.notes:
        entry["notes"] = finding.notes
    return entry | {"files": sizes(image, written)}


def _move_heart_back(labels: np.ndarray) -> dict[str, int]:
    """Replace the displaced heart by the repaired one in place; every other voxel stays. Return voxel counts."""
    displaced = np.ascontiguousarray(labels == HEART)
    repaired = _heart.move_back(displaced).astype(bool)
    others = repaired & (labels != HEART) & (labels != LABELS["background"])
    labels[displaced] = LABELS["background"]
    labels[repaired] = HEART
    return {
        "displaced_voxels": int(displaced.sum()),
        "repaired_voxels": int(repaired.sum()),
        "other_labels_overwritten_voxels": int(others.sum()),
    }


def _unclear(findings: Sequence[Finding]) -> list[str]:
    """Ask for a decision on every heart of which the image does not tell whether it was displaced."""
    return [
        f"{finding.case.labels}: the image does not tell whether the heart was displaced ({finding.because}). "
        f"Look at it, then add {_choices_left(finding)}."
        for finding in findings
        if finding.heart == "unclear"
    ]


def _choices_left(finding: Finding) -> str:
    choices = ["repair", "keep"] if finding.can_be_repaired else ["keep"]
    return " or ".join(_settle(finding.case, choice) for choice in choices)


def _print_report(findings: Sequence[Finding], outcome: str) -> None:
    table = Table(Column("patient", no_wrap=True), "heart", "why", "labels", title="SegTHOR")
    for finding in findings:
        reasons = [finding.because, *finding.notes]
        if finding.true_heart:
            reasons.append(
                "GT2: IoU {iou:.3f}, centroids {centroid_distance_mm:.1f} mm apart".format(
                    **finding.true_heart
                )
            )
        if finding.case.test:
            reasons.insert(0, "test patient")
        table.add_row(
            Text(finding.case.name),
            finding.heart,
            Text("; ".join(filter(None, reasons)), style="yellow" if finding.notes else ""),
            "none" if finding.case.labels is None else "rewritten" if finding.rewrite else "copied",
        )
    try:
        console = Console()
        console.print(table)
        console.print(Text(outcome), soft_wrap=True)
    except (OSError, UnicodeError) as error:
        raise SamnnError(f"{outcome}, but the table cannot be printed ({error}).") from error
