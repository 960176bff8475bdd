"""The house keeps its own rules: packages, import arrows, file names, one version, a quick and helpful roof."""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import samnn
from samnn.cli import app

HOUSE = Path(__file__).resolve().parents[2]
SETUP = configparser.ConfigParser()
SETUP.read(HOUSE / "setup.cfg", encoding="utf-8")
ROOMS = {  # folder → package
    folder.strip(): package.strip()
    for package, folder in (line.split("=") for line in SETUP["options"]["package_dir"].strip().splitlines())
}
NOT_INSTALLED = {"tests", "benchmarks", "docs", "build", "dist", "demo"}


def python_files() -> Iterator[tuple[str, Path]]:
    """(module name, file) of everything that is installed."""
    for folder, package in ROOMS.items():
        for path in sorted((HOUSE / folder).rglob("*.py")):
            parts = path.relative_to(HOUSE / folder).with_suffix("").parts
            yield ".".join([package, *parts]).removesuffix(".__init__"), path


# ---- packaging


def test_the_packages_list_is_the_folders_with_python_files():
    listed = SETUP["options"]["packages"].split()
    folders = {
        name if path.name == "__init__.py" else name.rpartition(".")[0] for name, path in python_files()
    }
    assert sorted(listed) == sorted(folders)


def test_every_folder_with_python_files_is_a_room_or_named_as_not_installed():
    folders = {path.parent.name for path in HOUSE.glob("[!.]*/*.py")}
    assert folders - NOT_INSTALLED == ROOMS.keys()


def test_every_package_has_an_init_file():
    without = {path.parent for _, path in python_files() if not (path.parent / "__init__.py").is_file()}
    assert not without


def test_the_version_is_written_once_and_the_changelog_knows_it():
    assert SETUP["metadata"]["version"] == "attr: samnn.__version__"
    elsewhere = [
        path.name for path in [HOUSE / "pyproject.toml", HOUSE / "setup.cfg", HOUSE / "Makefile"]
        if samnn.__version__ in path.read_text(encoding="utf-8")
    ]  # fmt: skip
    assert not elsewhere
    changelog = (HOUSE / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith(("## Unreleased", f"## {samnn.__version__}")) for line in changelog)


def test_plugins_are_named_so_that_they_shadow_no_other_module():
    names = {path.name for path in (HOUSE / "plugins").rglob("*.py")} - {"__init__.py"}
    assert names and all(name.startswith("trainer_") for name in names)


# ---- arrows: cli → rooms → samnn.training → samnn.inference → samnn.nn → core

ROOF = (
    "samnn.cli",
    "samnn.commands",
    "samnn.apply_crf",
    "samnn.crossval",
    "samnn.ensemble",
    "samnn.demo",
    "samnn.doctor",
    "samnn.doctor_job",
    "samnn.planning",
)
ROOM = ("samnn.plugins", "samnn.dataset_conversion", "samnn.evaluation3d")
NETWORKS = (
    "torch",
    "torchvision",
    "timm",
    "nnunetv2",
    "dynamic_network_architectures",
    "samnn.training",
    "samnn.inference",
    "samnn.nn",
)
STANDARD = tuple(sys.stdlib_module_names)

# Who is meant (the first prefix that fits) → what must not be imported, anywhere in the file.
FORBIDDEN = {
    "samnn.cli": (),
    "samnn.commands": (),
    "samnn.apply_crf": (),
    "samnn.crossval": (),
    "samnn.ensemble": (),
    "samnn.demo": (),
    "samnn.doctor": (),
    "samnn.doctor_job": (),
    "samnn.planning": (*ROOM, *(one for one in ROOF if one != "samnn.planning")),
    "samnn.inference": (*ROOM, *ROOF, "samnn.training"),
    "samnn.dataset_conversion": (*ROOF, *NETWORKS, "samnn.plugins", "samnn.evaluation3d"),
    "samnn.evaluation3d": (*ROOF, *NETWORKS, "samnn.plugins", "samnn.dataset_conversion"),
    "samnn.plugins": (*ROOF, *ROOM),
    "samnn.training": (*ROOF, *ROOM),
    "samnn.nn": (*ROOF, *ROOM, "samnn.training", "samnn.inference", "nnunetv2"),
    "samnn": (*ROOF, *ROOM, "samnn.training", "samnn.inference", "samnn.nn", "nnunetv2"),  # the core
}  # fmt: skip
# And who may import nothing but these: plugins at the top of the file, networks anywhere.
ALLOWED = {
    "samnn.nn": (*STANDARD, "torch", "timm", "numpy", "samnn"),
    "samnn.plugins": (*STANDARD, "torch", "nnunetv2", "samnn"),
}


def below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def imports(module: str, path: Path) -> Iterator[tuple[str, bool, bool]]:
    """(absolute name, whether it is written relative, whether it stands at the top of the file)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{origin}.{alias.name}", node.level > 0, node in tree.body


@pytest.mark.parametrize(("module", "path"), python_files(), ids=lambda value: str(value).rpartition("/")[2])
def test_imports_follow_the_arrows(module: str, path: Path):
    room = next(prefix for prefix in FORBIDDEN if below(module, (prefix,)))
    for name, relative, at_top in imports(module, path):
        assert not below(name, FORBIDDEN[room]), f"{module} must not import {name}"
        if room in ALLOWED and (at_top or room == "samnn.nn"):
            assert below(name, ALLOWED[room]), f"{module} must not import {name}"
        assert not relative or below(name, (room,)), f"{module}: outside its room {name} must be absolute"
        if relative and room == "samnn.plugins":
            pytest.fail(f"{module}: nnU-Net imports it as a top-level module, so {name} must be absolute")
        if below(name, ("SimpleITK",)):
            assert module == "samnn.io", f"{module}: only samnn.io knows SimpleITK"


def test_evaluation_and_conversion_load_neither_torch_nor_nnunet():
    """What the arrows promise, in a real process: also through third parties."""
    names = [
        name for name, _ in python_files() if below(name, ("samnn.evaluation3d", "samnn.dataset_conversion"))
    ]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names}]; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "nnunetv2"} & set(loaded)


# ---- the roof

SAMNN = [Path(sys.executable).parent / "samnn"]


@pytest.mark.parametrize("path", sorted((HOUSE / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_import_what_is_there(path: Path):
    """They need packages that are not installed here, so nothing else starts them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("samnn"):
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"


def test_help_is_quick_and_imports_nothing_heavy(capsys):
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    listing = subprocess.run([*SAMNN, "--help"], capture_output=True, text=True, check=True, env=environment)
    loaded = {
        line.rpartition("|")[2].strip()
        for line in listing.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "samnn.cli" in loaded
    assert not loaded & {"torch", "nnunetv2", "SimpleITK", "scipy", "numpy", "pandas", "matplotlib"}

    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([*SAMNN, "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    with capsys.disabled():
        print(f"\nsamnn --help: median of 5 runs {statistics.median(seconds):.2f} s")
    assert (
        statistics.median(seconds) < 10
    )  # a sanity check for busy machines; an idle one needs half a second


def commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every command and group, the top included."""
    yield path
    if hasattr(command, "list_commands"):
        context = command.make_context("samnn", [], resilient_parsing=True)
        for name in command.list_commands(context):
            yield from commands(command.get_command(context, name), (*path, name))


@pytest.mark.parametrize(
    "path", commands(typer.main.get_command(app)), ids=lambda path: " ".join(["samnn", *path])
)
def test_every_help_has_an_example(path: tuple[str, ...]):
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0, shown.output
    assert "Example" in shown.output
