"""Integer voxels a block at a time, no volume held whole: the values in a label map, and a file rewritten as NIfTI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samnn.atomic import whole_file
from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Header, read_header, read_labels, read_volume
from samnn.nifti import first_bytes, header_for, is_nifti, load_nifti, voxel_blocks, write_blocks, write_nifti
from samnn.stored import find_stored, splice, stored_blocks


@dataclass(frozen=True)
class Blocks:
    """Integer voxels and the grid they lie on; they can be gone through once."""

    blocks: Iterator[np.ndarray]  # flat, little-endian, in (x, y, z) index order
    dtype: np.dtype
    grid: Grid


def write(path: Path, voxels: Blocks) -> None:
    """Write voxels of three dimensions as NIfTI, whole or not at all.

    Raises:
        SamnnError: what their blocks raise, or NIfTI has no such voxels.
    """
    header = header_for(path, voxels.grid).as_byteswapped("<")  # as the blocks are
    start = first_bytes(path, header, voxels.dtype)
    with whole_file(path) as part:
        write_blocks(part, start, voxels.blocks)


def label_values(path: Path, header: Header) -> set[int]:
    """The values that occur in a label map, which is read to its end; `header` is its own.

    Raises:
        SamnnError: as `read_labels`.
    """
    blocks = _blocks(path, header)
    if blocks is None:
        return values_in(read_labels(path).voxels.ravel(order="K"))
    return set().union(*map(values_in, blocks))


def rewrite(source: Path, target: Path, *, like: Path | None = None) -> None:
    """Write the voxels of `source`, slope applied, as .nii.gz; with `like`, under the header of that file.

    Integers that are packed already, in an NRRD or MetaImage file, are unpacked to see that they are whole, and not
    packed again.

    Raises:
        SamnnError: as `read_volume` and `write_volume`, or the shape is not that of `like`.
    """
    found = read_header(source)
    header = header_for(source, found.grid) if like is None else load_nifti(like).header
    header = header.as_byteswapped("<")  # as the blocks are
    ones = (1,) * (len(header.get_data_shape()) - found.grid.n_dims)  # SimpleITK leaves such axes out
    if header.get_data_shape() != found.grid.shape + ones:
        raise SamnnError(f"{source}: shape {found.grid.shape} does not fit the header of {like}.")
    blocks = _blocks(source, found)
    if blocks is None:
        write_nifti(target, read_volume(source).voxels, header)
        return
    start = first_bytes(target, header, found.dtype)
    stored = None if is_nifti(source) else find_stored(source, found.grid.shape, found.dtype)
    with whole_file(target) as part:
        if stored is None or not splice(stored, start, part):
            write_blocks(part, start, blocks)


def _blocks(path: Path, header: Header) -> Iterator[np.ndarray] | None:
    """The voxels in (x, y, z) order; None where they are no integers as stored, or only ITK can read them."""
    if header.dtype.kind not in "iu":
        return None
    if is_nifti(path):
        stored = load_nifti(path).dataobj
        dtype, blocks = stored.dtype, voxel_blocks(path, stored)
    else:
        dtype, stored = header.dtype, find_stored(path, header.grid.shape, header.dtype)
        blocks = stored and stored_blocks(stored)
    return blocks and (
        np.frombuffer(block, dtype).astype(header.dtype.newbyteorder("<"), copy=False) for block in blocks
    )


def values_in(voxels: np.ndarray) -> set[int]:
    """The values in a row of integers, such as `ravel(order="K")` gives.

    Label maps are even: eight bytes like the eight before hold nothing new.
    """
    per_word = 8 // voxels.itemsize
    whole = len(voxels) // per_word * per_word
    words = np.ascontiguousarray(voxels[:whole]).view(np.uint64)
    fresh = np.unique(np.concatenate([words[:1], words[1:][words[1:] != words[:-1]]]))
    return set(fresh.view(voxels.dtype).tolist()) | set(voxels[whole:].tolist())
