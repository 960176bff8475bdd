"""A folder of images → a folder of label maps: preprocessing, network and export at the same time, nothing half-written."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from samnn import hardware
from samnn.atomic import write_json
from samnn.errors import Problems, SamnnError
from samnn.io import read_grid
from samnn.nifti import refuse_incomplete

from .export import export_prediction_from_logits
from .predictor import BatchedPredictor

WAITING_SHARE = 0.5  # of the free memory that logits may fill while they wait for their export
Tell = Callable[[str, int, int], None]  # case, tiles done, tiles of the case


@dataclass(frozen=True)
class Case:
    """An image (a file per channel), the label map of the stage before where there is one, and what to write."""

    name: str
    images: tuple[Path, ...]
    previous: Path | None
    target: Path  # without ending


@dataclass(frozen=True)
class Estimate:
    """What the largest case needs, in bytes."""

    name: str
    needed: int
    free: int

    def __str__(self) -> str:
        needed, free = self.needed / 2**30, self.free / 2**30
        return f"about {needed:.1f} GiB of memory for the largest case, {self.name}; {free:.1f} GiB are free"


def find_cases(
    images: Path,
    out: Path,
    *,
    file_ending: str,
    n_channels: int | None,
    previous: Path | None,
    part: tuple[int, int] = (0, 1),
) -> list[Case]:
    """The cases of a folder: `NAME_0000.ending`, `NAME_0001.ending`, one file per channel of the model.

    n_channels: None for colour pictures, which hold all channels in one file.
    part: (which, of how many), to share a folder between several commands.

    Raises:
        SamnnError: there are none; channels or label maps of the stage before are missing.
    """
    wanted = list(range(n_channels or 1))
    if not images.is_dir():
        raise SamnnError(f"{images}: is no folder. Name the folder of the images.")
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(file_ending)}")
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(images.iterdir()):
        if match := pattern.fullmatch(path.name):
            found.setdefault(match[1], {})[int(match[2])] = path
    if not found:
        raise SamnnError(
            f"{images}: holds no image named CASE_0000{file_ending}. The model wants {len(wanted)} such file(s) a case, "
            "numbered by channel."
        )
    problems = [
        f"{name}: has channels {sorted(files)}, the model wants {wanted}"
        for name, files in found.items()
        if sorted(files) != wanted
    ]
    maps = {name: previous and previous / f"{name}{file_ending}" for name in found}
    problems += [f"{path}: not found" for path in maps.values() if path is not None and not path.is_file()]
    if problems:
        raise Problems(f"{images}: does not fit the model.", problems)
    cases = [
        Case(name, tuple(files[channel] for channel in sorted(files)), maps[name], out / name)
        for name, files in found.items()
    ]
    return cases[part[0] :: part[1]]


def not_finished(cases: Sequence[Case], file_ending: str, *, probabilities: bool) -> list[Case]:
    """Those whose files are not all there; a label map is written last, whole or not at all."""
    endings = [file_ending, ".npz", ".pkl"] if probabilities else [file_ending]
    return [
        case
        for case in cases
        if not all(case.target.with_name(f"{case.target.name}{ending}").is_file() for ending in endings)
    ]


def estimate(predictor: BatchedPredictor, cases: Sequence[Case]) -> Estimate:
    """From the headers: logits in float32 (twice: while one case is exported the next is predicted), and the image."""
    n_classes = predictor.label_manager.num_segmentation_heads
    spacing = list(predictor.configuration_manager.spacing)
    largest, name = 0, ""
    for case in cases:
        try:
            grid = read_grid(case.images[0])
        except SamnnError:  # said when its turn comes; the others are predicted
            continue
        ours = ((*grid.shape, 1)[:3])[::-1]  # nnU-Net's order
        now = ((*grid.spacing_mm, 1.0)[:3])[::-1]
        order = predictor.plans_manager.transpose_forward
        shape, now = [ours[axis] for axis in order], [now[axis] for axis in order]
        wanted = [now[0], *spacing] if len(spacing) < len(now) else spacing
        predicted = math.prod(math.ceil(n * mm / new) for n, mm, new in zip(shape, now, wanted, strict=True))
        twice = 1 + (len(cases) > 1)
        needed = 4 * predicted * (twice * n_classes + 3 * len(case.images)) + 12 * math.prod(shape)
        largest, name = max((largest, name), (needed, case.name))
    return Estimate(name, largest, hardware.free_memory_bytes(torch.device("cpu")))


def predict_cases(
    predictor: BatchedPredictor,
    cases: Sequence[Case],
    *,
    save_probabilities: bool = False,
    preprocessing_threads: int | None = None,
    export_threads: int | None = None,
    on_tiles: Tell | None = None,
    on_case: Callable[[str], None] | None = None,
) -> None:
    """Predict the cases and write their files beside `dataset.json` and `plans.json`, as nnUNetv2_predict does.

    Threads of this process preprocess the cases to come and export those that are done. They wait for each other so
    that memory holds one preprocessed case a thread and one more, and logits of no more than a share of the free memory.

    Args:
        on_tiles: called while a case is predicted. on_case: called with the name of each case that is written.

    Raises:
        Problems: some cases failed, each with its cause; the others are written.
    """
    for folder in {case.target.parent for case in cases}:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "dataset.json", predictor.dataset_json)
        write_json(folder / "plans.json", predictor.plans_manager.plans)
    n_cores = hardware.cores()
    n_before = max(1, min(preprocessing_threads or n_cores // 2, len(cases)))
    n_after = max(1, min(export_threads or n_cores // 2, len(cases)))
    most_waiting = WAITING_SHARE * hardware.free_memory_bytes(torch.device("cpu"))
    problems: list[str] = []
    exports: dict[Future[None], tuple[Case, int]] = {}

    def collect(done: Iterable[Future[None]]) -> None:
        for future in done:
            case, _ = exports.pop(future)
            if (error := future.exception()) is not None:
                problems.append(_cause(case, "was not written", error))
            elif on_case is not None:
                on_case(case.name)

    with ThreadPoolExecutor(n_before) as before, ThreadPoolExecutor(n_after) as after:
        try:
            waiting, ahead = deque(cases), deque()
            while waiting or ahead:
                while waiting and len(ahead) <= n_before:
                    case = waiting.popleft()
                    ahead.append((case, before.submit(preprocess, predictor, case)))
                case, future = ahead.popleft()
                try:
                    image, properties = future.result()
                    predictor.on_tiles = on_tiles and (
                        lambda done, n, name=case.name: on_tiles(name, done, n)
                    )
                    logits = predictor.predict_logits_from_preprocessed_data(image)
                except Exception as error:
                    problems.append(_cause(case, "was not predicted", error))
                    continue
                del image, future
                while exports and sum(size for _, size in exports.values()) + logits.nbytes > most_waiting:
                    collect(wait(exports, return_when=FIRST_COMPLETED).done)
                job = after.submit(
                    export_prediction_from_logits, logits, properties, predictor.configuration_manager,
                    predictor.plans_manager, predictor.dataset_json, str(case.target), save_probabilities,
                )  # fmt: skip
                exports[job] = case, logits.nbytes
                del logits
                collect([job for job in exports if job.done()])
            while exports:
                collect(wait(exports, return_when=FIRST_COMPLETED).done)
        except BaseException:
            before.shutdown(wait=False, cancel_futures=True)
            after.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            predictor.on_tiles = None
    if problems:
        raise Problems(
            f"{len(problems)} of {len(cases)} cases failed; --continue tries them again.", problems
        )


def preprocess(predictor: BatchedPredictor, case: Case) -> tuple[torch.Tensor, dict[str, Any]]:
    """What nnU-Net makes of a case: (channels, *shape), with a channel for each label of the stage before.

    Raises:
        SamnnError: a NIfTI file ends early or is damaged; nnU-Net's reader fills it up with zeros.
    """
    for path in (*case.images, *([] if case.previous is None else [case.previous])):
        refuse_incomplete(path)
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    image, labels, properties = preprocessor.run_case(
        [str(path) for path in case.images],
        None if case.previous is None else str(case.previous),
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    if case.previous is not None:
        classes = predictor.label_manager.foreground_labels
        image = np.vstack((image, convert_labelmap_to_one_hot(labels[0], classes, image.dtype)))
    return torch.from_numpy(image).float(), properties


def _cause(case: Case, what: str, error: BaseException) -> str:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return f"{case.name}: {what}, it does not fit into memory ({error or 'out of memory'})."
    kind = "" if isinstance(error, SamnnError) else f"{type(error).__name__}: "
    return f"{case.name}: {what}: {kind}{error}"
