"""Patches come from the stated distribution, in any process, and what is reported is what was trained on."""

import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.stats import chisquare
from torch import distributed as dist

from samnn.errors import SamnnError
from samnn.plugins.trainer_enet import nnUNetTrainerENet
from samnn.plugins.trainer_unet import nnUNetTrainerUNet
from samnn.training import places as places_module
from samnn.training import variants
from samnn.training.loaders import SeededBatches
from samnn.training.occupancy import occupancy_of
from samnn.training.places import Places
from samnn.training.sampled_loader import SampledLoader
from samnn.training.samplers import AdaptiveSampler, ClassBalanced, over_ranks

SLICES = np.zeros(
    (12, 20, 24), np.int16
)  # slices 3 to 5 have label 1 in their first rows, slice 9 has label 2
SLICES[3:6, 2:4, 5:20] = 1
SLICES[9, 15, 10] = 2
CUBE = np.zeros((20, 20, 20), np.int16)
CUBE[19, 17, 18] = 1
LABELS = {"background": 0, "one": 1, "two": 2}


@pytest.fixture
def make_loader(tmp_path: Path, preprocessed_folder: Callable) -> Callable:
    """A SampledLoader on label maps; without transforms, so that a patch is the drawn box."""

    def make(
        maps: dict[str, np.ndarray],
        *,
        patch: tuple[int, ...],
        final: tuple[int, ...] | None = None,
        acceptance: list[float],
        forced: float = 0.0,
        weights: list[float] | None = None,
        labels: dict = LABELS,
        regions: list[int] | None = None,
        batch_size: int = 50,
        transforms: object = None,
        previous: Path | None = None,
    ) -> SampledLoader:
        manager = LabelManager(labels, regions)
        classes = manager.foreground_regions if regions else manager.foreground_labels
        classes = [c if isinstance(c, tuple) else int(c) for c in classes]
        annotated = [[-1, *manager.all_labels]] if manager.has_ignore_label else []
        folder = preprocessed_folder(tmp_path / "Plans", maps, classes=[*classes, *annotated])
        index = occupancy_of(
            folder, nnUNetDatasetBlosc2, labels=[int(v) for v in manager.all_labels if v],
            patch_dims=len(patch), places=[tmp_path], tell=lambda _: None,
        )  # fmt: skip
        dataset = nnUNetDatasetBlosc2(str(folder), folder_with_segs_from_previous_stage=previous)
        loader = nnUNetDataLoader(
            dataset, batch_size, patch, final or patch, manager,
            oversample_foreground_percent=forced, transforms=transforms,
        )  # fmt: skip
        return SampledLoader.made_of(
            loader,
            index,
            classes=classes,
            acceptance=acceptance,
            class_weights=weights or [1.0] * len(classes),
        )

    return make


def seeded(
    loader: SampledLoader, seed: int = 1, *, n_workers: int = 0, epoch_of: int = 10**9
) -> SeededBatches:
    return SeededBatches(loader, seed, 0, first=0, n_workers=n_workers, batches_per_epoch=epoch_of)


def places(batches: list[dict], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """First voxels of the drawn boxes, read from a voxel in the middle of each patch (its value is its place)."""
    found = []
    for batch in batches:
        for data in batch["data"][:, 0]:
            data = data if data.ndim == 3 else data[None]
            middle = tuple(n // 2 for n in data.shape)
            place = np.unravel_index(int(data[middle]) - 1, shape)
            found.append(tuple(int(p) - m for p, m in zip(place, middle, strict=True)))
    return found


def stated_weights(
    voxels: np.ndarray, patch: tuple[int, ...], final: tuple[int, ...], acceptance: float, *, block: tuple
) -> dict[tuple[int, ...], float]:
    """Place → its weight, by looking at every voxel of the central part, rounded to blocks, of every place."""
    weights = {}
    starts = []
    for n, p, f in zip(voxels.shape, patch, final, strict=True):
        pad = max(p - f, p - n)
        starts.append(range(-pad // 2, n + pad // 2 + pad % 2 - p + 1))
    for place in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3):
        first = place + np.array(patch) // 2 - np.array(final) // 2
        box = tuple(
            slice(max(a, 0) // e * e, -(-(a + f) // e) * e)
            for a, f, e in zip(first, final, block, strict=True)
        )
        weights[tuple(map(int, place))] = 1.0 if voxels[box].any() else acceptance
    return weights


def assert_drawn_from(found: list, weights: dict) -> None:
    """Pearson's chi-square over every place that has a weight; the others must never be drawn."""
    counts = Counter(found)
    possible = [place for place, weight in weights.items() if weight > 0]
    assert counts.keys() <= set(possible)
    total = sum(weights.values())
    expected = np.array([weights[place] / total * len(found) for place in possible])
    assert expected.min() > 1.5, expected.min()
    p = chisquare([counts[place] for place in possible], expected).pvalue
    assert p > 0.01, p


# ---- the distribution


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 1.0])
def test_2d_patches_come_from_the_stated_distribution(make_loader: Callable, acceptance: float) -> None:
    loader = make_loader({"a": SLICES}, patch=(18, 24), final=(16, 20), acceptance=[acceptance])
    weights = stated_weights(SLICES, (1, 18, 24), (1, 16, 20), acceptance, block=(1, 8, 8))
    assert 0 < sum(weight == 1 for weight in weights.values()) < len(weights) or acceptance == 1
    batches = seeded(loader)
    assert_drawn_from(places([next(batches) for _ in range(60)], SLICES.shape), weights)


def test_3d_patches_come_from_the_stated_distribution(make_loader: Callable) -> None:
    loader = make_loader({"a": CUBE}, patch=(13, 14, 16), final=(13, 12, 14), acceptance=[0.2])
    weights = stated_weights(CUBE, (13, 14, 16), (13, 12, 14), 0.2, block=(8, 8, 8))
    assert Counter(weights.values()) == {1.0: 4 * 4 * 4, 0.2: 8 * 9 * 7 - 4 * 4 * 4}
    batches = seeded(loader)
    assert_drawn_from(places([next(batches) for _ in range(60)], CUBE.shape), weights)


def test_several_processes_draw_the_same_patches_from_that_distribution(make_loader: Callable) -> None:
    loader = make_loader({"a": SLICES}, patch=(18, 24), final=(16, 20), acceptance=[0.3])
    workers = MultiThreadedAugmenter(seeded(loader, n_workers=3), None, 3, wait_time=0.002)
    together = places([next(workers) for _ in range(60)], SLICES.shape)
    workers._finish()
    alone = seeded(loader)
    assert together == places([next(alone) for _ in range(60)], SLICES.shape)
    weights = stated_weights(SLICES, (1, 18, 24), (1, 16, 20), 0.3, block=(1, 8, 8))
    assert_drawn_from(together, weights)


def test_with_an_ignore_label_places_stay_around_annotated_voxels(make_loader: Callable) -> None:
    """Half of the slices are not annotated; there is no patch around them, and acceptance holds for the others.

    Boxes are centred on a voxel, so those around the last two of 20 rows begin in row 8 or 9: beyond the foreground.
    """
    voxels = SLICES.copy()
    voxels[6:] = 3
    labels = LABELS | {"ignore": 3}
    loader = make_loader({"a": voxels}, patch=(20, 24), acceptance=[0.25], labels=labels)
    batches = seeded(loader)
    slices = Counter(place[0] for place in places([next(batches) for _ in range(40)], voxels.shape))
    expected = np.array([0.25] * 3 + [0.9 + 0.1 * 0.25] * 3) * 2000 / 3.525
    assert set(slices) <= set(range(6))
    assert chisquare([slices[z] for z in range(6)], expected).pvalue > 0.01


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 8.0, 3.0]])
def test_forced_patches_draw_classes_of_the_case_by_weight(make_loader: Callable, weights: list) -> None:
    """One case has labels 1 and 2, the other has label 3 too; the voxel is drawn evenly among the class's."""
    other = SLICES.copy()
    other[11, 4:6, 4] = 3
    loader = make_loader(
        {"a": SLICES, "b": other}, patch=(4, 4), acceptance=[0.0], forced=1.0, weights=weights,
        labels=LABELS | {"three": 3},
    )  # fmt: skip
    batches = [next(it) for it in [seeded(loader)] for _ in range(40)]
    by_case: dict[str, Counter] = {"a": Counter(), "b": Counter()}
    for batch in batches:
        for case, slice_ in zip(batch["keys"], places([batch], SLICES.shape), strict=True):
            by_case[case][slice_[0]] += 1
    for case, present in (("a", weights[:2]), ("b", weights)):
        n, total = by_case[case].total(), sum(present)
        share = np.array([present[0] / 3] * 3 + [present[1]] + present[2:]) / total
        found = [by_case[case][z] for z in (3, 4, 5, 9, 11)][: len(share)]
        assert sum(found) == n
        assert chisquare(found, share * n).pvalue > 0.01
    counts = sum(batch["patch_counts"] for batch in batches)
    assert counts[5:].tolist() == [
        sum(by_case[case][z] for case in "ab" for z in group) for group in [(3, 4, 5), (9,), (11,)]
    ]


# ---- single rules


@pytest.mark.parametrize("shape", [(30, 40, 50), (9, 16, 17), (12, 10, 11)])
@pytest.mark.parametrize("pad", [(0, 0, 0), (3, 2, 5)])
def test_places_reach_as_far_as_nnunets(shape: tuple, pad: tuple) -> None:
    patch = (10, 16, 17)
    anywhere = [np.ones(9, np.uint8)] * 3
    places = Places(
        shape, patch=patch, pad=pad, margin=(0, 0, 0), final=patch, occupied=anywhere, block=(8, 8, 8)
    )
    loader = SimpleNamespace(need_to_pad=np.array(pad), patch_size=patch, has_ignore=False)
    drawn = [nnUNetDataLoader.get_bbox(loader, shape, False, None)[0] for _ in range(700)]
    assert [(r[0], r[-1]) for r in places.ranges] == [
        (min(axis), max(axis)) for axis in zip(*drawn, strict=True)
    ]


@pytest.mark.parametrize(
    ("patch", "final"), [((18, 25), (16, 20)), ((17, 20), (16, 19)), ((16, 20), (16, 20))]
)
def test_the_deciding_box_is_what_the_network_gets(
    make_loader: Callable, patch: tuple[int, int], final: tuple[int, int]
) -> None:
    """nnU-Net's own spatial transform, when it neither rotates nor scales, cuts out exactly that box."""
    crop = SpatialTransform(final, patch_center_dist_from_border=0, random_crop=False)
    loader = make_loader({"a": SLICES}, patch=patch, final=final, acceptance=[1.0], transforms=crop)
    boxes: list = []
    ask = loader.occupancy.labels_in
    loader.occupancy.labels_in = lambda case, first, end: (boxes.append((first, end)), ask(case, first, end))[
        1
    ]
    batch = next(seeded(loader))
    for (first, end), got in zip(boxes, batch["data"][:, 0].numpy(), strict=True):
        inside = tuple(slice(max(a, 0), b) for a, b in zip(first, end, strict=True))
        drawn = np.arange(1, SLICES.size + 1).reshape(SLICES.shape)[inside]
        assert set(np.unique(got)) - {0} == set(drawn.ravel().tolist())


def test_a_case_without_foreground_is_drawn_as_nnunet_does(make_loader: Callable) -> None:
    empty = np.zeros_like(SLICES)
    loader = make_loader({"a": empty}, patch=(20, 24), acceptance=[0.0], forced=0.5)
    batches = seeded(loader)
    drawn = [next(batches) for _ in range(20)]
    slices = Counter(place[0] for place in places(drawn, empty.shape))
    assert chisquare([slices[z] for z in range(12)]).pvalue > 0.01
    assert sum(batch["patch_counts"] for batch in drawn).tolist() == [1000, 1000, 0, 0, 0, 0]


def test_the_cases_of_a_batch_stay_nnunets(make_loader: Callable) -> None:
    """Rejecting patches does not push cases with little foreground out."""
    maps = {"a": SLICES, "b": np.zeros_like(SLICES), "c": np.roll(SLICES, 3, axis=0)}
    loader = make_loader(maps, patch=(20, 24), acceptance=[0.0])
    batches = seeded(loader)
    cases = Counter(case for _ in range(30) for case in next(batches)["keys"])
    assert chisquare([cases[case] for case in "abc"]).pvalue > 0.01


def test_after_too_many_rejections_a_patch_is_placed_as_a_forced_one(
    make_loader: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places_module, "MOST_DRAWS", 2)
    loader = make_loader({"a": SLICES}, patch=(4, 4), acceptance=[0.0])
    counts = next(seeded(loader))["patch_counts"]
    assert counts.tolist()[:2] == [50, 0] and counts[4:].tolist() == [0, 0]


def test_regions_and_the_previous_stage(make_loader: Callable, tmp_path: Path) -> None:
    """A region is there where any of its labels is; the previous stage's segmentation decides nothing."""
    import blosc2

    (tmp_path / "previous").mkdir()
    everywhere = np.ones(SLICES.shape, np.uint8)
    blosc2.asarray(everywhere, urlpath=str(tmp_path / "previous" / "a.b2nd"))
    loader = make_loader(
        {"a": SLICES}, patch=(20, 24), acceptance=[0.5], regions=[1, 2], previous=str(tmp_path / "previous"),
        labels={"background": 0, "whole": [1, 2], "core": 2},
    )  # fmt: skip
    batches = seeded(loader)
    drawn = [next(batches) for _ in range(10)]
    slices = Counter(place[0] for place in places(drawn, SLICES.shape))
    with_one, with_two = slices[3] + slices[4] + slices[5], slices[9]
    counts = sum(batch["patch_counts"] for batch in drawn)
    assert counts.tolist() == [500, 500 - with_one - with_two, with_one + with_two, with_two, 0, 0]


# ---- epochs and processes


def by_epoch(batches: Iterator[dict], n_epochs: int, n: int) -> list[int]:
    """Patches without foreground in each epoch."""
    return [sum(int(next(batches)["patch_counts"][1]) for _ in range(n)) for _ in range(n_epochs)]


def test_each_batch_has_the_acceptance_of_the_epoch_that_uses_it(make_loader: Callable) -> None:
    """Three workers make batches ahead; none of an epoch without empty patches has one."""
    loader = make_loader({"a": SLICES}, patch=(20, 24), acceptance=[0.0, 1.0, 0.0, 1.0], batch_size=8)
    alone = by_epoch(seeded(loader, epoch_of=4), 4, 4)
    workers = MultiThreadedAugmenter(seeded(loader, n_workers=3, epoch_of=4), None, 3, wait_time=0.002)
    together = by_epoch(workers, 4, 4)
    workers._finish()
    assert together == alone
    assert alone[0] == alone[2] == 0 and min(alone[1], alone[3]) > 10
    late = SeededBatches(loader, 1, 0, first=4, n_workers=0, batches_per_epoch=4)  # a resumed run
    assert by_epoch(late, 3, 4) == alone[1:]


def test_spawned_workers_make_the_same_batches(
    make_loader: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader({"a": SLICES}, patch=(18, 24), acceptance=[0.5], forced=0.3)
    again = pickle.loads(pickle.dumps(seeded(loader)))
    alone = seeded(loader)
    assert all(torch.equal(next(again)["data"], next(alone)["data"]) for _ in range(2))

    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        workers = MultiThreadedAugmenter(seeded(loader, n_workers=1), None, 1, wait_time=0.002)
        spawned = [next(workers) for _ in range(2)]
        workers._finish()
    finally:
        multiprocessing.set_start_method(before, force=True)
    alone = seeded(loader)
    for batch, other in zip(spawned, alone, strict=False):
        assert torch.equal(batch["data"], other["data"])
        assert batch["patch_counts"].tolist() == other["patch_counts"].tolist()


def _rank(rank: int, port: int, out: "multiprocessing.Queue") -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    out.put(over_ranks(np.array([4, 1 + rank, 10**10])).tolist())
    dist.destroy_process_group()


def test_counts_of_all_ranks_are_added_up() -> None:
    assert over_ranks(np.array([1, 2])).tolist() == [1, 2]  # no ranks
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, port, out)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    assert [out.get(timeout=60) for _ in ranks] == [[8, 3, 2 * 10**10]] * 2
    for rank in ranks:
        rank.join()


# ---- the trainer


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0, 0.25, 0.5, 0.75]),
        ("cosine", [0, 0.1464466, 0.5, 0.8535534]),
        ("step", [0, 0, 1, 1]),
        ("constant", [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    trainer = SimpleNamespace(
        num_epochs=4, acceptance_schedule=schedule, acceptance_step=0.5, acceptance_constant=0.5
    )
    found = [AdaptiveSampler.background_acceptance(trainer, epoch) for epoch in range(4)]
    assert found == pytest.approx(expected, abs=1e-7)


def test_wrong_attributes_are_refused() -> None:
    settings = {"num_epochs": 4, "acceptance_step": 0.5, "acceptance_constant": 0.5}
    trainer = SimpleNamespace(**settings, acceptance_schedule="quadratic")
    with pytest.raises(SamnnError, match="'quadratic'; use one of linear, cosine, step, constant"):
        AdaptiveSampler.background_acceptance(trainer, 0)
    trainer = SimpleNamespace(**settings | {"acceptance_constant": 2}, acceptance_schedule="constant")
    with pytest.raises(SamnnError, match="acceptance_constant is 2"):
        AdaptiveSampler.background_acceptance(trainer, 0)
    for weights in (
        {"heart": 1.0},
        {"heart": 1.0, "esophagus": 0.0},
        {"heart": 1, "esophagus": float("nan")},
    ):
        with pytest.raises(SamnnError, match="give every one of heart, esophagus a positive weight"):
            ClassBalanced.forced_class_weights(
                SimpleNamespace(class_weights=weights), {"heart": 5, "esophagus": 1}
            )


def test_default_class_weights_are_inverse_frequencies() -> None:
    voxels = {"heart": 300, "esophagus": 100, "nowhere": 0}
    found = ClassBalanced.forced_class_weights(SimpleNamespace(class_weights=None), voxels)
    assert found == pytest.approx({"heart": 0.25, "esophagus": 0.75, "nowhere": 0})


def test_both_suffixes_have_their_place_in_a_name() -> None:
    name = "nnUNetTrainerENet_GDL_fp32_AdaptiveSampler_ClassBalanced_3epochs_seed1"
    trainer = variants.resolve(nnUNetTrainerENet, name)
    assert issubclass(trainer, AdaptiveSampler) and issubclass(trainer, ClassBalanced)
    with pytest.raises(SamnnError, match=f"Use {name}"):
        variants.resolve(
            nnUNetTrainerENet, "nnUNetTrainerENet_GDL_fp32_ClassBalanced_AdaptiveSampler_3epochs_seed1"
        )


class nnUNetTrainerMine(AdaptiveSampler, ClassBalanced, nnUNetTrainerUNet):
    acceptance_schedule = "constant"
    acceptance_constant = 0.25
    class_weights = {"whole": 1.0, "core": 3.0}  # noqa: RUF012


def test_a_trainer_of_ones_own_sets_schedule_and_weights(make_trainer: Callable) -> None:
    """502: regions and ignore label, in 2D."""
    stock = make_trainer("nnUNetTrainerUNet", dataset="502").my_init_kwargs
    trainer = nnUNetTrainerMine(**stock | {"plans": stock["plans"] | {"continue_training": False}})
    trainer.initialize()
    training = trainer.get_dataloaders()[0].data_loader
    loader = training.loader
    assert loader.classes == [(1, 2), 2]
    assert set(loader.acceptance) == {0.25}
    assert loader.class_weights == [0.25, 0.75]
    batch = next(training)
    n, without, whole, core, *forced = batch["patch_counts"]
    assert n == len(batch["data"]) == without + whole
    assert whole >= core > 0 and sum(forced) == n - round(0.67 * n)


def test_without_a_seed_batches_are_numbered_and_the_checkpoint_keeps_their_seed(
    make_trainer: Callable, tmp_path: Path
) -> None:
    name = "nnUNetTrainerENet_AdaptiveSampler_2epochs_3iters"
    first, second, third = (make_trainer(name) for _ in range(3))
    first.initialize()
    drawn = next(first.get_dataloaders()[0])["data"].clone()
    first.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    second.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    assert second.loader_seed == first.loader_seed
    second.current_epoch = 0
    assert torch.equal(next(second.get_dataloaders()[0])["data"], drawn)
    third.initialize()
    third.get_dataloaders()
    assert third.loader_seed != first.loader_seed


# ---- a real training, killed and continued

NAME = "nnUNetTrainerENet_AdaptiveSampler_ClassBalanced_2epochs_8iters_seed3"
TRAIN = ("nnUNetv2_train", 501, "2d", 0, "-tr", NAME, "-device", "cpu")


def fold_of(results: Path) -> Path:
    return results / "Dataset501_Tiny" / f"{NAME}__nnUNetPlans__2d" / "fold_0"


@pytest.fixture(scope="module")
def undisturbed(nnunet: SimpleNamespace, command: Callable) -> Path:
    command(*TRAIN)
    return fold_of(nnunet.results)


@pytest.mark.slow
def test_killed_and_continued_equals_undisturbed(
    undisturbed: Path, command: Callable, tmp_path: Path
) -> None:
    """By the stock command; a real SIGTERM in the middle of the second epoch."""
    script = f"""
import os, signal, sys
from samnn.training.steps import GuardedSteps
step = GuardedSteps.train_step
def with_signal(self, batch):
    if (self.current_epoch, self.iteration_in_epoch) == (1, 4):
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, batch)
GuardedSteps.train_step = with_signal
from nnunetv2.run.run_training import run_training_entry
sys.argv = {list(map(str, TRAIN))}
run_training_entry()
"""
    environment = os.environ | {"nnUNet_results": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=600)
    assert killed.returncode == 128 + signal.SIGTERM, killed.stderr[-3000:]
    command(*TRAIN, "--c", nnUNet_results=str(tmp_path))
    resumed, whole = (
        torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)
        for fold in (fold_of(tmp_path), undisturbed)
    )
    for key in ("train_losses", "background_only_share", "class_shares", "forced_class_shares"):
        assert resumed["logging"][key] == whole["logging"][key], key
    for key, value in whole["network_weights"].items():
        assert torch.equal(value, resumed["network_weights"][key]), key
    assert (fold_of(tmp_path) / "sampling.json").read_text() == (undisturbed / "sampling.json").read_text()


def test_shares_are_written_down(undisturbed: Path) -> None:
    content = json.loads((undisturbed / "sampling.json").read_text())
    assert content["classes"] == ["ball", "core"]
    epochs = content["epochs"]
    assert [epoch["acceptance"] for epoch in epochs] == [0, 0.5]
    assert epochs[0]["background_only_share"] == 0
    assert epochs[1]["background_only_share"] > 0
    for epoch in epochs:  # every core lies in a ball
        ball, core = epoch["class_shares"]
        assert core < ball
        assert sum(epoch["forced_class_shares"]) == pytest.approx(1)
        assert epoch["forced_class_shares"][1] > 0.6  # the rarer one
    settings = json.loads((undisturbed / "settings.json").read_text())["settings"]
    assert settings["acceptance_schedule"] == {"value": "linear", "source": "suffix _AdaptiveSampler"}
    weights = settings["class_weights"]
    assert weights["source"] == "suffix _ClassBalanced" and sum(weights["value"].values()) == pytest.approx(1)
    log = "".join(path.read_text() for path in undisturbed.glob("training_log*.txt"))
    assert "patches: 0.0% without foreground (kept with probability 0.000); with ball" in log
