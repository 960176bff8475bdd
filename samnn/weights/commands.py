"""`samnn weights`: lists, downloads, adds and verifies pretrained checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samnn.errors import SamnnError
from samnn.weights.registry import REGISTRY, entry

if TYPE_CHECKING:
    from samnn.weights.download import Tell

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name that `samnn weights list` shows.",
        autocompletion=lambda: list(REGISTRY),
        show_default=False,
    ),
]


@app.callback()
def weights() -> None:
    """Get and check the pretrained weights that trainers start from. Nothing but `get` ever downloads.

    They lie in the folders of SAMNN_WEIGHTS (several, searched in order; `samnn env ROOT` sets one), or else in
    `~/.cache/samnn/weights`.

    **Examples**

        samnn weights list

        samnn weights get sam_vit_b
    """


@app.command("list")
def list_weights() -> None:
    """List the weights samnn knows: size, licence, source, who uses them, and whether they are here.

    **Examples**

        samnn weights list
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from samnn.weights.store import folders, status
    from samnn.weights.users import used_by

    users = used_by()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("name", "size", "licence", "here", "used by"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "size" else "left")
    styles = {"verified": "green", "wrong": "red", "not verified yet": "yellow", "missing": "dim"}
    for known in REGISTRY.values():
        here = status(known)
        size = "" if known.size_bytes is None else f"{known.size_bytes / 1e6:,.0f} MB"
        used = Text(", ".join(users.get(known.name, [])))
        table.add_row(known.name, size, known.licence, Text(here, style=styles[here]), used)
    console = Console()
    console.print(table)
    console.print("from")
    for page in dict.fromkeys(known.page for known in REGISTRY.values()):
        names = ", ".join(known.name for known in REGISTRY.values() if known.page == page)
        console.print(Text(f"  {page}: {names}"), soft_wrap=True)
    console.print("searched")
    for folder in folders():
        console.print(Text(f"  {folder}{'' if folder.is_dir() else ' (does not exist yet)'}"), soft_wrap=True)


@app.command()
def get(name: Name) -> None:
    """Download weights, unless they are here already; a broken download goes on with the same command.

    The file appears under its name once its sha256 is the published one. Proxies are taken from `https_proxy`;
    SAMNN_WEIGHTS_MIRROR names another server (a folder address that holds the files under their own names).

    **Examples**

        samnn weights get sam_vit_b

        SAMNN_WEIGHTS_MIRROR=https://mirror.example.org/weights samnn weights get sam2_hiera_l
    """
    from samnn.weights.download import get as download

    entry(name)  # a wrong name is an error before anything is shown
    with _progress() as tell:
        path, downloaded = download(name, tell=tell)
    typer.echo(f"{'Downloaded and verified' if downloaded else 'Here already'}: {path}")


@app.command()
def add(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A downloaded file, under whatever name.", show_default=False),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="What the file should be. Default: what its sha256 says.",
            autocompletion=lambda: list(REGISTRY),
            show_default=False,
        ),
    ] = None,
) -> None:
    """Copy a downloaded file into the weights folder: for computers without a network.

    Weights of your own need no adding: where a name is asked for, the path of a file serves, too.

    **Examples**

        samnn weights add ~/Downloads/sam_vit_b_01ec64.pth

        samnn weights add ~/Downloads/weights.pth --as medsam_vit_b
    """
    from samnn.weights.store import add as add_file

    with _progress() as tell:
        known, path = add_file(file, name, progress=_counter(tell, file))
    typer.echo(f"{known.name}, verified: {path}")


@app.command()
def verify(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="One name; default: all that are here.",
            autocompletion=lambda: list(REGISTRY),
            show_default=False,
        ),
    ] = None,
) -> None:
    """Hash the weights that are here again and compare them with what is published. Exit code 1 where one is wrong.

    **Examples**

        samnn weights verify

        samnn weights verify sam_vit_b
    """
    from samnn.weights.store import locate, status, verified

    names = (
        [name]
        if name is not None
        else [known.name for known in REGISTRY.values() if status(known) != "missing"]
    )
    if not names:
        typer.echo("No weights here yet: samnn weights list")
    wrong = 0
    for each in names:
        path = locate(each)
        try:
            with _progress() as tell:
                _, sha256 = verified(each, afresh=True, progress=_counter(tell, path))
            typer.echo(f"ok     {each}  {path}  sha256 {sha256}")
        except SamnnError as error:
            wrong += 1
            typer.echo(f"wrong  {each}  {error}")
    if wrong:
        raise typer.Exit(1)


@app.command()
def path(name: Name) -> None:
    """Print where the file of a name is, for scripts. It is not checked: `samnn weights verify` does that.

    **Examples**

        cp "$(samnn weights path sam_vit_b)" /scratch
    """
    from samnn.weights.store import locate

    typer.echo(str(locate(name)).encode(errors="surrogateescape"))


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar with bytes, bytes per second and time left, on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("waiting for its turn", total=None)
        shown = ""

        def tell(what: str, done: int, total: int | None) -> None:
            nonlocal shown
            if what != shown:  # another phase has another speed
                bar.reset(task, description=what, total=total, completed=done)
                shown = what
            bar.update(task, completed=done, total=total)

        yield tell


def _counter(tell: Tell, file: Path) -> Callable[[int], None]:
    """Counts the bytes of `file` that are hashed."""
    done, total = 0, file.stat().st_size if file.is_file() else None

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        tell("checking", done, total)

    return count
