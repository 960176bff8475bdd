"""Files and folders that appear whole or not at all: written beside their target, then renamed onto it.

Who is still writing is told by locks (flock), which end with their process however it ends: this needs POSIX. A file
system without locks still takes files, but leftovers of killed writers stay there, and folders are refused.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from samnn.errors import SamnnError

PART_PREFIX = ".part-"  # being written, or what a killed process has left of it
OLD_PREFIX = ".old-"  # what a finished folder is about to replace
LOCK_PREFIX = ".lock-"  # locked by the one process that writes the folder


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; rename it onto `target` when the block ends without error.

    The temporary name keeps the ending of `target` (writers choose the format by it). The file there exists and is
    locked: write into it, do not replace it. An error, a full disk or a kill leaves `target` as it was; what a killed
    process left behind is removed by the next one that writes `target`. The disk holds it before the rename, except in
    an unfinished folder, which sees to that itself.

    Raises:
        SamnnError: the folder cannot be written to or the disk is full.
    """
    target = Path(target)
    try:
        _remove_dead_parts(target)
        with _new_part(target) as part:
            try:
                yield part
                if not any(folder.name.startswith(PART_PREFIX) for folder in target.parents):
                    _flush(part)
                os.replace(part, target)
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(target, error) from error


@contextmanager
def whole_folder(
    target: Path, *, overwrite: bool = False, resume: bool = False, flush: bool = True
) -> Iterator[Path]:
    """Yield an empty folder beside `target` to fill; rename it onto `target` when the block ends without error.

    An existing `target` is replaced only with `overwrite`, and only once the new folder is whole. What a killed
    process left behind is cleared first; if it died while replacing, the old folder is put back. With `resume`, what
    a block has put into the new folder before an error or a kill is there again the next time. The disk holds all files
    before the rename; without `flush` only where a folder is replaced, else the system writes them when it likes, as
    it does after `cp`.

    Raises:
        SamnnError: `target` exists and `overwrite` is not set or it is no folder, another process is writing it,
            nothing can be written there, the disk is full.
    """
    target = Path(target)
    part, old = (
        target.with_name(f"{PART_PREFIX}{target.name}"),
        target.with_name(f"{OLD_PREFIX}{target.name}"),
    )
    with only_writer(target):
        try:
            _put_back(old, target)
            _refuse_other_than_folder(target)
            _remove(old)
            if not resume:
                _remove(part)
            _refuse_existing(target, overwrite)
            part.mkdir(exist_ok=resume)
            yield part
            for file in part.rglob("*") if flush or target.exists() else ():
                if file.is_file():
                    _flush(file)
            _refuse_other_than_folder(target)
            _refuse_existing(target, overwrite)
            if target.exists():
                os.rename(target, old)
            os.rename(part, target)
            _remove(old)
        except BaseException as error:
            with suppress(OSError):
                _put_back(old, target)
                part.rmdir() if resume else _remove(part)
            if isinstance(error, OSError):
                raise _unwritable(target, error) from error
            raise


@contextmanager
def only_writer(target: Path, *, wait: bool = False) -> Iterator[int]:
    """Be the one process that writes `target` while the block runs; parents of `target` are made.

    Yields the descriptor of the lock: a child that is given it (`pass_fds`) holds the lock beyond the death of this
    process. The lock is on a small file beside it and not on a folder: NFS does not show locks on folders to other machines.

    Raises:
        SamnnError: another process is writing it (unless `wait` waits for its end), or nothing can be written there.
    """
    path = target.with_name(f"{LOCK_PREFIX}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(lock, path):
                    break
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)  # its owner removed it after we opened it
    except BlockingIOError as error:
        raise SamnnError(f"{target}: another process is writing it. Wait until it has ended.") from error
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield lock
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(lock)


def write_json(target: Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, whole or not at all. NaN and infinity are no JSON: ValueError."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with whole_file(target) as part:
        part.write_text(text + "\n", encoding="utf-8")


@contextmanager
def _new_part(target: Path) -> Iterator[Path]:
    """A new file beside `target`, locked as long as its process lives."""
    while True:
        part = target.with_name(f"{PART_PREFIX}{secrets.token_hex(4)}-{target.name}")
        lock = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            with suppress(OSError):  # without locks on this file system, no part is ever taken for dead
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock, part):  # otherwise another writer took it for dead before it was locked
                yield part
                return
        finally:
            os.close(lock)


def _remove_dead_parts(target: Path) -> None:
    """Remove the parts of `target` whose writers have died: nobody holds their locks."""
    for part in target.parent.glob(f"{PART_PREFIX}*-{glob.escape(target.name)}"):
        with suppress(OSError):  # locked, and so alive; or gone
            lock = os.open(part, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()
            finally:
                os.close(lock)


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _flush(file: Path) -> None:
    """Make the disk hold what was written, before a rename says that it does."""
    with open(file, "rb") as written:
        os.fsync(written.fileno())


def _put_back(old: Path, target: Path) -> None:
    if old.exists() and not os.path.lexists(target):
        os.rename(old, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_other_than_folder(target: Path) -> None:
    if os.path.lexists(target) and not target.is_dir():
        raise SamnnError(f"{target}: exists and is not a folder. Move it away.")


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
