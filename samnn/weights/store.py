"""Finds weights in the folders of SAMNN_WEIGHTS, and proves once that a file is what its name says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samnn.atomic import only_writer, whole_file, write_json
from samnn.errors import SamnnError
from samnn.weights.files import read_state_dict, require_weights
from samnn.weights.registry import REGISTRY, Entry, entry, fitting, of_sha256

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int], object]  # called with the number of bytes just done

WEIGHTS = "SAMNN_WEIGHTS"
ENDINGS = (".pth", ".pt", ".safetensors", ".bin")
REMEMBERED = ".verified"  # folder, in a weights folder, of the hashes computed so far


def folders() -> list[Path]:
    """The weights folders in the order in which they are searched: those of SAMNN_WEIGHTS, or one in the user's cache."""
    listed = [part for part in os.environ.get(WEIGHTS, "").split(os.pathsep) if part.strip()]
    if listed:
        return [Path(os.path.abspath(os.path.expanduser(part))) for part in listed]
    return [_own_folder()]


def folder_to_write() -> Path:
    """The first weights folder that can be written to; made where it is missing.

    Raises:
        SamnnError: there is none.
    """
    problems = []
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problems.append(f"{folder} ({error.strerror})")
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        problems.append(f"{folder} (cannot be written to)")
    raise SamnnError(
        f"No folder for weights: {', '.join(problems)}. Set {WEIGHTS} to a folder you can write to."
    )


def is_name(weights: str | Path) -> bool:
    """Whether `weights` is meant as a name of the registry and not as a path."""
    return isinstance(weights, str) and (weights in REGISTRY or not _looks_like_path(weights))


def locate(name: str) -> Path:
    """The file of `name` in the first weights folder that has it; it is not looked into.

    Raises:
        SamnnError: no such name; or no folder has the file, with the ways to get it.
    """
    known = entry(name)
    for folder in folders():
        if os.path.exists(folder / known.file):
            return folder / known.file
    searched = ", ".join(str(folder) for folder in folders())
    raise SamnnError(
        f"{name}: not on this computer ({known.file} is in none of: {searched}). Get it with `samnn weights get {name}`; "
        f"without a network, download {known.url} elsewhere and run `samnn weights add FILE`."
    )


def verified(
    weights: str | Path, *, afresh: bool = False, progress: Progress | None = None
) -> tuple[Path, str]:
    """The file of a name, or a user's own file, and its sha256.

    The file of a name must have the published sha256; where none is published, its tensors must have the right shapes,
    and its sha256 stays that of the first use. A hash is computed once and remembered (by path, size, time of change
    and inode) in a weights folder; `afresh` computes it again.

    Raises:
        SamnnError: it is missing, no weights, or not what its name says.
    """
    known = entry(str(weights)) if is_name(weights) else None
    path = _absolute(weights) if known is None else locate(known.name)
    require_weights(path)
    if known is None or known.sha256 is not None:
        sha256 = _sha256(path, afresh=afresh, progress=progress)
        if known is not None:
            require(known, path, sha256)
        return path, sha256
    require(known, path, None)  # before the hash of the first file that fits is recorded
    return path, _sha256(path, afresh=afresh, pinned=True, progress=progress)


def status(known: Entry) -> str:
    """What is known of a checkpoint here without hashing it: missing, not verified yet, verified or wrong."""
    try:
        path = locate(known.name)
    except SamnnError:
        return "missing"
    noted = _recall(path)
    if noted is None or noted["identity"] != _identity(path):
        return "not verified yet"
    return "verified" if known.sha256 in (None, noted["sha256"]) else "wrong"


def read(weights: str | Path) -> dict[str, Tensor]:
    """The tensors of a name, verified, or of a user's own file, unwrapped and on the CPU; once a process.

    Do not write into them: the file may be mapped, and others get the same tensors.

    Raises:
        SamnnError: as `verified`, or there is more in the file than tensors.
    """
    return read_state_dict(verified(weights)[0] if is_name(weights) else _absolute(weights))


def add(file: Path, name: str | None = None, *, progress: Progress | None = None) -> tuple[Entry, Path]:
    """Copy a file that a person has into the weights folder; its sha256 says what it is, or must fit `name`.

    Raises:
        SamnnError: it is not `name`, or without `name` none that samnn knows; nothing can be written.
    """
    known = entry(name) if name is not None else None
    file = _absolute(file)
    require_weights(file)
    sha256 = hash_file(file, progress)
    if known is None:
        known = of_sha256(sha256)
    if known is None:
        raise SamnnError(
            f"{file}: is none of the weights samnn knows: its sha256 is {sha256}, and its tensors have the shapes of "
            f"{_shapes_of(file)}. Weights of your own are used by their path and need no adding."
        )
    require(known, file, sha256)
    target = folder_to_write() / known.file
    with only_writer(target, wait=True):
        if not (target.is_file() and os.path.samefile(file, target)):
            with whole_file(target) as part:
                if _copy(file, part) != sha256:
                    raise SamnnError(f"{file}: changed while it was copied. Add it again.")
        remember(target, sha256)
    return known, target


def require(known: Entry, path: Path, sha256: str | None, *, cure: str | None = None) -> None:
    """Refuse a file with this hash where it is not the checkpoint `known`; without a published hash, shapes decide.

    Raises:
        SamnnError: what the file is instead, and the cure.
    """
    cure = cure or f"Get it with `samnn weights get {known.name}`."
    if known.sha256 is None:
        misfit = known.misfit(read_state_dict(path))
        if misfit:
            raise SamnnError(f"{path}: is not {known.name}: {misfit}. {cure}")
    elif sha256 != known.sha256:
        raise SamnnError(f"{path}: is not {known.name}: {_instead(known, path, sha256)}. {cure}")


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def remember(path: Path, sha256: str) -> None:
    """Note a hash in the first folder that takes it; where none does, it is computed again next time."""
    for folder in (*folders(), _own_folder()):
        with suppress(SamnnError, OSError):
            (folder / REMEMBERED).mkdir(parents=True, exist_ok=True)
            write_json(
                folder / REMEMBERED / _key(path),
                {"path": str(path), "identity": _identity(path), "sha256": sha256},
            )
            return


def _instead(known: Entry, path: Path, sha256: str) -> str:
    """What a file with a wrong hash is."""
    other = of_sha256(sha256)
    if other is not None:
        return f"it is {other.name}"
    hashes = f"its sha256 is {sha256}, not {known.sha256} as published on {known.sha256_page}"
    return f"{hashes}, and its tensors have the shapes of {_shapes_of(path)}"


def _shapes_of(path: Path) -> str:
    return " or ".join(fitting(read_state_dict(path))) or "none that samnn knows"


def _sha256(path: Path, *, afresh: bool, pinned: bool = False, progress: Progress | None = None) -> str:
    before = _recall(path)
    if before is not None and not afresh and before["identity"] == _identity(path):
        return before["sha256"]
    identity = _identity(path)
    sha256 = hash_file(path, progress)
    if pinned and before is not None and before["sha256"] != sha256:
        raise SamnnError(
            f"{path}: has changed since its first use (sha256 {sha256}, then {before['sha256']}). "
            "If that is meant, add it: `samnn weights add FILE --as NAME`."
        )
    if identity == _identity(path):  # nobody has written to it meanwhile
        remember(path, sha256)
    return sha256


def _recall(path: Path) -> dict[str, Any] | None:
    for folder in (*folders(), _own_folder()):
        with suppress(OSError, ValueError):
            noted = json.loads((folder / REMEMBERED / _key(path)).read_text(encoding="utf-8"))
            if isinstance(noted, dict) and {"identity", "sha256"} <= noted.keys():
                return noted
    return None


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:16] + ".json"


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _copy(source: Path, target: Path) -> str:
    """Copy; → the sha256 of what was copied."""
    digest = hashlib.sha256()
    with open(source, "rb") as read_from, open(target, "wb") as write_to:
        while block := read_from.read(1 << 20):
            digest.update(block)
            write_to.write(block)
    return digest.hexdigest()


def _own_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "samnn", "weights")


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _looks_like_path(text: str) -> bool:
    return os.sep in text or text.startswith("~") or text.endswith(ENDINGS) or os.path.exists(text)
