"""Prints what was planned, what it costs, and what else could be chosen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samnn.planning.costs import MEMORY_ERROR, ORIGIN
from samnn.planning.method import CONTEXT_GIB, GIB, USABLE, Choice, Cost, Method, spelled
from samnn.planning.planner import SamnnPlanner


def print_plan(planner: SamnnPlanner, console: Console) -> None:
    """One column a configuration, then remarks, next choices, and where the numbers come from."""
    pairs = list(zip(planner.methods, planner.choices, strict=True))
    columns = [_facts(planner, method, choice) for method, choice in pairs]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column(planner.dataset_name)
    for method, _ in pairs:
        table.add_column(method.trainer.planned.configuration)
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)
    for method, choice in pairs:
        console.print()
        for line in _remarks(planner, method, choice):
            console.print(Text(line))
    budget, asked = planner.wishes.budget_bytes / GIB, planner.wishes.gpu_memory_gib
    console.print(
        f"\n{budget:.1f} of {asked:g} GiB are planned with: CUDA takes {CONTEXT_GIB} itself, and {1 - USABLE:.0%} is left over."
    )
    if planner.measure_on is not None:
        console.print(
            f"Memory and time are those of real steps on {planner.measure_on}, without torch.compile."
        )
    else:
        console.print(
            f"Memory and time are estimates: {ORIGIN}; memory within {MEMORY_ERROR:.0%} there. --measure makes real steps."
        )


def print_commands(planner: SamnnPlanner, console: Console, *, preprocessed: bool) -> None:
    """What to type next."""
    number = int(planner.dataset_name[7:10])
    lines = []
    if not preprocessed:
        lines.append(f"nnUNetv2_preprocess -d {number} -plans_name {planner.base} -c 2d")
    for method in planner.methods:
        name, planned = method.trainer.__name__, method.trainer.planned
        lines.append(
            f"nnUNetv2_train {number} {planned.configuration} 0 -tr {name} -p {planner.plans_identifier}"
        )
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)


def _facts(planner: SamnnPlanner, method: Method, choice: Choice) -> dict[str, str]:
    planned = method.trainer.planned
    cost = planner.cost(method, choice)
    return {
        "trainer": method.trainer.__name__,
        "backbone": str(method.architecture(choice)["arch_kwargs"].get("backbone", "–")),
        "patch": spelled(choice.patch),
        "one tile a slice in": f"{method.slices.one_tile(choice.patch):.0%} of cases",
        "image size": spelled(choice.image_size) if choice.image_size else "the patch",
        "tokens": f"{method.tokens(choice)} of {planned.token} × {planned.token}",
        "work on padding": f"{method.padding(choice):.0%}",
        "batch": str(choice.batch),
        "micro-batch": str(choice.micro_batch) if choice.micro_batch < choice.batch else "whole",
        "memory": f"{cost.peak_bytes / GIB:.1f} GiB",
        "time per step": _seconds(cost.seconds),
    }


def _remarks(planner: SamnnPlanner, method: Method, choice: Choice) -> Iterator[str]:
    """What a person should know of a choice, and the next ones."""
    planned, wishes = method.trainer.planned, planner.wishes
    full, full_image = method.sizes()[0]
    yield f"{planned.configuration}: {method.described(choice)}."
    if choice.image_size is not None and any(
        a < b for a, b in zip(choice.image_size, choice.patch, strict=True)
    ):
        why = "as --image-size asks" if wishes.image_size else "for memory"
        yield f"  The network sees less than the patch has: {spelled(choice.image_size)}, {why}."
    elif choice.image_size != full_image:
        yield f"  image_size is not {spelled(full_image)}, for memory."
    if choice.patch != full:
        yield f"  The patch is not the whole slice, {spelled(full)}, for memory: prediction takes several tiles a slice."
    if choice.micro_batch < choice.batch:
        whole = _cost(planner.cost(method, replace(choice, micro_batch=choice.batch)))
        yield f"  The micro-batch stands under samnn, which nnU-Net's own trainers do not read: they need {whole}."
        if method.count(choice).batch_norm:
            yield "  Batch norm sees micro-batches, so results depend on their size."
    for other in method.next_choices(choice):
        yield f"  or {method.described(other)}: {_cost(planner.cost(method, other))}"


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return "out of memory"
    return f"{cost.peak_bytes / GIB:.1f} GiB, {_seconds(cost.seconds)} a step"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
