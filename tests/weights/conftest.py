"""A small checkpoint of SAM's layout that the registry knows for the time of a test, and a folder to keep it in."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from loopback import Plan, serving
from tiny_weights import KEYS, as_bytes, state

from samnn.weights import REGISTRY, Entry, download


@pytest.fixture(scope="session")
def content() -> bytes:
    """The right file: about 0.7 MB."""
    return as_bytes(state())


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder; nothing of the user's is read or written."""
    folder = tmp_path / "weights"
    monkeypatch.setenv("SAMNN_WEIGHTS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("SAMNN_WEIGHTS_MIRROR", raising=False)
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.01)
    return folder


@pytest.fixture
def tiny(store: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """`tiny_vit`, whose hash is published."""
    known = Entry(
        name="tiny_vit",
        file="tiny_vit.pth",
        url="http://127.0.0.1:9/tiny_vit.pth",
        page="https://example.org/tiny",
        licence="CC0-1.0",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        sha256_page="https://example.org/hashes",
        shapes=KEYS,
        absent=("image_encoder.blocks.2.attn.qkv.weight",),
    )
    monkeypatch.setitem(REGISTRY, known.name, known)
    return known


@pytest.fixture
def tiny_without_hash(tiny: Entry, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """`tiny_vit`, for which nobody publishes a hash or a size."""
    known = replace(tiny, sha256=None, sha256_page=None, size_bytes=None)
    monkeypatch.setitem(REGISTRY, known.name, known)
    return known


@pytest.fixture
def plan(content: bytes, tiny: Entry, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A server that has the right file; `tiny_vit` is downloaded from it."""
    made = Plan(content)
    with serving(made) as address:
        monkeypatch.setenv("SAMNN_WEIGHTS_MIRROR", address)
        yield made


@pytest.fixture
def command(tiny: Entry) -> Callable[..., subprocess.Popen]:
    """Starts `samnn …` in a process of its own that knows `tiny_vit`, too."""
    code = (
        "import json, sys; from samnn.weights import REGISTRY, Entry; entry = json.loads(sys.argv.pop(1)); "
        "entry['shapes'] = {key: tuple(shape) for key, shape in entry['shapes'].items()}; "
        "REGISTRY['tiny_vit'] = Entry(**entry); from samnn.cli import main; main()"
    )

    def start(*arguments: object, **options: object) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(asdict(tiny)), *map(str, arguments)],
            env=os.environ | {"COLUMNS": "300", "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a shell without job control starts what it puts in the background deaf to Ctrl-C, and so its children
            **{"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options},
        )

    return start
