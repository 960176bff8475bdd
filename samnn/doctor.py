"""What is missing or wrong in an installation, and how to cure it; and the list of trainers and name suffixes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samnn.environment import EXTERNAL_TRAINERS, our_trainers, trainers_folder
from samnn.errors import SamnnError

OK, WARNING, PROBLEM = "ok", "warning", "problem"
LITTLE_DISK_GIB = 20


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it is, and what to do where it is not well."""

    status: str
    subject: str
    found: str
    cure: str = ""


def examine() -> Iterator[Finding]:
    """Look at everything a training needs, cheap things first."""
    yield Finding(OK, "Python", f"{platform.python_version()} ({sys.executable})")
    yield from _packages()
    yield _torchvision()
    yield _gpu()
    yield from _folders()
    yield from _trainers()
    if os.environ.get("nnUNet_n_proc_DA") == "0":
        yield Finding(
            WARNING,
            "nnUNet_n_proc_DA",
            "is 0",
            "Good for small trainings, but planning crashes: use 1 there.",
        )


def print_findings(console: Console, findings: Iterable[Finding]) -> bool:
    """Print every finding as it is made; → whether there is no problem."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("", "what", "found", "cure"):
        table.add_column(heading, overflow="fold")
    styles = {OK: "[green]ok[/]", WARNING: "[yellow]warning[/]", PROBLEM: "[red]problem[/]"}
    problems = 0
    with console.status("looking …"):
        for finding in findings:
            problems += finding.status == PROBLEM
            # As text: a path may hold what rich takes for markup.
            row = (Text(cell) for cell in (finding.subject, finding.found, finding.cure))
            table.add_row(styles[finding.status], *row)
    console.print(table)
    console.print(f"{problems} problem(s)" if problems else "Ready to train.")
    return problems == 0


def print_trainers(console: Console) -> None:
    """Print every trainer of ours, then every suffix of its name."""
    from samnn.training.variants import OPTIONS

    trainers = our_trainers()
    table = Table("trainer", "patches", "what", box=box.SIMPLE_HEAD, show_edge=False)
    for trainer in trainers:
        dims = " and ".join(f"{d}D" for d in trainer.spatial_dims)
        table.add_row(trainer.__name__, dims, _first_line(trainer))
    console.print(table)
    console.print("\nSuffixes, in the order in which a name lists them:\n")
    table = Table("suffix", "of", "what", box=box.SIMPLE_HEAD, show_edge=False)
    for trainer in trainers:
        for option in trainer.suffixes:
            table.add_row(f"_{option.suffix}", trainer.__name__, option.what)
    for option in OPTIONS:
        table.add_row(f"_{option.suffix}", "all", option.what)
    console.print(table)
    console.print(f"\nExample: nnUNetv2_train 55 2d 0 -tr {trainers[0].__name__}_GDL_100epochs_seed1")


def _packages() -> Iterator[Finding]:
    for line in importlib.metadata.requires("samnn") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue  # an extra
        cure = f"pip install '{requirement}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(PROBLEM, requirement.name, "not installed", cure)
            continue
        fits = requirement.specifier.contains(Version(version), prereleases=True)
        yield (
            Finding(OK, requirement.name, version)
            if fits
            else Finding(PROBLEM, requirement.name, f"{version}, needs {requirement.specifier}", cure)
        )


def _torchvision() -> Finding:
    subject = "torch and torchvision"
    try:
        import torch
        import torchvision
    except (
        ImportError,
        RuntimeError,
        AttributeError,
    ) as error:  # built for another torch: its operators are missing
        cure = "Install both again from one index: pip install --force-reinstall torch torchvision"
        return Finding(PROBLEM, subject, f"do not fit together: {_last_line(error)}", cure)
    return Finding(OK, subject, f"{torch.__version__}, {torchvision.__version__}")


def _gpu() -> Finding:
    try:
        import torch
    except (ImportError, RuntimeError) as error:
        return Finding(PROBLEM, "GPU", f"torch does not import: {_last_line(error)}", "See torch above.")
    if not torch.cuda.is_available():
        return Finding(WARNING, "GPU", "none that torch can use", "nnU-Net's commands need -device cpu then.")
    from samnn.hardware import autocast_dtype

    gpu = torch.cuda.get_device_properties(0)
    precision = str(autocast_dtype(torch.device("cuda"))).removeprefix("torch.")
    return Finding(OK, "GPU", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, trains in {precision}")


def _folders() -> Iterator[Finding]:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(variable)
        if not value:
            yield Finding(PROBLEM, variable, "not set", 'eval "$(samnn env ROOT)"')
            continue
        existing = next((p for p in (Path(value), *Path(value).absolute().parents) if p.exists()), Path("/"))
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            status = WARNING if variable == "nnUNet_raw" and existing.is_dir() else PROBLEM
            yield Finding(
                status,
                variable,
                f"{existing} cannot be written to",
                "Choose another or mend its permissions.",
            )
            continue
        free_gib = shutil.disk_usage(existing).free / 2**30
        found = f"{value}, {free_gib:.0f} GiB free" + (
            "" if existing == Path(value) else " (made when needed)"
        )
        if free_gib < LITTLE_DISK_GIB:
            yield Finding(
                WARNING, variable, found, f"Preprocessed CT takes many GiB: have {LITTLE_DISK_GIB} or more."
            )
        else:
            yield Finding(OK, variable, found)


def _trainers() -> Iterator[Finding]:
    try:
        ours = trainers_folder()
    except SamnnError as error:
        yield Finding(PROBLEM, EXTERNAL_TRAINERS, str(error), "")
        return
    listed = [entry for entry in os.environ.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if entry.strip()]
    for entry in listed:
        if not Path(entry).is_dir():
            yield Finding(WARNING, EXTERNAL_TRAINERS, f"{entry} is no folder", "Take it out of the list.")
        names = {path.name for path in Path(entry).glob("trainer_*.py")} & {
            path.name for path in ours.glob("*.py")
        }
        if names and os.path.realpath(entry) != os.path.realpath(ours):
            found = f"{entry} has {', '.join(sorted(names))} too"
            yield Finding(WARNING, EXTERNAL_TRAINERS, found, "nnU-Net takes the first in the list: keep one.")
    if not any(os.path.realpath(entry) == os.path.realpath(ours) for entry in listed):
        yield Finding(PROBLEM, EXTERNAL_TRAINERS, f"does not list {ours}", 'eval "$(samnn env)"')
        return
    yield from _lookups()


def _lookups() -> Iterator[Finding]:
    """Ask nnU-Net for each trainer as its commands do."""
    try:
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

        names = [trainer.__name__ for trainer in our_trainers()]
    except Exception as error:  # whatever a broken installation raises is the finding
        yield Finding(
            PROBLEM, "trainers", f"cannot be imported: {_last_line(error)}", "See the packages above."
        )
        return
    for name in names:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = find(f"{name}_1epochs")
        except Exception as error:  # one broken file in any listed folder breaks every lookup
            yield Finding(
                PROBLEM,
                name,
                f"nnU-Net's lookup fails: {_last_line(error)}",
                f"Mend or unlist the folder of {EXTERNAL_TRAINERS}.",
            )
            continue
        fits = found.__name__ == f"{name}_1epochs"
        yield Finding(
            OK if fits else PROBLEM, name, "found by nnU-Net" if fits else f"another class answers: {found}"
        )


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
