"""Which labels each preprocessed case holds where: all voxels read once, kept in a file, never decoded again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2

from samnn.atomic import only_writer, whole_file
from samnn.errors import SamnnError
from samnn.workers import each_case, sensible_workers

BLOCK = {2: (1, 8, 8), 3: (8, 8, 8)}  # voxels; by the dimensions of a patch
FORMAT = 1  # of the file; a change of its meaning counts up
LENGTH_BYTES = 8


class Occupancy:
    """The labels in every block of voxels of every segmentation in a preprocessed folder.

    A case is cut into blocks of 8 × 8 × 8 voxels from its first voxel on; for 2D patches 1 × 8 × 8, so that slices
    are exact. A block has one bit a label: whether any of its voxels has it. All voxels were looked at, unlike in
    nnU-Net's `class_locations`, which keep 10,000 or 1 % of a class and cannot prove that a box is empty.

    A file holds for each case its blocks and a byte for each layer of them along each axis (whether it holds any
    label); then a description in JSON, then its length in 8 bytes (little-endian). It is mapped into memory, so that
    processes share it and a look reads a few kB, however many cases there are.
    """

    def __init__(self, path: Path) -> None:
        """Open an index.

        Raises:
            ValueError, KeyError, OSError: the file is none.
        """
        self.path = path
        content = np.asarray(np.memmap(path, np.uint8, "r"))
        length = int.from_bytes(content[-LENGTH_BYTES:].tobytes(), "little")
        self.description = json.loads(content[-LENGTH_BYTES - length : -LENGTH_BYTES].tobytes())
        self.block: tuple[int, ...] = tuple(self.description["block"])
        self.labels: list[int] = self.description["labels"]
        self._blocks: dict[str, np.ndarray] = {}
        self._layers: dict[str, list[np.ndarray]] = {}
        self._voxels: dict[str, np.ndarray] = {}
        for case, entry in self.description["cases"].items():
            shape, first = entry["shape"], entry["first_byte"]
            *layers, end = np.cumsum([first, np.prod(shape), *shape[:3]])
            self._blocks[case] = content[first : layers[1]].reshape(shape)
            self._layers[case] = [content[a:b] for a, b in pairwise([*layers[1:], end])]
            self._voxels[case] = np.array(entry["voxels"])

    def __reduce__(self) -> tuple[Any, ...]:
        return Occupancy, (self.path,)  # a worker process maps the file itself

    def labels_in(self, case: str, first: Sequence[int], end: Sequence[int]) -> np.ndarray:
        """The labels in a box of voxels, as the bits of a (bytes,) array: bit i % 8 of byte i // 8 is `labels[i]`.

        first, end: corners of the box in voxels, end excluded; what lies outside the case holds nothing.

        The box is rounded outwards to whole blocks: a label without its bit is surely not in the box; one with it
        is in the box, or beside it by no more than 7 voxels along an axis (2D: along rows and columns).
        """
        (x, y, z), (x_end, y_end, z_end), (dx, dy, dz) = first, end, self.block
        blocks = self._blocks[case]
        touched = blocks[  # written out: this is asked for every patch
            max(x, 0) // dx : max(-(-x_end // dx), 0),
            max(y, 0) // dy : max(-(-y_end // dy), 0),
            max(z, 0) // dz : max(-(-z_end // dz), 0),
        ]
        return np.bitwise_or.reduce(touched, axis=(0, 1, 2))

    def occupied_layers(self, case: str) -> list[np.ndarray]:
        """For each axis, whether each layer of blocks across it holds any label: 0 or 1."""
        return self._layers[case]

    def bits(self, labels: Iterable[int]) -> np.ndarray:
        """The bits of `labels`, to be compared with those of `labels_in`."""
        bits = np.zeros(_n_bytes(self.labels), np.uint8)
        for i in map(self.labels.index, labels):
            bits[i // 8] |= 1 << (i % 8)
        return bits

    def has_foreground(self, case: str) -> bool:
        """Whether any voxel of the case has a label."""
        return bool(self._voxels[case].any())

    def voxels(self, cases: Iterable[str], labels: Sequence[int]) -> int:
        """How many voxels of `cases` have one of `labels`."""
        places = [self.labels.index(label) for label in labels]
        return int(sum(self._voxels[case][places].sum() for case in cases))


def occupancy_of(
    folder: Path,
    dataset_class: type[nnUNetBaseDataset],
    *,
    labels: Sequence[int],
    patch_dims: int,
    places: Sequence[Path],
    tell: Callable[[str], None],
) -> Occupancy:
    """The index of the preprocessed `folder`; built first where there is none of this very data.

    An index is of this very data where it names the same cases, labels and blocks, and each case's file of the
    segmentation still has the size and the time of modification (in ns) it had when it was read.

    Args:
        labels: foreground labels, background and ignore label left out.
        patch_dims: 2 or 3.
        places: folders an index may lie in. The first with a valid one serves; the first that can be written to takes
            a new one. There, jobs that start together wait for the one that builds; it appears whole or not at all.
        tell: gets a line for the log.

    Raises:
        SamnnError: a segmentation is missing, or no place can be written to.
    """
    block = BLOCK[patch_dims]
    name = f"samnn_occupancy_{folder.name}_{'x'.join(map(str, block))}.bin"
    wanted = {
        "format": FORMAT,
        "block": list(block),
        "labels": sorted(map(int, labels)),
        "sources": _sources(folder, dataset_class),
    }
    for place in places:
        found = _valid(place / name, wanted)
        if found is not None:
            return found
    place = next((place for place in places if os.access(place, os.W_OK)), None)
    if place is None:
        raise SamnnError(
            f"{folder}: its occupancy index can be written to none of: {', '.join(map(str, places))}. "
            "Make one of them writable."
        )
    target = place / name
    tell(f"{target}: no index of this data yet; this job builds it, or waits for the one that does.")
    with only_writer(target, wait=True):
        found = _valid(target, wanted)
        if found is None:
            began = time.monotonic()
            _build(target, folder, dataset_class, wanted, tell)
            tell(f"Read {len(wanted['sources'])} segmentations in {time.monotonic() - began:.1f} s.")
            found = Occupancy(target)
    return found


@dataclass(frozen=True)
class _Case:
    name: str


def _sources(folder: Path, dataset_class: type[nnUNetBaseDataset]) -> dict[str, list[int]]:
    """Case → size and time of modification of the file that holds its segmentation."""
    ending = "_seg.b2nd" if issubclass(dataset_class, nnUNetDatasetBlosc2) else ".npz"
    sources = {}
    for case in sorted(dataset_class.get_identifiers(str(folder))):
        path = folder / f"{case}{ending}"
        try:
            status = path.stat()
        except OSError as error:
            raise SamnnError(
                f"{path}: cannot be read ({error.strerror}). Preprocess the dataset again: nnUNetv2_preprocess."
            ) from error
        sources[case] = [status.st_size, status.st_mtime_ns]
    return sources


def _valid(path: Path, wanted: dict[str, Any]) -> Occupancy | None:
    try:
        index = Occupancy(path)
    except (OSError, ValueError, KeyError):
        return None  # not there, or of another making: it is written anew
    is_of = {key: index.description.get(key) for key in ("format", "block", "labels")}
    is_of["sources"] = {case: entry["source"] for case, entry in index.description["cases"].items()}
    return index if is_of == wanted else None


def _build(
    target: Path,
    folder: Path,
    dataset_class: type[nnUNetBaseDataset],
    wanted: dict[str, Any],
    tell: Callable[[str], None],
) -> None:
    cases = [_Case(name) for name in wanted["sources"]]
    n_voxels = len(cases) * int(np.prod(dataset_class(str(folder)).load_case(cases[0].name)[1].shape))
    reads = each_case(
        _read_case,
        cases,
        folder,
        dataset_class,
        wanted["labels"],
        tuple(wanted["block"]),
        workers=sensible_workers(len(cases), n_voxels),
        tell=tell,
    )
    described = {}
    with whole_file(target) as part, open(part, "r+b") as file:
        for case, read, problem in reads:
            if read is None:
                raise SamnnError(f"{folder}: {problem}")
            blocks, voxels = read
            described[case.name] = {
                "first_byte": file.tell(),
                "shape": blocks.shape,
                "voxels": voxels.tolist(),
                "source": wanted["sources"][case.name],
            }
            file.write(blocks.tobytes())
            for others in ((1, 2, 3), (0, 2, 3), (0, 1, 3)):
                file.write(blocks.any(axis=others).tobytes())
        description = {key: wanted[key] for key in ("format", "block", "labels")} | {"cases": described}
        text = json.dumps(description).encode()
        file.write(text + len(text).to_bytes(LENGTH_BYTES, "little"))


def _read_case(
    case: _Case,
    folder: Path,
    dataset_class: type[nnUNetBaseDataset],
    labels: list[int],
    block: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Decode one segmentation; → its blocks and the voxels of each label. Runs in a worker process."""
    _, segmentation, _, _ = dataset_class(str(folder), [case.name]).load_case(case.name)
    return blocks_of(np.asarray(segmentation[0]), labels, block)


def blocks_of(voxels: np.ndarray, labels: list[int], block: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Bits and counts of `labels` in a label map.

    voxels: (X, Y, Z), 8 or 16 bit integers. → (⌈X / block⌉, …, bytes) uint8, a bit a label, and (labels,) voxels.
    """
    bits_of_value = np.zeros((2**16, _n_bytes(labels)), np.uint8)  # −1, outside the body, is the last
    for i, label in enumerate(labels):
        bits_of_value[label, i // 8] |= 1 << (i % 8)
    rows, columns = (np.arange(0, n, edge) for n, edge in zip(voxels.shape[1:], block[1:], strict=True))
    layers = []
    for start in range(0, voxels.shape[0], block[0]):
        layer = np.bitwise_or.reduce(bits_of_value[voxels[start : start + block[0]]], axis=0)
        layer = np.bitwise_or.reduceat(layer, rows, axis=0)
        layers.append(np.bitwise_or.reduceat(layer, columns, axis=1))
    counts = np.bincount(voxels[voxels > 0], minlength=2**16)
    return np.stack(layers), counts[labels]


def _n_bytes(labels: Sequence[int]) -> int:
    return -(-len(labels) // 8)
