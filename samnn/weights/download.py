"""Downloads weights: goes on where a broken download stopped, and shows a file under its name only once it is right.

While it is being downloaded a file lies beside its place under a name of its own, with a note of what the server said
of it (size and validator), so that a changed file is never mixed with the old one.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samnn import __version__
from samnn.atomic import PART_PREFIX, only_writer, write_json
from samnn.errors import SamnnError
from samnn.weights.files import require_weights
from samnn.weights.registry import Entry, entry
from samnn.weights.store import WEIGHTS, folder_to_write, hash_file, locate, remember, require, verified

MIRROR = "SAMNN_WEIGHTS_MIRROR"
ATTEMPTS_WITHOUT_PROGRESS = 4
FIRST_PAUSE_S = 1.0  # then twice as long each time
TIMEOUT_S = 60.0
BLOCK_BYTES = 1 << 18

Tell = Callable[[str, int, int | None], object]  # (what is being done, bytes done, bytes in all where known)


@dataclass(frozen=True)
class Offer:
    """What a server says of a file; two offers that differ are two files."""

    url: str
    size_bytes: int | None
    validator: str | None  # a strong ETag, or the time of change


def get(name: str, *, tell: Tell = lambda what, done, total: None) -> tuple[Path, bool]:
    """The verified file of `name`, downloaded where no weights folder has it; → its path, and whether it was downloaded.

    Raises:
        SamnnError: the network, the server, the disk or the file's content. What there is of a file stays for the next
            try unless its content is wrong.
    """
    known = entry(name)
    present = _present(known)
    if present is not None:
        return present, False
    folder = folder_to_write()
    target = folder / known.file
    if target.is_dir():
        raise SamnnError(f"{target}: is a folder where the file belongs. Move it away.")
    with only_writer(target, wait=True):
        present = _present(known)
        if present is not None:  # another process has been quicker
            return present, False
        part = target.with_name(f"{PART_PREFIX}{known.file}")
        note = target.with_name(f"{PART_PREFIX}{known.file}.json")
        try:
            _download(known, part, note, tell)
            sha256 = _checked(known, part, note, tell)
            os.replace(part, target)
            note.unlink(missing_ok=True)
        except OSError as error:
            raise SamnnError(
                f"{target}: cannot be written ({error.strerror or error}). Make room or mend the permissions of "
                f"{folder}; the same command goes on where this one stopped."
            ) from error
        remember(target, sha256)
    return target, True


def address(known: Entry) -> str:
    """Where a checkpoint is downloaded from: its publisher, or the mirror that SAMNN_WEIGHTS_MIRROR names.

    Raises:
        SamnnError: the mirror is no http(s) address.
    """
    mirror = os.environ.get(MIRROR)
    if not mirror:
        return known.url
    try:
        parts = urllib.parse.urlsplit(mirror)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and " " not in mirror
    except ValueError:  # no port, or no address in brackets
        fits = False
    if not fits:
        raise SamnnError(
            f"{MIRROR}={mirror}: is no http(s) address. A folder of weights is named by SAMNN_WEIGHTS."
        )
    return f"{mirror.rstrip('/')}/{urllib.parse.quote(known.file)}"


def _present(known: Entry) -> Path | None:
    """The verified file, if a weights folder has it; a wrong one where we write is as none."""
    try:
        path = locate(known.name)
    except SamnnError:
        return None
    try:
        return verified(known.name)[0]
    except SamnnError as error:
        folder = folder_to_write()
        if path.parent == folder:
            return None
        raise SamnnError(
            f"{error} It lies in a folder that is searched before {folder}: have it removed, or change the order in "
            f"{WEIGHTS}."
        ) from error


def _checked(known: Entry, part: Path, note: Path, tell: Tell) -> str:
    """The sha256 of a downloaded file; one that is wrong is removed, so that the next try starts anew."""
    done, total = 0, _size(part)

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        tell("checking", done, total)

    try:
        require_weights(part)
        sha256 = hash_file(part, count)
        require(known, part, sha256, cure=f"It came from {address(known)} and was removed; see {known.page}.")
    except SamnnError:
        part.unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        raise
    return sha256


def _download(known: Entry, part: Path, note: Path, tell: Tell) -> None:
    """Fill `part`; a connection that breaks is taken up again as long as that brings more of the file."""
    url = address(known)
    most, fruitless, pause_s = 0, 0, FIRST_PAUSE_S
    while True:
        try:
            return _one_connection(known, url, part, note, tell)
        except (urllib.error.URLError, _Broken) as error:
            if _size(part) > most:
                most, fruitless, pause_s = _size(part), 0, FIRST_PAUSE_S
            fruitless += 1
            if fruitless == ATTEMPTS_WITHOUT_PROGRESS or not _may_pass(error):
                raise _refused(known, url, error) from error
            tell(f"trying again: {_reason(error)}", _size(part), known.size_bytes)
        time.sleep(pause_s)
        pause_s *= 2


class _Broken(Exception):
    """The connection ended before the file did."""


def _one_connection(known: Entry, url: str, part: Path, note: Path, tell: Tell) -> None:
    before, start = _noted(note), _size(part)
    if before is not None and start == before.size_bytes:  # a process was killed before it checked the file
        return
    answer = _asked(url, part, before)
    if answer is None:
        part.unlink()
        return _one_connection(known, url, part, note, tell)
    with answer:
        _refuse_web_page(known, url, answer)
        total = _total(answer)
        if None not in (known.size_bytes, total) and total != known.size_bytes:
            raise SamnnError(
                f"{url}: is {total:,} bytes long, but {known.name} is {known.size_bytes:,}: another file, not "
                f"downloaded. See {known.page}."
            )
        offer = Offer(url, total, _validator(answer))
        goes_on = answer.status == 206 and _range_start(answer) == start and offer == before
        if answer.status == 206 and not goes_on:
            part.unlink(missing_ok=True)
            raise _Broken("the file on the server has changed, starting anew")
        if not goes_on:
            start = 0
            part.unlink(missing_ok=True)  # before the note: it must never speak of another file's beginning
            write_json(note, asdict(offer))
        _require_space(part.parent, (total or known.size_bytes or 0) - start, known)
        done = start
        with open(part, "ab" if goes_on else "wb") as file:
            for block in _blocks(answer):
                file.write(block)
                done += len(block)
                tell("downloading", done, total)
            os.fsync(file.fileno())
        if total is not None and done < total:
            raise _Broken(f"the connection ended after {done:,} of {total:,} bytes")


def _asked(url: str, part: Path, before: Offer | None) -> Any:
    """The server's answer, for the missing end of the file where that can be told; None: it has no such end."""
    headers = {"User-Agent": f"samnn/{__version__}", "Accept-Encoding": "identity"}
    start = _size(part)
    if start and before is not None and before.url == url and before.validator is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": before.validator}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return None
        raise
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.URLError):
            raise
        raise _Broken(_reason(error)) from error


def _blocks(answer: Any) -> Iterator[bytes]:
    while True:
        try:
            block = answer.read(BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f"the connection broke: {_reason(error)}") from error
        if not block:
            return
        yield block


def _refuse_web_page(known: Entry, url: str, answer: Any) -> None:
    kind = answer.headers.get_content_type()
    if kind == "text/html":
        raise SamnnError(
            f"{url}: answers with a web page, not a file; a login, a proxy or a moved link does that. Look at it in a "
            f"browser, or download {known.file} from {known.page} and run `samnn weights add FILE`."
        )


def _total(answer: Any) -> int | None:
    """The length of the whole file, from `Content-Range: bytes 5-9/10` or `Content-Length: 10`."""
    if answer.status == 206:
        length = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _range_start(answer: Any) -> int | None:
    first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(first) if first.isdigit() else None


def _validator(answer: Any) -> str | None:
    """RFC 9110, 13.1.5: a range may be asked for again only of a file with a strong validator."""
    tag = answer.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _require_space(folder: Path, n_bytes: int, known: Entry) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise SamnnError(
            f"{folder}: has {free / 1e6:,.0f} MB free, {known.name} needs {n_bytes / 1e6:,.0f} MB more. Make room, or "
            "name another folder in SAMNN_WEIGHTS."
        )


def _noted(note: Path) -> Offer | None:
    try:
        return Offer(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or of another version
        return None


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _may_pass(error: Exception) -> bool:
    """Whether waiting may help: not where the server says no or its name is unknown."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    if isinstance(error, urllib.error.URLError):
        return isinstance(error.reason, TimeoutError | ConnectionError)
    return True


def _refused(known: Entry, url: str, error: Exception) -> SamnnError:
    hint = ""
    if isinstance(error, _Broken):
        hint = "The same command goes on where this one stopped. "
    elif isinstance(getattr(error, "reason", None), ssl.SSLError):
        hint = "Where a proxy opens connections, name its certificate in SSL_CERT_FILE. "
    return SamnnError(
        f"{url}: cannot be downloaded ({_reason(error)}). {hint}Without a network, download {known.file} elsewhere "
        f"(see {known.page}) and run `samnn weights add FILE`."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {str(error.reason).splitlines()[0]}"
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(inner, "strerror", None) or inner or type(inner).__name__)
