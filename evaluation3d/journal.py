"""The journal of an unfinished evaluation: one line a finished case, so that the same command can go on."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from samnn import __version__
from samnn.errors import SamnnError

from .calibration import Calibration
from .cases import Case
from .result import ClassResult

NAME = "unfinished.jsonl"
HEADER = "samnn_evaluate"  # the first key of the first line


class Journal:
    """`OUT/unfinished.jsonl`: first what the results depend on, then a line for each case that is finished.

    A line that a kill cut short is dropped, and so are cases whose files have changed in path, size or time of
    change, and everything if settings, labels, the version or the sources of the evaluation have. It is locked while
    open; an empty one is removed again, with the folders that were made for it.

    Raises:
        SamnnError: another process holds it, it is somebody else's file, or the folder cannot be written to.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.path = out / NAME
        self.finished: dict[str, Any] = {}
        self._made = [folder for folder in [out, *out.absolute().parents] if not folder.exists()]
        try:
            out.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise self._not_ours()
            self._file = open(self.path, "a+b")  # noqa: SIM115 – closed in __exit__
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock()
            self._read({HEADER: __version__, "sources": _sources(), **settings})
        except BaseException:
            with suppress(OSError):
                self._file.close()
            raise

    def result_of(self, case: Case) -> dict[str, ClassResult] | None:
        """What an earlier run found for a case whose files are still the same."""
        entry = self.finished.get(case.name)
        if entry is None or entry["files"] != _files(case):
            return None
        return {name: _result(found) for name, found in entry["results"].items()}

    def add(self, case: Case, results: dict[str, ClassResult]) -> None:
        entry = json.loads(_dumped({"case": case.name, "files": _files(case), "results": results}))
        self._write(entry)
        self.finished[case.name] = entry

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.finished:
            self.path.unlink(missing_ok=True)
            for folder in self._made:
                with suppress(OSError):  # somebody else's files are in it by now
                    folder.rmdir()
        with suppress(OSError):
            self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SamnnError(
                f"{self.path}: another samnn evaluate is writing it. Wait until it has ended, or choose another -o."
            ) from error
        except OSError:
            pass  # a file system without locks

    def _read(self, header: dict[str, Any]) -> None:
        """Take the finished cases if the first line is the same; else begin anew. A line cut short is cut off."""
        self._file.seek(0)
        content = self._file.read()
        begin = b'{"%s": ' % HEADER.encode()
        if content[: len(begin)] != begin[: len(content)]:
            raise self._not_ours()
        lines = [_parsed(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
        if lines and lines[0] == json.loads(_dumped(header)):
            self._file.truncate(content.rfind(b"\n") + 1)
            self.finished = {line["case"]: line for line in lines[1:] if line is not None}
        else:
            self._file.truncate(0)
            self._write(header)

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            self._file.write(_dumped(entry).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            if not self.finished:
                self.path.unlink()
            raise self._unwritable(error) from error

    def _not_ours(self) -> SamnnError:
        return SamnnError(f"{self.path}: exists and is not from samnn evaluate. Choose another -o.")

    def _unwritable(self, error: OSError) -> SamnnError:
        return SamnnError(
            f"{self.path}: cannot be written ({error.strerror}). Check free space and permissions, or choose another -o."
        )


def _dumped(entry: dict[str, Any]) -> str:
    return json.dumps(entry, default=dataclasses.asdict)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:  # the disk lost a part of it
        return None


def _result(entry: dict[str, Any]) -> ClassResult:
    calibration = entry["calibration"]
    if calibration is not None:
        sums = [tuple(value) if isinstance(value, list) else value for value in calibration.values()]
        calibration = Calibration(*sums)
    return ClassResult(**{**entry, "calibration": calibration})


def _files(case: Case) -> list[list[Any]]:
    stats = [(path, path.stat()) for path in (case.reference, case.prediction)]
    return [[os.fspath(path.absolute()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _sources() -> str:
    """A hash of this room's files: with a metric edited or added, earlier results are no longer those."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
