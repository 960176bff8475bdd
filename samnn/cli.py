"""The `samnn` command: the roof over the rooms."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from samnn import __version__
from samnn.commands.data import check, convert_app
from samnn.commands.models import Folds, crf, export, plan, predict
from samnn.commands.results import compare, evaluate
from samnn.commands.setting_up import demo, doctor, env
from samnn.crossval.commands import SeveralCommand, ensemble, lowdata
from samnn.crossval.commands import app as crossval_app
from samnn.errors import SamnnError
from samnn.weights.commands import app as weights_app


class Roof(TyperGroup):
    """All of `samnn`: what holds for every command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty arguments: as a path they would mean the current folder."""
        if any(arg == "" or (arg.startswith("--") and arg.partition("=")[1:] == ("=", "")) for arg in args):
            ctx.fail("An argument is empty. Is a shell variable not set?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C and SIGTERM unwind it like an error, so that its child processes end, too."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            number = signal.Signals(stop.args[0] if stop.args else signal.SIGINT)
            typer.echo(f"Stopped by {number.name}.", err=True)
            raise typer.Exit(128 + number) from None


app = typer.Typer(
    name="samnn",
    cls=Roof,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    """SAM-family and classic networks as nnU-Net v2 plugins, and evaluation in millimetres.

    **Examples**

        eval "$(samnn env ~/nnunet)"

        samnn convert segthor ~/segthor -d 55

        samnn evaluate labelsTs predictions -o evaluation
    """


app.command()(env)
app.command()(doctor)
app.add_typer(convert_app, name="convert")
app.command()(check)
app.command()(plan)
app.add_typer(weights_app, name="weights")
app.command(cls=Folds)(predict)
app.add_typer(crossval_app, name="crossval")
app.command(cls=SeveralCommand)(lowdata)
app.command(cls=SeveralCommand)(ensemble)
app.command()(crf)
app.command()(evaluate)
app.command()(compare)
app.command()(export)
app.command()(demo)


def main() -> None:
    """Run the command line; errors a user can mend are printed without a traceback and exit with code 1."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # letters that the terminal does not know are shown as codes
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except SamnnError as error:
        _fail(str(error))
    except OSError as error:
        _fail(": ".join(str(part) for part in (error.strerror or error, error.filename) if part is not None))


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def _fail(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    with suppress(OSError):
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), message))
    sys.exit(1)


if __name__ == "__main__":
    main()
