"""What `samnn predict` does: finds the model and the cases, says what they need, and shows how far it is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from samnn.errors import SamnnError

from .cases import Case, estimate, find_cases, not_finished, predict_cases
from .precision import is_emulated
from .predictor import BatchedPredictor


@dataclass(frozen=True)
class Asked:
    """The arguments of the command."""

    images: Path
    out: Path
    model: Path | None
    dataset: str | None
    configuration: str | None
    trainer: str
    plans: str
    folds: list[str] | None
    checkpoint: str
    precision: str
    trust: bool
    step_size: float
    mirroring: bool
    save_probabilities: bool
    continue_prediction: bool
    previous: Path | None
    device: str
    preprocessing_threads: int | None
    export_threads: int | None
    part: tuple[int, int]
    on_device: bool
    progress: bool
    verbose: bool
    dry_run: bool


def predict_folder(asked: Asked) -> None:
    """Predict a folder of images.

    Raises:
        SamnnError: the model or the images cannot be used; some cases failed.
    """
    console = Console(stderr=True)
    device = _device(asked.device)
    predictor = BatchedPredictor(
        tile_step_size=asked.step_size,
        use_mirroring=asked.mirroring,
        perform_everything_on_device=asked.on_device,
        device=device,
        verbose=asked.verbose,
        allow_tqdm=False,
        precision=asked.precision,
        trust=asked.trust,
    )
    if is_emulated(predictor.dtype, device):
        console.print(
            f"note: this CPU only emulates {asked.precision}; --precision fp32 is faster and exact."
        )
    predictor.initialize_from_trained_model_folder(str(_model_folder(asked)), asked.folds, asked.checkpoint)
    stage_before = predictor.configuration_manager.previous_stage_name
    if (stage_before is None) != (asked.previous is None):
        raise SamnnError(
            f"The model needs the label maps of {stage_before}: name their folder with -prev_stage_predictions."
            if asked.previous is None
            else "The model is no cascade: leave -prev_stage_predictions out."
        )
    ending = predictor.dataset_json["file_ending"]
    n_labels = len(predictor.label_manager.foreground_labels) if stage_before is not None else 0
    n_channels = determine_num_input_channels(
        predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    in_colour = predictor.plans_manager.image_reader_writer_class is NaturalImage2DIO
    cases = find_cases(
        asked.images, asked.out, file_ending=ending, n_channels=None if in_colour else n_channels - n_labels, previous=asked.previous,
        part=asked.part,
    )  # fmt: skip
    found = len(cases)
    if asked.continue_prediction:
        cases = not_finished(cases, ending, probabilities=asked.save_probabilities)
    console.print(
        f"{predictor.trainer_name}, {len(predictor.list_of_parameters)} fold(s), "
        f"{'float32' if predictor.dtype is None else str(predictor.dtype).removeprefix('torch.')} on {device.type}; "
        f"{len(cases)} of {found} cases to predict"
    )
    if not cases:
        return
    if not in_colour:  # those are small
        needs = estimate(predictor, cases)
        console.print(("warning: " if needs.needed > needs.free else "") + str(needs))
    if asked.dry_run:
        console.print("\n".join(case.name for case in cases), highlight=False)
        return
    _predict(predictor, cases, asked, console)
    console.print(f"Written: {len(cases)} label maps in {asked.out}")


def _predict(predictor: BatchedPredictor, cases: list[Case], asked: Asked, console: Console) -> None:
    """Predict with bars for cases and tiles, or with a line for each case."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not asked.progress) as progress:
        all_cases, tiles = (
            progress.add_task("cases", total=len(cases)),
            progress.add_task("tiles", total=None),
        )

        def on_tiles(name: str, done: int, total: int) -> None:
            progress.update(tiles, description=f"tiles of {name}", completed=done, total=total)

        def on_case(name: str) -> None:
            progress.advance(all_cases)
            if not asked.progress:
                console.print(f"wrote {name}", highlight=False)

        predict_cases(
            predictor,
            cases,
            save_probabilities=asked.save_probabilities,
            preprocessing_threads=asked.preprocessing_threads,
            export_threads=asked.export_threads,
            on_tiles=on_tiles,
            on_case=on_case,
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SamnnError("There is no CUDA GPU that torch can use here. Use -device cpu.")
    return torch.device(name)


def _model_folder(asked: Asked) -> Path:
    """-m, or the results folder that -d, -tr, -p and -c name."""
    if asked.model is not None:
        return asked.model
    if "nnUNet_results" not in os.environ:
        raise SamnnError("nnUNet_results is not set: name the model's folder with -m, or set it (samnn env).")
    results = Path(os.environ["nnUNet_results"])
    number = int(asked.dataset) if asked.dataset.isdigit() else None
    named = [
        folder
        for folder in sorted(results.glob("Dataset*"))
        if folder.name == asked.dataset
        or (number is not None and folder.name.startswith(f"Dataset{number:03d}_"))
    ]
    if len(named) != 1:
        raise SamnnError(
            f"{results}: has {len(named)} folders of dataset {asked.dataset}. Name the model's folder with -m."
        )
    folder = named[0] / f"{asked.trainer}__{asked.plans}__{asked.configuration}"
    if not folder.is_dir():
        trained = ", ".join(sorted(path.name for path in named[0].iterdir() if path.is_dir())) or "none"
        raise SamnnError(f"{folder}: not found. Models of this dataset: {trained}.")
    return folder
