"""Files that appear whole or not at all: written beside their target, then renamed onto it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samnn.errors import SamnnError

PART_PREFIX = ".part-"  # a leftover of a killed process starts with this and may be deleted


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; rename it onto `target` when the block ends without error.

    The temporary name keeps the ending of `target` (writers choose the format by it). An error, a full disk
    or a kill leaves `target` as it was.

    Raises:
        SamnnError: the folder cannot be written to or the disk is full.
    """
    target = Path(target)
    part = target.with_name(f"{PART_PREFIX}{os.getpid()}-{target.name}")
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SamnnError(
            f"{target}: cannot be written ({error.strerror or error}). Check free space and permissions of "
            f"{target.parent}."
        ) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(target: Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, whole or not at all."""
    with whole_file(target) as part:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
