"""Files and folders appear whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from samnn.atomic import LOCK_PREFIX, OLD_PREFIX, PART_PREFIX, whole_file, whole_folder, write_json
from samnn.errors import SamnnError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(target, text, **options):
    with whole_folder(target, **options) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)


def content(target):
    return (target / "inner" / "file").read_text()


def run_until_killed(folder, code):
    """Run code in a process of its own that kills itself with SIGKILL as its last act."""
    code = f"import os, signal; from pathlib import Path; from samnn.atomic import *\n{code}"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder)
    assert done.returncode == -signal.SIGKILL


KILL = "os.kill(os.getpid(), signal.SIGKILL)"
WRITE_HALF = f"with whole_file(Path('a')) as part:\n    part.write_text('half'); {KILL}"
FILL_HALF = f"with whole_folder(Path('a'), overwrite=True) as part:\n    (part / 'half').touch(); {KILL}"


def test_a_file_appears_when_its_block_ends(tmp_path):
    with whole_file(tmp_path / "a.json") as part:
        part.write_text("new")
        assert not (tmp_path / "a.json").exists() and part.suffix == ".json"
    assert names(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "new"


def test_what_replaces_is_on_the_disk_first_and_a_file_in_an_unfinished_folder_waits_for_it(
    tmp_path, monkeypatch
):
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (flushed.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file))
    )

    def on_the_disk():
        names = [Path(path).name.split("-")[-1] for path in flushed]
        flushed.clear()
        return names

    write_json(tmp_path / "a.json", {})
    assert on_the_disk() == ["a.json"]
    for options, expected in [
        ({"flush": False}, []),
        ({"flush": False, "overwrite": True}, ["a.json", "b"]),
        ({"overwrite": True}, ["a.json", "b"]),
    ]:
        with whole_folder(tmp_path / "folder", **options) as folder:
            write_json(folder / "a.json", {})
            (folder / "b").write_text("b")
            assert on_the_disk() == []
        assert sorted(on_the_disk()) == expected
    with whole_folder(tmp_path / "other") as folder:
        (folder / "b").write_text("b")
    assert on_the_disk() == ["b"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_part(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "a") as part:
        part.write_text("half")
        raise error
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_killed_process_leaves_the_old_file_and_its_part_goes_with_the_next_write(tmp_path):
    (tmp_path / "a").write_text("old")
    run_until_killed(tmp_path, WRITE_HALF)
    assert (tmp_path / "a").read_text() == "old"
    assert len(names(tmp_path)) == 2 and names(tmp_path)[0].startswith(PART_PREFIX)
    with whole_file(tmp_path / "a") as part:
        part.write_text("new")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "new"


def test_two_writers_of_a_file_do_not_mix_and_the_last_one_wins(tmp_path):
    with whole_file(tmp_path / "a") as first:
        first.write_text("first, longer")
        with whole_file(tmp_path / "a") as second:
            second.write_text("second")
        assert first.exists() and (tmp_path / "a").read_text() == "second"
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "first, longer"


def write_torch(part):
    pytest.importorskip("torch").save({"a": 1}, part)


def write_table(part):
    pytest.importorskip("pandas").DataFrame({"a": [1]}).to_csv(part)


def write_simpleitk(part):
    SimpleITK.WriteImage(SimpleITK.Image(4, 4, 4, SimpleITK.sitkInt16), str(part), useCompression=True)


def write_nibabel(part):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), part)


def write_picture(part):
    matplotlib = pytest.importorskip("matplotlib.figure")
    matplotlib.Figure().savefig(part)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.pth", write_torch),
        ("a.csv", write_table),
        ("a.nii.gz", write_simpleitk),
        ("a.nrrd", write_simpleitk),
        ("a.mha", write_simpleitk),
        ("a.nii.gz", write_nibabel),
        ("a.png", write_picture),
    ],
)
def test_our_writers_write_into_the_locked_file_and_do_not_replace_it(tmp_path, name, write):
    with whole_file(tmp_path / name) as part:
        before = part.stat().st_ino
        write(part)
        assert part.stat().st_ino == before and part.stat().st_size > 0


@pytest.mark.parametrize("where", ["no/such/folder/a", "file/a"])
def test_a_target_that_cannot_be_written_is_named(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(SamnnError, match=r"/a: cannot be written"), whole_file(tmp_path / where) as part:
        part.write_text("new")


def test_json_is_readable_by_people(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Müller"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Müller" in text and text.endswith("}\n") and json.loads(text) == {"name": "Müller"}


def test_json_without_nan_is_written_or_none_at_all(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == []


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


def test_the_leftover_of_a_killed_process_is_cleared(tmp_path):
    fill(tmp_path / "a", "old")
    run_until_killed(tmp_path, FILL_HALF)
    assert names(tmp_path) == [f"{LOCK_PREFIX}a", f"{PART_PREFIX}a", "a"] and content(tmp_path / "a") == "old"
    fill(tmp_path / "a", "new", overwrite=True)
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["inner"]


def test_a_folder_that_another_process_writes_is_refused_and_that_one_ends_undisturbed(tmp_path):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "file").write_text("first")
        done = subprocess.run(
            [sys.executable, "-c", FILL_ELSEWHERE], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1 and "another process is writing it" in done.stderr
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["file"]


FILL_ELSEWHERE = "from samnn.atomic import *\nwith whole_folder(Path('a')) as folder: (folder / 'b').touch()"


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "link"])
def test_a_target_that_is_no_folder_is_refused_at_the_start_and_stays(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(SamnnError, match="not a folder"):
        fill(tmp_path / "a", "new", overwrite=True)
    assert names(tmp_path) == ["a"] and not (tmp_path / "a").is_dir()


def test_a_process_killed_between_moving_old_away_and_new_in_loses_nothing(tmp_path):
    """The state it leaves, made by hand: the old folder is put back, with and without the wish to replace it."""
    for overwrite in (False, True):
        fill(tmp_path / "a", "old", overwrite=True)
        os.rename(tmp_path / "a", tmp_path / f"{OLD_PREFIX}a")
        fill(tmp_path / f"{PART_PREFIX}a", "whole but not yet renamed")
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
