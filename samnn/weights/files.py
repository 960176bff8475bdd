"""Reads checkpoints without ever unpickling code, and says in one sentence what a file is that cannot be read.

torch is imported when a file is opened, not before.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samnn.errors import SamnnError

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "network_weights",
)  # keys under which projects put weights

ARCHIVE = "an archive. Unpack it and name the file of weights in it."


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU; read once a process while the file stays the same.

    torch's files (.pth, .pt) and safetensors, bare or inside one of `WRAPPERS`. Where the format allows it the file is
    mapped, so that only what is used is read from disk: do not write into the tensors.

    Raises:
        SamnnError: no such file, or no weights, or anything in it besides tensors.
    """
    require_weights(path)
    stat = path.stat()
    return dict(_read_once(path, (stat.st_size, stat.st_mtime_ns, stat.st_ino)))


@lru_cache(maxsize=2)
def _read_once(path: Path, identity: tuple[int, ...]) -> Mapping[str, Tensor]:
    content = _read_safetensors(path) if _is_safetensors(_head(path)) else _read_torch(path)
    return _unwrapped(path, content)


def require_weights(path: Path) -> None:
    """Refuse by its first bytes, in one sentence, what cannot be a checkpoint.

    Raises:
        SamnnError: it is missing, a folder, empty, cut off, a web page, an archive or text.
    """
    if not path.exists():
        raise SamnnError(f"{path}: no such file. Name a file of weights.")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise SamnnError(f"{path}: is {what}. Name a file of weights.")
    found = _what_else(path)
    if found:
        raise SamnnError(f"{path}: is {found}")


def _what_else(path: Path) -> str | None:
    head = _head(path)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "empty. Get it again."
    if not any(head):
        return "zeros, not weights: a download that was not finished, perhaps. Get it again."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "a web page, not weights; a login or a moved link gives that. Download the file itself."
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights it points to. Run `git lfs pull`, or download the file itself."
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")) or tarfile.is_tarfile(path):
        return ARCHIVE  # torch before 2.6 runs code that lies in a tar file, weights_only or not (CVE-2025-32434)
    if head.startswith(b"PK\x03\x04"):
        return _what_zip(path)
    if _is_safetensors(head):
        needed = 8 + int.from_bytes(head[:8], "little")
        return "cut off. Get it again." if path.stat().st_size < needed else None
    if head.startswith(
        b"\x80"
    ):  # a pickle, as torch wrote before 1.6; what it may hold is decided at reading
        return None
    if b"\0" not in head and text.startswith((b"{", b"[")):
        return "text, not weights; a server's error message looks like that. Download the file itself."
    return "no file of torch and no safetensors. Name a file of weights (.pth, .pt, .safetensors)."


def _what_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises many things, depending on where the damage is
        return "cut off or damaged. Get it again."
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program, which is not loaded because it holds code. Save its state dict alone."
    if not any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        return ARCHIVE
    return None


def _read_torch(path: Path) -> Any:
    import torch

    zipped = _head(path).startswith(b"PK\x03\x04")  # only this format can be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises most things, depending on what is wrong
        message = str(error)
        name = re.search(
            r"GLOBAL\s+([\w.]+)|[Uu]nsupported (?:class|global)[: ]+(?:GLOBAL )?([\w.]+)", message
        )
        if name:
            found = next(filter(None, name.groups()))
            raise SamnnError(
                f"{path}: holds code or objects ({found}) besides tensors, which samnn never loads. "
                "Get it from its publisher, or save its state dict alone where you trust it."
            ) from None
        if "weights_only" in message.lower() or "weights only" in message.lower():
            raise SamnnError(
                f"{path}: holds more than tensors, or is damaged; samnn never loads code. Get it from its publisher."
            ) from None
        raise SamnnError(f"{path}: cannot be read ({_first_line(error)}). Get it again.") from None


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise SamnnError(f"{path}: cannot be read ({_first_line(error)}). Get it again.") from None


def _unwrapped(path: Path, content: Any) -> Mapping[str, Tensor]:
    import torch

    inner = next((content[key] for key in WRAPPERS if _is_mapping(content, key)), content)
    if not isinstance(inner, Mapping) or not inner:
        found = "nothing" if isinstance(inner, Mapping) else f"a {type(inner).__name__}"
        raise SamnnError(
            f"{path}: holds {found} where a dict of tensors by name is needed. Save its state dict alone."
        )
    for key, value in inner.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            kind = f"{key!r} is a {type(value).__name__}"
            keys = ", ".join(repr(name) for name in WRAPPERS)
            raise SamnnError(
                f"{path}: is no dict of tensors by name: {kind}. Save its state dict alone, or under one of {keys}."
            )
    return inner


def _is_mapping(content: Any, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _is_safetensors(head: bytes) -> bool:
    """Eight bytes of length, then a JSON object: https://github.com/huggingface/safetensors#format."""
    return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
