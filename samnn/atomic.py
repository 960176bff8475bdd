"""Files and folders that appear whole or not at all: written beside their target, then renamed onto it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from samnn.errors import SamnnError

PART_PREFIX = ".part-"  # being written; a leftover of a killed process starts with this and may be deleted
OLD_PREFIX = ".old-"  # what a finished folder is about to replace


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; rename it onto `target` when the block ends without error.

    The temporary name keeps the ending of `target` (writers choose the format by it). An error, a full disk
    or a kill leaves `target` as it was.

    Raises:
        SamnnError: the folder cannot be written to or the disk is full.
    """
    target = Path(target)
    part = _part(target)
    try:
        yield part
        _flush(part)
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(target, error) from error
        raise


@contextmanager
def whole_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `target` to fill; rename it onto `target` when the block ends without error.

    An existing `target` is replaced only with `overwrite`, and only once the new folder is whole. What a killed
    process left behind is cleared first; if it died while replacing, the old folder is put back.

    Raises:
        SamnnError: `target` exists and `overwrite` is not set, nothing can be written there, the disk is full.
    """
    target = Path(target)
    part, old = _part(target), target.with_name(f"{OLD_PREFIX}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(target, old)
        _refuse_existing(target, overwrite)
        part.mkdir()
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _flush(file)
        _refuse_existing(target, overwrite)
        if target.exists():
            os.rename(target, old)
        os.rename(part, target)
        _remove(old)
    except BaseException as error:
        with suppress(OSError):
            _remove(part)
            _put_back(old, target)
        if isinstance(error, OSError):
            raise _unwritable(target, error) from error
        raise


def write_json(target: Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, whole or not at all."""
    with whole_file(target) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _part(target: Path) -> Path:
    return target.with_name(f"{PART_PREFIX}{os.getpid()}-{target.name}")


def _flush(file: Path) -> None:
    """Make the disk hold what was written, before a rename says that it does."""
    with open(file, "rb") as written:
        os.fsync(written.fileno())


def _clear_leftovers(target: Path, old: Path) -> None:
    leftover = re.compile(rf"{re.escape(PART_PREFIX)}(\d+)-{re.escape(target.name)}")
    for path in target.parent.iterdir():
        match = leftover.fullmatch(path.name)
        if match and not _runs_elsewhere(int(match[1])):
            _remove(path)
    _put_back(old, target)
    _remove(old)


def _put_back(old: Path, target: Path) -> None:
    if old.exists() and not target.exists():
        os.rename(old, target)


def _runs_elsewhere(pid: int) -> bool:
    """Whether another live process has this number. Windows cannot ask without harm: there leftovers stay."""
    if pid == os.getpid():
        return False
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise SamnnError(f"{target}: exists already. Add --overwrite to replace it.")


def _unwritable(target: Path, error: OSError) -> SamnnError:
    named = error.filename2 or error.filename
    where = f", {named}" if named else ""
    return SamnnError(
        f"{target}: cannot be written ({error.strerror or error}{where}). "
        f"Check free space and permissions of {target.parent}."
    )
