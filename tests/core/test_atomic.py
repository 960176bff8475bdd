"""Files and folders appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from samnn.atomic import OLD_PREFIX, PART_PREFIX, whole_file, whole_folder, write_json
from samnn.errors import SamnnError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(target, text, **options):
    with whole_folder(target, **options) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)


def content(target):
    return (target / "inner" / "file").read_text()


def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_file_appears_when_its_block_ends(tmp_path):
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("new")
        assert not (tmp_path / "a.json").exists() and part.suffix == ".json"
    assert names(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_part(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "a") as part:
        part.write_text("half")
        raise error
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_killed_process_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    code = (
        "import os, signal; from pathlib import Path; from samnn.atomic import whole_file\n"
        "with whole_file(Path('a')) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "old"
    assert [name for name in names(tmp_path) if not name.startswith(PART_PREFIX)] == ["a"]


@pytest.mark.parametrize("where", ["no/such/folder/a", "file/a"])
def test_a_target_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(SamnnError, match=r"/a: cannot be written"), whole_file(tmp_path / where) as part:
        part.write_text("new")


def test_json_is_readable_by_people(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Müller"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Müller" in text and text.endswith("}\n") and json.loads(text) == {"name": "Müller"}


def test_a_folder_appears_when_its_block_ends_and_parents_are_made(tmp_path):
    target = tmp_path / "raw" / "Dataset001_A"
    with whole_folder(target) as folder:
        (folder / "file").write_text("new")
        assert not target.exists()
    assert names(target.parent) == ["Dataset001_A"] and names(target) == ["file"]


def test_an_existing_folder_is_replaced_on_request_only(tmp_path):
    fill(tmp_path / "a", "old")
    with pytest.raises(SamnnError, match="--overwrite"):
        fill(tmp_path / "a", "new")
    assert content(tmp_path / "a") == "old"
    fill(tmp_path / "a", "new", overwrite=True)
    assert content(tmp_path / "a") == "new" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_error_leaves_the_old_folder_and_no_part(tmp_path, error):
    fill(tmp_path / "a", "old")
    expected = SamnnError if isinstance(error, OSError) else error
    with pytest.raises(expected), whole_folder(tmp_path / "a", overwrite=True) as folder:
        (folder / "half").write_text("half")
        raise error
    assert names(tmp_path) == ["a"] and content(tmp_path / "a") == "old"


def test_the_leftover_of_a_dead_process_is_cleared_and_that_of_a_live_one_is_not(tmp_path):
    live = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    parts = [f"{PART_PREFIX}{pid}-{name}" for pid in (dead_process(), live.pid) for name in ("a", "b")]
    for part in parts:
        (tmp_path / part).mkdir()
    fill(tmp_path / "a", "new")
    live.communicate(b"\n")
    assert names(tmp_path) == sorted(["a", *parts[1:]])  # "b" is another folder's business


def test_a_process_killed_between_moving_old_away_and_new_in_loses_nothing(tmp_path):
    """The state it leaves, made by hand: the old folder is put back, with and without the wish to replace it."""
    for overwrite in (False, True):
        fill(tmp_path / "a", "old", overwrite=True)
        os.rename(tmp_path / "a", tmp_path / f"{OLD_PREFIX}a")
        fill(tmp_path / f"{PART_PREFIX}{dead_process()}-a", "whole but not yet renamed")
        if overwrite:
            fill(tmp_path / "a", "new", overwrite=True)
        else:
            with pytest.raises(SamnnError, match="exists"):
                fill(tmp_path / "a", "new")
        assert names(tmp_path) == ["a"] and content(tmp_path / "a") == ("new" if overwrite else "old")


def test_a_process_killed_before_removing_the_old_folder_leaves_the_new_one(tmp_path):
    fill(tmp_path / "a", "new")
    fill(tmp_path / f"{OLD_PREFIX}a", "old")
    with pytest.raises(SamnnError, match="exists"):
        fill(tmp_path / "a", "newer")
    assert names(tmp_path) == ["a"] and content(tmp_path / "a") == "new"


def test_a_link_to_a_folder_is_replaced_and_what_it_points_to_stays(tmp_path):
    fill(tmp_path / "elsewhere", "old")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    fill(tmp_path / "a", "new", overwrite=True)
    assert content(tmp_path / "a") == "new" and content(tmp_path / "elsewhere") == "old"
    assert names(tmp_path) == ["a", "elsewhere"]
