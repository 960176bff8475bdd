"""The `samnn` command: the roof over the rooms. Heavy imports stay inside the commands."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from samnn import __version__
from samnn.errors import SamnnError

app = typer.Typer(
    name="samnn",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


convert_app = typer.Typer(cls=FoundByFileName, no_args_is_help=True)
app.add_typer(convert_app, name="convert", help="Convert a dataset into nnU-Net raw format.")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"samnn {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """SAM-family and classic networks as nnU-Net v2 plugins, and evaluation in millimetres."""


def main() -> None:
    """Run the command line; errors a user can mend are printed without a traceback and exit with code 1."""
    try:
        app()
    except SamnnError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(1)


if __name__ == "__main__":
    main()
