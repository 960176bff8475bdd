"""nnU-Net's environment: the shell lines that show it our trainers and where data lives, and the datasets in there."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samnn.errors import SamnnError

EXTERNAL_TRAINERS = "nnUNet_extTrainer"
ROOTS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
DATASET = re.compile(r"Dataset(\d{3})_.+")
FOLDERS = {  # variable → folder below ROOT
    "nnUNet_raw": "nnUNet_raw",
    "nnUNet_preprocessed": "nnUNet_preprocessed",
    "nnUNet_results": "nnUNet_results",
    "SAMNN_WEIGHTS": "weights",
}


@dataclass
class Settings:
    """Variables to export, and what a person should know about those that are not."""

    variables: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def shell_lines(self) -> str:
        """Lines for `eval` in a POSIX shell. No comments: an interactive zsh would run them as commands."""
        return "".join(
            f"export {variable}={shlex.quote(value)};\n" for variable, value in self.variables.items()
        )


def settings(environment: Mapping[str, str], root: Path | None = None, *, force: bool = False) -> Settings:
    """What to export: our trainers appended to nnU-Net's list and, with `root`, the four folders below it.

    Folders that `environment` names already stay, and a note says so, unless `force`.

    Raises:
        SamnnError: `root`, or a folder above or below it, is a file; it has an unknown ~user; the trainers are not
            installed or cannot be listed.
    """
    ours = str(trainers_folder())
    listed = [entry for entry in environment.get(EXTERNAL_TRAINERS, "").split(os.pathsep) if entry.strip()]
    if not any(os.path.realpath(entry) == os.path.realpath(ours) for entry in listed):
        listed.append(ours)
    result = Settings({EXTERNAL_TRAINERS: os.pathsep.join(listed)})
    if root is None:
        return result

    try:
        root = Path(os.path.abspath(root.expanduser()))
    except RuntimeError as error:
        raise SamnnError(f"{root}: there is no such user. Name another ROOT.") from error
    try:
        os.stat(root)
    except (FileNotFoundError, NotADirectoryError):
        result.notes.append(f"{root} does not exist yet; the first command that writes there makes it.")
    except OSError as error:  # a name too long, a folder without permission
        raise SamnnError(f"{root}: cannot be used ({error.strerror}). Name another ROOT.") from error
    for variable, name in FOLDERS.items():
        folder = root / name
        in_the_way = next(
            (p for p in (*root.parents, root, folder) if os.path.exists(p) and not os.path.isdir(p)), None
        )
        if in_the_way:
            raise SamnnError(f"{in_the_way}: is a file; samnn env needs a folder. Name another ROOT.")
        present = environment.get(variable)
        if present and present != str(folder) and not force:
            result.notes.append(f"{variable} stays {present}; --force replaces it.")
        else:
            result.variables[variable] = str(folder)
    return result


def our_trainers() -> list[type[Any]]:
    """The trainer classes that the plugin files define, by name. Imports torch and nnU-Net."""
    found = []
    for path in sorted(trainers_folder().glob("trainer_*.py")):
        module = importlib.import_module(f"samnn.plugins.{path.stem}")
        found += [
            value
            for name, value in vars(module).items()
            if name.startswith("nnUNetTrainer") and getattr(value, "__module__", None) == module.__name__
        ]
    return sorted(found, key=lambda trainer: trainer.__name__)


def trainers_folder() -> Path:
    """The folder of our trainers, found without importing it: that would import torch.

    Raises:
        SamnnError: it is not installed, or a path separator in its name keeps it out of any list.
    """
    spec = importlib.util.find_spec("samnn.plugins")
    if spec is None or not spec.submodule_search_locations:
        raise SamnnError(
            f"{Path(__file__).parent}: holds no samnn.plugins. From a clone, install it: pip install -e ."
        )
    folder = Path(spec.submodule_search_locations[0])
    if os.pathsep in str(folder):
        raise SamnnError(
            f"{folder}: has a {os.pathsep!r} in its name, at which nnU-Net splits {EXTERNAL_TRAINERS}. "
            "Install samnn under another path."
        )
    return folder


def dataset_there(text: str) -> str:
    """The full name of a dataset, by number or name, of which nnU-Net's folders have exactly one of that number.

    Raises:
        SamnnError: they have none, another, or several.
    """
    full = DATASET.fullmatch(text)
    if not full and not re.fullmatch("[0-9]{1,3}", text):
        raise SamnnError(
            f"{text!r}: is neither the number of a dataset nor a name such as Dataset055_SegTHOR."
        )
    places = [Path(os.environ[name]) for name in ROOTS if os.environ.get(name)]
    number = int(full[1] if full else text)
    found = {path.name for place in places for path in place.glob(f"Dataset{number:03d}_*") if path.is_dir()}
    if found == {text} or (not full and len(found) == 1):
        return found.pop()
    said = f"of this number there are: {', '.join(sorted(found))}" if found else "there is none"
    where = ", ".join(map(str, places)) or f"no folder: {', '.join(ROOTS)} are not set"
    raise SamnnError(f"{text if full else f'Dataset {text}'}: {said}, in {where}.")
