"""The index says of every box which labels it holds; built once, whatever starts, dies or may not write."""

import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from samnn.atomic import only_writer
from samnn.errors import SamnnError
from samnn.training.occupancy import BLOCK, Occupancy, blocks_of, occupancy_of


class Undecodable(nnUNetDatasetBlosc2):
    """Decoding an image or a segmentation is an error."""

    def load_case(self, identifier):
        raise AssertionError(f"{identifier} was decoded")


class Deadly(nnUNetDatasetBlosc2):
    """The process that reads the second case is killed."""

    def load_case(self, identifier):
        if identifier == "b" and self.identifiers == ["b"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load_case(identifier)


@pytest.fixture
def folder(tmp_path: Path, preprocessed_folder: Callable) -> Path:
    """Three cases: label 1 in the first voxel of a, label 9 in the last one of b, nothing in c."""
    maps = {case: np.zeros((3, 20, 30), np.int16) for case in "abc"}
    maps["a"][0, 0, 0], maps["b"][-1, -1, -1] = 1, 9
    return preprocessed_folder(tmp_path / "data" / "Plans_2d", maps, classes=[1, 9])


def index_of(folder: Path, dataset_class: type = nnUNetDatasetBlosc2, **other) -> tuple[Occupancy, list[str]]:
    """The index beside `folder`, and what it told."""
    told: list[str] = []
    arguments = {"labels": [1, 9], "patch_dims": 2, "places": [folder.parent]} | other
    return occupancy_of(folder, dataset_class, tell=told.append, **arguments), told


def found(index: Occupancy, case: str, first: tuple, end: tuple) -> list[int]:
    bits = np.unpackbits(index.labels_in(case, first, end), bitorder="little")
    return [label for label, bit in zip(index.labels, bits, strict=False) if bit]


def in_new_process(function: Callable, *arguments: object) -> object:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()} - {folder.name}


FILE = "samnn_occupancy_Plans_2d_1x8x8.bin"


def test_boxes_hold_the_labels_of_the_blocks_they_touch(folder: Path) -> None:
    index, _ = index_of(folder)
    assert found(index, "a", (0, 0, 0), (1, 1, 1)) == [1]
    assert found(index, "a", (0, 7, 7), (1, 8, 8)) == [1]  # beside it, in the same block
    assert found(index, "a", (0, 8, 0), (1, 20, 30)) == []
    assert found(index, "a", (1, 0, 0), (3, 20, 30)) == []  # slices are exact
    assert found(index, "b", (2, 19, 29), (3, 20, 30)) == [9]
    assert found(index, "b", (2, 12, 20), (3, 99, 99)) == [9]  # over the border
    assert found(index, "b", (-9, -9, -9), (0, 0, 0)) == []  # outside
    assert found(index, "c", (0, 0, 0), (3, 20, 30)) == []
    assert [index.has_foreground(case) for case in "abc"] == [True, True, False]
    assert (index.voxels("abc", [1]), index.voxels("abc", [1, 9]), index.voxels("ac", [9])) == (1, 2, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_box_rounded_to_blocks_holds_what_its_voxels_hold(data: st.DataObject) -> None:
    """blocks_of against looking at every voxel, for up to 20 labels, 2D and 3D, −1 and other values."""
    shape = data.draw(st.tuples(*[st.integers(1, 20)] * 3))
    labels = sorted(data.draw(st.sets(st.integers(1, 40), min_size=1, max_size=20)))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    values = np.array([-1, 0, 41, *labels])
    voxels = np.where(rng.random(shape) < 0.02, rng.choice(values, shape), 0).astype(np.int16)
    block = BLOCK[data.draw(st.sampled_from([2, 3]))]
    blocks, counts = blocks_of(voxels, labels, block)
    assert counts.tolist() == [(voxels == label).sum() for label in labels]
    assert blocks.shape[:3] == tuple(-(-n // edge) for n, edge in zip(shape, block, strict=True))
    for place in np.ndindex(*blocks.shape[:3]):
        part = voxels[tuple(slice(i * e, (i + 1) * e) for i, e in zip(place, block, strict=True))]
        bits = np.unpackbits(blocks[place], bitorder="little")[: len(labels)]
        assert bits.tolist() == [label in part for label in labels]


def test_it_knows_patches_that_class_locations_mistake(tmp_path: Path, preprocessed_folder: Callable) -> None:
    """An organ of more than 1e5 voxels: nnU-Net stores a part of it, so some patches at its rim seem empty."""
    where = np.indices((64, 64, 64))
    organ = ((where - 32) ** 2).sum(axis=0) < 30**2
    assert organ.sum() > 100_000
    folder = preprocessed_folder(tmp_path / "Plans_3d", {"a": organ.astype(np.int16)}, classes=[1])
    index, _ = index_of(folder, labels=[1], patch_dims=3)
    stored = nnUNetDatasetBlosc2(str(folder)).load_case("a")[3]["class_locations"][1][:, 1:]
    assert len(stored) == 10_000
    rng = np.random.default_rng(0)
    mistaken = n_near = n_with = 0
    for first in rng.integers(0, 64 - 8, (3000, 3)):
        end = first + 8
        holds = organ[tuple(map(slice, first, end))].any()
        n_with += holds
        mistaken += holds and not ((stored >= first) & (stored < end)).all(axis=1).any()
        says = bool(index.labels_in("a", first, end).any())
        assert says or not holds  # it never takes a patch with foreground for empty
        rounded = tuple(slice(8 * (a // 8), -(-b // 8) * 8) for a, b in zip(first, end, strict=True))
        assert says == organ[rounded].any()
        n_near += says and not holds
    assert mistaken > 0.01 * n_with, (mistaken, n_with)
    assert n_near > 0  # what the rounding costs


def test_it_is_built_once_and_then_decodes_nothing(folder: Path) -> None:
    _, told = index_of(folder)
    assert told[-1].startswith("Read 3 segmentations in ")
    index, told = index_of(folder, Undecodable)
    assert told == []
    assert found(index, "b", (2, 0, 0), (3, 20, 30)) == [9]
    assert beside(folder) == {FILE}


@pytest.mark.parametrize(
    "change", ["content", "time", "a case more", "a case less", "labels", "damage", "cut off", "emptied"]
)
def test_it_serves_only_the_data_it_was_made_from(
    folder: Path, preprocessed_folder: Callable, change: str
) -> None:
    index_of(folder)
    other: dict = {}
    if change == "content":
        preprocessed_folder(folder, {"c": np.ones((3, 20, 30), np.int16)}, classes=[1, 9])
    elif change == "time":
        os.utime(folder / "a_seg.b2nd", ns=(0, 0))
    elif change == "a case more":
        preprocessed_folder(folder, {"d": np.ones((3, 20, 30), np.int16)}, classes=[1, 9])
    elif change == "a case less":
        for path in folder.glob("c*"):
            path.unlink()
    elif change == "labels":
        other["labels"] = [1, 5, 9]
    else:
        content = (folder.parent / FILE).read_bytes()
        new = {"damage": content[:-30] + bytes(30), "cut off": content[:100], "emptied": b""}[change]
        (folder.parent / FILE).write_bytes(new)
    index, told = index_of(folder, **other)
    assert told[-1].startswith("Read ")
    assert found(index, "b", (2, 0, 0), (3, 20, 30)) == [9]
    assert index_of(folder, Undecodable, **other)[1] == []


def test_2d_and_3d_patches_of_one_folder_have_an_index_each(folder: Path) -> None:
    for _ in range(2):
        flat, deep = index_of(folder, patch_dims=2)[0], index_of(folder, patch_dims=3)[0]
        assert found(flat, "a", (1, 0, 0), (2, 1, 1)) == []
        assert found(deep, "a", (1, 0, 0), (2, 1, 1)) == [1]


def _told(folder: Path) -> list[str]:
    return index_of(folder)[1]


def test_of_five_jobs_that_start_at_once_one_builds(folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool(5) as pool:
        with only_writer(folder.parent / FILE):  # all five are there before the first one may begin
            jobs = [pool.apply_async(_told, (folder,)) for _ in range(5)]
            for job in jobs:
                job.wait(0.3)
            assert not any(job.ready() for job in jobs)
        told = [job.get(timeout=60) for job in jobs]
    assert sum(any(line.startswith("Read") for line in lines) for lines in told) == 1
    assert all("this job builds it, or waits" in lines[0] for lines in told)
    assert beside(folder) == {FILE}


def test_a_job_killed_while_building_leaves_nothing_in_the_way(folder: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=index_of, args=(folder, Deadly))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert FILE not in beside(folder)
    assert index_of(folder)[1][-1].startswith("Read 3")
    assert beside(folder) == {FILE}


def _as_nobody(folder: Path, elsewhere: Path) -> tuple[list[str], list[int]]:
    """Permissions do not bind root: become another user first."""
    if os.geteuid() == 0:
        os.setgid(65534), os.setuid(65534)
    index, told = index_of(folder, places=[folder.parent, elsewhere])
    return told, found(index, "b", (2, 0, 0), (3, 20, 30))


def test_a_read_only_folder_keeps_its_index_elsewhere(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:  # not in tmp_path, whose parents are for us only
        root = Path(scratch)
        data, results = root / "data" / folder.name, root / "results"
        shutil.copytree(folder, data)
        results.mkdir(), results.chmod(0o777)
        root.chmod(0o755), data.parent.chmod(0o555)
        try:
            for told_at_all in (True, False):  # built, then found
                told, labels = in_new_process(_as_nobody, data, results)
                assert bool(told) == told_at_all and labels == [9]
            assert beside(data) == set()
            assert {path.name for path in results.iterdir()} == {FILE}
            (results / FILE).unlink(), results.chmod(0o555)
            with pytest.raises(SamnnError, match=r"can be written to none of: .*/data, .*/results"):
                in_new_process(_as_nobody, data, results)
        finally:
            data.parent.chmod(0o755), results.chmod(0o755)


def test_an_index_in_a_read_only_folder_serves(folder: Path, tmp_path: Path) -> None:
    index_of(folder)
    index, told = index_of(folder, places=[tmp_path / "nowhere", folder.parent])
    assert told == [] and index.path.parent == folder.parent


def test_npz_folders_have_the_same_index(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old" / folder.name
    old.mkdir(parents=True)
    for case in "abc":
        data, seg, _, properties = nnUNetDatasetBlosc2(str(folder)).load_case(case)
        nnUNetDatasetNumpy.save_case(data[:], seg[:], properties, str(old / case))
    one, other = index_of(folder)[0], index_of(old, nnUNetDatasetNumpy)[0]
    for case in "abc":
        assert np.array_equal(one._blocks[case], other._blocks[case])
    assert index_of(old, nnUNetDatasetNumpy)[1] == []


def test_a_missing_segmentation_is_named(folder: Path) -> None:
    (folder / "b_seg.b2nd").unlink()
    with pytest.raises(SamnnError, match=r"b_seg\.b2nd: cannot be read .*nnUNetv2_preprocess"):
        index_of(folder)
