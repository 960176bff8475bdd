"""`samnn weights` as users type it."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_weights import as_bytes, state

from samnn.weights import Entry


@pytest.fixture
def run(command: Callable[..., subprocess.Popen]) -> Callable[..., tuple[int, str, str]]:
    def finish(*arguments: object, **options: object) -> tuple[int, str, str]:
        process = command("weights", *arguments, **options)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return process.returncode, out, err

    return finish


def test_list_tells_size_licence_source_and_what_is_here(
    run: Callable, tiny: Entry, store: Path, content: bytes
) -> None:
    store.mkdir()
    (store / tiny.file).write_bytes(content)
    code, out, _ = run("list")
    assert code == 0
    line = next(line for line in out.splitlines() if "sam2_hiera_b+" in line)
    assert re.search(r"323 MB +Apache-2\.0 +missing", line)
    assert re.search(r"tiny_vit .* CC0-1\.0 +not verified yet", out)
    assert "https://github.com/facebookresearch/sam2#download-checkpoints" in out and str(store) in out
    assert run("verify")[0] == 0
    assert re.search(r"tiny_vit .* CC0-1\.0 +verified", run("list")[1])


def test_add_verify_and_path_work_together(
    run: Callable, tiny: Entry, store: Path, content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "a file with blanks"
    file.write_bytes(content)
    assert run("path", "tiny_vit")[0] == 1
    assert run("add", file) == (0, f"tiny_vit, verified: {store / tiny.file}\n", "")
    assert run("path", "tiny_vit")[1] == f"{store / tiny.file}\n"
    code, out, _ = run("verify")
    assert code == 0 and out.startswith("ok") and hashlib.sha256(content).hexdigest() in out
    (store / tiny.file).write_bytes(as_bytes(state(7)))
    code, out, _ = run("verify", "tiny_vit")
    assert code == 1 and "is not tiny_vit" in out and "samnn weights get tiny_vit" in out


def test_with_nothing_here_verify_says_so_and_a_wrong_name_lists_the_right_ones(run: Callable) -> None:
    assert run("verify")[:2] == (0, "No weights here yet: samnn weights list\n")
    for arguments in (
        ["get", "sam"],
        ["path", "sam"],
        ["verify", "sam"],
        ["add", "/dev/null", "--as", "sam"],
    ):
        code, _, err = run(*arguments)
        assert code == 1 and "There are: sam_vit_b" in err


def test_without_a_home_that_can_be_written_to_verification_still_works(
    run: Callable, tiny: Entry, store: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.mkdir()
    (store / tiny.file).write_bytes(content)
    (store / ".verified").touch()  # in the way
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert run("verify", "tiny_vit")[0] == 0
