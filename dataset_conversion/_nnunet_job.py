"""Run by `_nnunet` in a process of its own: call a function of nnU-Net's converters by name, print what it returns."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from pathlib import Path


def main() -> None:
    """Arguments: module, function, its keyword arguments as JSON. The last line printed is the result as JSON."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, function, arguments = sys.argv[1:]
    keywords = json.loads(arguments, object_hook=_path_or_object)
    result = getattr(importlib.import_module(module), function)(**keywords)
    print(f"\n{json.dumps(result)}")


def _path_or_object(content: dict) -> dict | Path:
    return Path(content["path"]) if content.keys() == {"path"} else content


def _end_with_parent() -> None:
    """Standard input is a pipe whose other end closes when the parent ends, however it does."""
    while os.read(sys.stdin.fileno(), 1024):  # not by Python's buffer, whose lock would be held at the end
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file: its names are no packages
    main()
