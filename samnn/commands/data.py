"""`samnn convert`, `samnn check`: data into nnU-Net raw format."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class FoundByFileName(TyperGroup):
    """A command group whose commands are the modules of a room: a new file is a new command."""

    room = "samnn.dataset_conversion"
    function = "convert"

    def list_commands(self, ctx: Any) -> list[str]:
        folder = Path(importlib.import_module(self.room).__path__[0])
        return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{self.room}.{cmd_name}")
        single = typer.Typer(
            add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False
        )
        single.command(cmd_name)(getattr(module, self.function))
        return typer.main.get_command(single)


convert_app = typer.Typer(cls=FoundByFileName, no_args_is_help=True, rich_markup_mode="markdown")


@convert_app.callback()
def convert() -> None:
    """Convert a dataset into nnU-Net raw format.

    **Examples**

        samnn convert segthor ~/segthor -d 55

        samnn convert segthor --help
    """


def check(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="An nnU-Net raw dataset (`DatasetXXX_Name`), or its number if nnUNet_raw is set.",
        ),
    ],
    fix: Annotated[
        bool,
        typer.Option(
            "--fix",
            help="Mend what loses nothing: float labels of whole numbers become integers, headers that differ by "
            "noise take that of the image, numTraining, and names that can mean one thing only. "
            "Files are replaced, each at one stroke; a link is replaced by a file, and what it points to stays.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --fix: say what would be mended, and change nothing.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the report as JSON, too.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Cases read at the same time. Default: as many as cores and work, at most 8."
        ),
    ] = None,
) -> None:
    """Say everything that is wrong with an nnU-Net raw dataset, and what to do about it.

    Errors: nnU-Net would stop, or train on wrong data without a word; the exit code is 1 then. Warnings: look at
    these. Every file is read to its last byte, once; without --fix nothing is changed.

    **Examples**

        samnn check 55

        samnn check nnUNet_raw/Dataset055_SegTHOR --fix --dry-run

        samnn check nnUNet_raw/Dataset055_SegTHOR --fix -o report.json
    """
    from rich.console import Console

    from samnn.dataset_conversion import checks

    if dry_run and not fix:
        raise typer.BadParameter("says what --fix would do: add --fix", param_hint="--dry-run")
    if out is not None and out.name == "dataset.json":
        raise typer.BadParameter(
            "would replace the dataset's description: name another file", param_hint="--out"
        )
    report = checks.check(folder, workers=workers, show_progress=True)
    if fix and not dry_run:
        checks.mend(report)
    if out is not None:  # before anything is printed: that may fail
        checks.write_report(report, out)
    checks.print_report(report, Console(), dry_run=dry_run)
    if report.count(checks.Severity.error) or report.not_fixed:
        raise typer.Exit(1)
