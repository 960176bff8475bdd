"""`samnn plan` for one dataset: preprocess if asked, choose, explain, write."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console
from rich.text import Text

from samnn.errors import SamnnError
from samnn.planning.display import print_commands, print_plan
from samnn.planning.method import Wishes
from samnn.planning.planner import SamnnPlanner, preprocessed_folder
from samnn.planning.preprocess import is_preprocessed, preprocess


@dataclass(frozen=True)
class Request:
    """The options of `samnn plan`."""

    base: str
    name: str
    gpu_memory_gib: float
    only: tuple[str, ...]
    backbones: tuple[str, ...]
    rank: int | None
    image_size: int | None
    preprocess: bool
    measure: bool
    dry_run: bool


def plan_dataset(dataset: str, request: Request, console: Console) -> None:
    """Plan one dataset and say what was done.

    Raises:
        SamnnError: the plans, the dataset or the request cannot serve; the message says which rule refused.
    """
    if request.preprocess:
        if request.dry_run:
            raise SamnnError("--dry-run writes nothing, and --preprocess does: leave one of them out.")
        preprocess(preprocessed_folder(dataset), request.base)
    planner = SamnnPlanner(
        dataset,
        plans_name=request.name,
        base=request.base,
        wishes=Wishes(request.gpu_memory_gib, request.backbones, request.rank, request.image_size),
        only=request.only,
        device=_device() if request.measure else None,
    )
    with console.status(f"{planner.dataset_name}: choosing …"):
        content, persons = planner.content()
    print_plan(planner, console)
    for name in persons:
        console.print(Text(f"{name} in {planner.path} is not as samnn plan wrote it, and stays as it is."))
    if request.dry_run:
        console.print("\nNothing was written.")
        return
    unchanged = planner.unchanged(content)
    planner.plan_experiment()
    console.print(Text(f"\n{planner.path} {'is like that already' if unchanged else 'written'}. Go on:\n"))
    print_commands(planner, console, preprocessed=is_preprocessed(planner.folder, planner.base))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
