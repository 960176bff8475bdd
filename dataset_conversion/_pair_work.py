"""One case of images and mask: what has to be done with it, and doing it. Runs in threads."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samnn.atomic import whole_file
from samnn.blocks import label_values, rewrite
from samnn.errors import Problems, SamnnError
from samnn.geometry import Grid
from samnn.io import (
    Header,
    Volume,
    read_header,
    read_labels,
    read_volume,
    resample_labels,
    write_like,
    write_volume,
)
from samnn.nifti import ends_as_expected, refuse_incomplete

from . import _dicom, _grids
from ._label_names import LabelNames
from ._layout import RawDataset
from ._pair_files import Pair

_COPIED_AT_ONCE = 1 << 30  # bytes


@dataclass(frozen=True)
class Options:
    """What the user allows, the same for all cases."""

    resample: bool = False  # masks onto other grids, tilted or uneven DICOM series onto upright ones
    series: tuple[str, ...] = ()  # UIDs or descriptions of DICOM series to take
    n_channels: int | None = None  # as many as were named; a 4-D image may be split into so many


@dataclass(frozen=True)
class Channel:
    """Where the voxels of one channel come from, and why they cannot be copied byte by byte; empty: they can."""

    path: Path
    series: _dicom.Series | None = None
    volume: int | None = None  # the number of this volume in a 4-D image
    rewritten: str = ""
    is_float: bool = False


@dataclass
class Plan:
    """What will be done with one case."""

    pair: Pair
    grid: Grid
    channels: list[Channel]
    fit: _grids.Fit | None = None
    mask_grid: Grid | None = None
    mask_is_float: bool = False
    mask_rewritten: list[str] = field(default_factory=list)
    values: set[int] = field(default_factory=set)
    changes: list[str] = field(default_factory=list)  # what the user should know
    ignored: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.pair.name

    @property
    def called(self) -> str:
        return self.pair.called

    @property
    def patient(self) -> str | None:
        return self.pair.patient

    @property
    def is_test(self) -> bool:
        return self.pair.mask is None

    @property
    def has_labels(self) -> bool:
        return self.pair.mask is not None

    @property
    def n_channels(self) -> int:
        return len(self.channels)

    @property
    def sources(self) -> list[Path]:
        """Every file that is read."""
        images = [
            file
            for channel in self.channels
            for file in ([s.path for s in channel.series.slices] if channel.series else [channel.path])
        ]
        return [*dict.fromkeys(images), *([] if self.pair.mask is None else [self.pair.mask])]

    def asked(self) -> dict[str, Any]:
        """What, besides its sources, its files depend on."""
        return {
            "images": [[channel.rewritten, channel.volume] for channel in self.channels],
            "mask": [self.mask_rewritten, list(self.changes)],  # writing may add to them
        }

    def to_do(self, names: LabelNames) -> dict[str, Any]:
        """How its images and mask will be made."""

        def how(because: object) -> str:
            return "to convert" if because else "to copy"

        entry: dict[str, Any] = {
            "images": [{"how": how(c.rewritten), "because": c.rewritten} for c in self.channels]
        }
        if self.has_labels:
            because = [
                *self.mask_rewritten,
                *(["renumbered"] if self.values & names.changed.keys() else []),
            ]
            entry["mask"] = {"how": how(because), "because": because}
        return entry

    def write(self, dataset: RawDataset, names: LabelNames, *, n_channels: int, link: bool) -> dict[str, Any]:
        """Write its files and return its entry in conversion.json; the number of channels is its own."""
        return write(self, dataset.folder, names, link)


def inspect(pair: Pair, options: Options) -> Plan:
    """Read the headers of the images and the whole mask, and decide.

    Raises:
        Problems: all that speaks against the case.
    """
    problems: list[str] = []
    plan = Plan(pair, None, [])
    for path in pair.images:
        try:
            grid = _inspect_image(plan, path, options)
            plan.grid = plan.grid or grid
            if differences := plan.grid.differences(grid):
                problems.append(
                    f"{path}: is not on the grid of {pair.images[0].name}: {'; '.join(differences)}."
                )
        except SamnnError as error:
            problems.append(str(error))
    if pair.mask is not None:
        try:
            _inspect_mask(plan, pair.mask, options)
        except SamnnError as error:
            problems.append(str(error))
    if problems:
        raise Problems(pair.called, problems)
    return plan


def _inspect_image(plan: Plan, path: Path, options: Options) -> Grid:
    """Enter an image's channels into the plan and return its grid."""
    if path.is_dir():
        series = _dicom.find_series(path, options.series)
        if not series.is_regular and not options.resample:
            raise SamnnError(
                f"{path}: {series.irregularity}. Add --resample to put it on an even, upright grid."
            )
        if not series.is_regular:
            plan.changes.append(f"resampled linearly: {series.irregularity}")
        plan.channels.append(Channel(path, series=series, rewritten=f"DICOM, {len(series.slices)} slices"))
        plan.ignored += series.ignored
        return series.grid
    header = read_header(path)
    grid, is_float = header.grid, header.dtype.kind == "f"
    if grid.n_dims == 4 and grid.shape[3] == options.n_channels and len(plan.pair.images) == 1:
        for number in range(grid.shape[3]):
            plan.channels.append(Channel(path, volume=number, rewritten="part of a 4-D image"))
        plan.changes.append(f"4-D image split into {grid.shape[3]} channels")
        return grid.first_axes(3)
    if grid.n_dims == 4 and len(plan.pair.images) == 1:
        raise SamnnError(
            f"{path}: has 4 dimensions, {grid.shape[3]} volumes. If they are channels, `samnn convert pairs "
            "--channels` splits them into as many as are named; of a series over time keep one volume."
        )
    if grid.n_dims != 3:
        raise _not_a_volume(path, grid)
    rewritten = _why_not_as_it_is(path, header)
    plan.channels.append(Channel(path, rewritten=rewritten, is_float=is_float))
    return grid


def _inspect_mask(plan: Plan, path: Path, options: Options) -> None:
    """Enter into the plan how the mask comes onto the image's grid, and its values."""
    header = read_header(path)
    plan.mask_grid = header.grid
    if header.grid.n_dims != 3:
        raise _not_a_volume(path, header.grid)
    plan.values = label_values(path, header)
    if why := _why_not_as_it_is(path, header):
        plan.mask_rewritten.append(why)
    plan.mask_is_float = header.dtype.kind == "f"
    if plan.mask_is_float:
        plan.mask_rewritten.append("stored as floats")
    if plan.grid is None:
        return
    plan.fit = _grids.fit(plan.grid, header.grid)
    if plan.fit.differences:
        said = "; ".join(plan.fit.differences)
        if not options.resample:
            raise SamnnError(
                f"{path}: does not lie on the grid of {plan.pair.images[0].name}: {said}. If both show the same "
                "patient position, `samnn convert pairs --resample` resamples it by nearest neighbour."
            )
        plan.mask_rewritten.append("resampled")
        plan.changes.append(f"mask resampled by nearest neighbour: {said}")
    elif not plan.fit.turn.is_none:
        plan.mask_rewritten.append("axes turned")
        plan.changes.append(f"axes of the mask turned exactly: {plan.fit.turn}")
    elif not plan.fit.is_exact:
        plan.mask_rewritten.append("takes the image's header")
    if not plan.values - {0}:
        plan.changes.append("the mask is empty")


def _not_a_volume(path: Path, grid: Grid) -> SamnnError:
    cure = (
        "Is it a label map?"
        if grid.n_dims > 3
        else "Put slices together, or give it a third axis of one voxel."
    )
    return SamnnError(f"{path}: has {grid.n_dims} dimensions; expected 3. {cure}")


def _why_not_as_it_is(path: Path, header: Header) -> str:
    """Why a file cannot be part of the dataset as it is; empty if it can."""
    if not path.name.endswith(".nii.gz"):
        return f"was {''.join(path.suffixes[-1:]).lstrip('.')}"
    return "was NIfTI-2" if header.is_nifti2 else ""


def write(plan: Plan, folder: Path, names: LabelNames, link: bool) -> dict[str, Any]:
    """Write the files of one case into the dataset's folder and return its entry in conversion.json.

    Raises:
        SamnnError: a source turns out to be damaged, or nothing can be written.
    """
    part = "Ts" if plan.pair.mask is None else "Tr"
    entry: dict[str, Any] = {"images": [], "files": {}}
    targets = []
    split: np.ndarray | None = None
    for number, channel in enumerate(plan.channels):
        target = _new_file(folder / f"images{part}" / f"{plan.name}_{number:04d}.nii.gz")
        if channel.series is not None:
            write_volume(target, _dicom.read_series(channel.series))
            how = "converted"
        elif channel.volume is not None:
            split = read_volume(channel.path).voxels if split is None else split
            write_volume(target, Volume(split[..., channel.volume], plan.grid))
            how = "converted"
        elif channel.rewritten:
            rewrite(channel.path, target)
            how = "converted"
        else:
            if channel.is_float:
                read_volume(channel.path)  # finds NaN
            elif not ends_as_expected(channel.path):
                refuse_incomplete(channel.path)
            how = _take(channel.path, target, link=link)
        entry["images"].append({"source": str(channel.path), "how": how, "because": channel.rewritten})
        if channel.series is not None:
            entry["images"][-1]["series"] = channel.series.uid
        targets.append(target)
    if plan.pair.mask is not None:
        target = _new_file(folder / f"labels{part}" / f"{plan.name}.nii.gz")
        entry["mask"] = {"source": str(plan.pair.mask)} | _write_mask(plan, target, targets[0], names, link)
        targets.append(target)
    entry["files"] = {str(path.relative_to(folder)): path.stat().st_size for path in targets}
    return entry | {"changes": plan.changes, "ignored": plan.ignored}


def _write_mask(
    plan: Plan, target: Path, image: Path, names: LabelNames, link: bool
) -> dict[str, str | list[str]]:
    renumbered = plan.values & names.changed.keys()
    because = [*plan.mask_rewritten, *(["values renumbered"] if renumbered else [])]
    if not because:
        return {"how": _take(plan.pair.mask, target, link=link), "because": []}
    if not (renumbered or plan.fit.differences) and plan.fit.turn.is_none and not plan.mask_is_float:
        rewrite(plan.pair.mask, target, like=image)
        return {"how": "converted", "because": because}
    labels = names.renumber(read_labels(plan.pair.mask).voxels)
    if plan.fit.differences:
        there = set(np.unique(labels).tolist())
        labels = resample_labels(Volume(labels, plan.mask_grid), plan.grid).voxels
        if lost := sorted(there - set(np.unique(labels).tolist()) - {0}):
            _say_lost(plan, lost, names, nothing_left=not labels.any())
    else:
        labels = plan.fit.turn.of_voxels(labels)
    write_like(target, labels, like=image)
    return {"how": "converted", "because": because}


def _say_lost(plan: Plan, lost: list[int], names: LabelNames, *, nothing_left: bool) -> None:
    """Refuse a mask of which resampling leaves nothing; of which it loses some labels, say so."""
    if nothing_left:
        raise SamnnError(
            f"{plan.pair.mask}: no label lies on {plan.pair.images[0].name} where their headers say they are. Do they "
            "belong together?"
        )
    old_values = {new: old for old, new in names.new_values.items()}
    plan.changes.append(f"lost by resampling: value(s) {', '.join(str(old_values[new]) for new in lost)}")


def _new_file(target: Path) -> Path:
    target.parent.mkdir(exist_ok=True)
    target.unlink(missing_ok=True)  # what a killed run has left may be a link to a source
    return target


def _take(source: Path, target: Path, *, link: bool) -> str:
    """Hard-link or copy a file byte by byte and say which; between file systems there are no hard links."""
    if link:
        try:
            os.link(os.path.realpath(source), target)
            return "linked"
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise SamnnError(f"{target}: cannot be linked to {source} ({error.strerror}).") from error
    with whole_file(target) as part, open(source, "rb") as old, open(part, "r+b") as new:
        with suppress(OSError, AttributeError):  # not every system and file system has it
            while os.copy_file_range(old.fileno(), new.fileno(), _COPIED_AT_ONCE):
                pass
        shutil.copyfileobj(old, new)  # what is left
    return "copied"
