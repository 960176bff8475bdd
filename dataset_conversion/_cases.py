"""A case of a public data set: its files and how to read them, checked and written in the way of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samnn.blocks import Blocks, values_in
from samnn.errors import Problems, SamnnError
from samnn.io import Volume
from samnn.labels import MAX_VALUE

from . import _pixels
from ._label_names import LabelNames
from ._layout import RawDataset
from ._pair_files import clean
from ._writing import state_of


@dataclass(frozen=True)
class Case:
    """Where one case comes from. The functions are called in threads, and may raise SamnnError."""

    called: str  # at the source
    files: tuple[Path, ...]  # all that is read: the first image first, labels last
    read_images: Callable[[], Sequence[Volume | Blocks]]  # one a channel
    read_labels: Callable[[], Volume | Blocks] | None = None
    is_test: bool = False
    patient: str | None = None
    picture: Path | None = None  # a file that may be what the dataset is to hold: then it is copied
    sidecar: Callable[[], Mapping[str, Any] | None] | None = None  # JSON beside the dataset, if there is some
    settings: Mapping[str, Any] = field(default_factory=dict)  # JSON of what else the readers depend on
    changes: tuple[str, ...] = ()  # what the user should know

    @property
    def name(self) -> str:
        """The case in the dataset."""
        return clean(self.called)


def refuse_unusable_names(cases: Sequence[Case], where: Path) -> None:
    """Refuse names that are empty, fall together or differ in capitals only, and a source without cases.

    Raises:
        SamnnError: there is no case.
        Problems: names that cannot be used.
    """
    if not cases:
        raise SamnnError(
            f"{where}: holds no case of the layout that --help describes. Is it the right folder?"
        )
    by_key: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_key[case.name.casefold()].append(case)
    problems = [
        f"{', '.join(str(case.files[0]) for case in same)}: would all be case {same[0].name!r}. Rename all but one."
        for same in by_key.values()
        if len(same) > 1
    ]
    problems += [
        f"{case.files[0]}: nothing is left of its name. Rename it."
        for case in cases
        if not case.name.strip("_")
    ]
    if problems:
        raise Problems(f"{where}: nothing was converted, {len(problems)} problem(s):", problems)


@dataclass
class CasePlan:
    """What is known of a case once its files were read."""

    case: Case
    n_channels: int
    states: list[tuple[int, int]]  # of its files before they were read
    values: set[int] = field(default_factory=set)
    changes: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def called(self) -> str:
        return self.case.called

    @property
    def patient(self) -> str | None:
        return self.case.patient

    @property
    def is_test(self) -> bool:
        return self.case.is_test

    @property
    def has_labels(self) -> bool:
        return self.case.read_labels is not None

    @property
    def sources(self) -> list[Path]:
        return list(self.case.files)

    def asked(self) -> dict[str, Any]:
        return {"settings": dict(self.case.settings), "changes": list(self.changes)}

    def to_do(self, names: LabelNames) -> dict[str, Any]:
        entry: dict[str, Any] = {"images": [{"how": "to convert", "because": ""}]}
        return entry | ({"mask": {"how": "to convert", "because": []}} if self.has_labels else {})

    def write(self, dataset: RawDataset, names: LabelNames, *, n_channels: int, link: bool) -> dict[str, Any]:
        """Write images, labels and sidecar.

        Raises:
            SamnnError: a source has changed, is damaged, image and labels do not lie on one grid, nothing can be written.
        """
        case = self.case
        for path, before in zip(case.files, self.states, strict=True):
            if state_of(path) != before:
                raise SamnnError(f"{path}: has changed since it was checked. Run the command again.")
        volumes = list(case.read_images())
        entry: dict[str, Any] = {"images": [], "sources": [str(path) for path in case.files]}
        if case.picture is not None and _pixels.is_png_as_written(case.picture, n_channels):
            how, paths = "copied", [dataset.add_image(case.picture, case.name, test=case.is_test)]
        else:
            volumes *= n_channels if len(volumes) == 1 else 1  # a grey picture among coloured ones
            how = "converted"
            paths = dataset.write_images(volumes, case.name, test=case.is_test, source=case.files[0])
        entry["images"].append({"how": how, "because": ""})
        if case.read_labels is not None:
            labels = case.read_labels()
            _refuse_other_grid(case, volumes, labels)
            if isinstance(labels, Blocks):
                labels = Blocks(map(names.renumber, labels.blocks), names.dtype, labels.grid)
            else:
                labels = Volume(names.renumber(labels.voxels), labels.grid)
            paths.append(dataset.write_label_map(labels, case.name, test=case.is_test, source=case.files[-1]))
            because = ["values renumbered"] if self.values & names.changed.keys() else []
            entry["mask"] = {"how": "converted", "because": because}
        if case.sidecar is not None and (content := case.sidecar()) is not None:
            paths.append(dataset.write_sidecar(content, case.name))
        entry["files"] = {str(path.relative_to(dataset.folder)): path.stat().st_size for path in paths}
        return entry | {"changes": self.changes}


def inspect(case: Case, n_channels: int | None, thorough: bool) -> CasePlan:
    """Read the labels, and the images where `thorough` or the number of channels is not known.

    Raises:
        Problems: all that speaks against the case.
    """
    states = [state_of(path) for path in case.files]
    plan = CasePlan(case, n_channels or 0, states, changes=list(case.changes))
    problems: list[str] = []
    labels, volumes = None, None
    if case.read_labels is not None:
        try:
            labels = case.read_labels()
            plan.values = _values(case, labels)
            if not plan.values - {0}:
                plan.changes.append("the mask is empty")
        except SamnnError as problem:
            problems += getattr(problem, "problems", [str(problem)])
    if thorough or n_channels is None:
        try:
            volumes = case.read_images()
            plan.n_channels = len(volumes)
            for volume in volumes:
                for _ in volume.blocks if isinstance(volume, Blocks) else []:
                    pass  # read to the end, where the checksum is
            if labels is not None:
                _refuse_other_grid(case, volumes, labels)
        except SamnnError as problem:
            problems += getattr(problem, "problems", [str(problem)])
    if thorough and case.sidecar is not None:
        try:
            case.sidecar()
        except SamnnError as problem:
            problems.append(str(problem))
    if problems:
        raise Problems(case.called, problems)
    return plan


def _values(case: Case, labels: Volume | Blocks) -> set[int]:
    """The values in a label map.

    Raises:
        SamnnError: they are no labels.
    """
    values = set()
    for block in labels.blocks if isinstance(labels, Blocks) else [labels.voxels.ravel(order="K")]:
        low, high = int(block.min()), int(block.max())
        if low < 0 or high > MAX_VALUE:
            raise SamnnError(
                f"{case.files[-1]}: holds values from {low} to {high}; labels lie from 0 to {MAX_VALUE}. Is it a label "
                "map?"
            )
        values |= values_in(block)
    return values


def _refuse_other_grid(case: Case, volumes: Sequence[Volume | Blocks], labels: Volume | Blocks) -> None:
    for volume in volumes:
        if differences := volume.grid.differences(labels.grid):
            image, mask = case.files[0], case.files[-1]
            what = "labels do" if image == mask else "does"
            raise SamnnError(
                f"{mask}: {what} not lie on the grid of {'their image' if image == mask else image.name}: "
                f"{'; '.join(differences)}. Are they of one case?"
            )
