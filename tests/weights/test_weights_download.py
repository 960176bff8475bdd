"""`samnn weights get` against a real server that drops connections, serves wrong files and changes them."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from loopback import Plan
from tiny_weights import as_bytes, state

from samnn.errors import SamnnError
from samnn.weights import REGISTRY, Entry, download, verified
from samnn.weights.store import status


def names(store: Path) -> set[str]:
    return {path.name for path in store.iterdir()} - {".verified"}


def test_a_file_is_downloaded_once_verified_and_told_of(
    plan: Plan, tiny: Entry, store: Path, content: bytes
) -> None:
    told = []
    path, downloaded = download.get("tiny_vit", tell=lambda *what: told.append(what))
    assert (path, downloaded) == (store / tiny.file, True)
    assert path.read_bytes() == content and names(store) == {tiny.file} and status(tiny) == "verified"
    assert told[-1] == ("checking", len(content), len(content))
    assert ("downloading", len(content), len(content)) in told
    assert download.get("tiny_vit") == (path, False)
    assert plan.requests == [("/tiny_vit.pth", None, len(content))]


def test_dropped_connections_are_taken_up_where_they_broke(
    plan: Plan, store: Path, tiny: Entry, content: bytes
) -> None:
    plan.drops = [100_000, 50_000, 200_000]
    download.get("tiny_vit")
    assert [asked for _, asked, _ in plan.requests] == [
        None, "bytes=100000-", "bytes=150000-", "bytes=350000-",
    ]  # fmt: skip
    assert sum(sent for *_, sent in plan.requests) == len(content)
    assert (store / tiny.file).read_bytes() == content


def test_a_server_without_ranges_is_asked_for_the_whole_file_again(
    plan: Plan, store: Path, tiny: Entry, content: bytes
) -> None:
    plan.ranges, plan.drops = False, [100_000, 50_000]
    download.get("tiny_vit")
    assert plan.requests[-1][2] == len(content) and (store / tiny.file).read_bytes() == content


def test_without_a_validator_nothing_is_appended(
    plan: Plan, store: Path, tiny: Entry, content: bytes
) -> None:
    plan.etag, plan.drops = False, [100_000]
    download.get("tiny_vit")
    assert [asked for _, asked, _ in plan.requests] == [None, None]
    assert (store / tiny.file).read_bytes() == content


def test_a_file_that_changes_between_attempts_is_started_anew(
    plan: Plan, store: Path, tiny: Entry, content: bytes
) -> None:
    plan.content, plan.after_drop, plan.drops = as_bytes(state(7)), content, [100_000]
    assert len(plan.content) == len(content)
    download.get("tiny_vit")
    assert (store / tiny.file).read_bytes() == content


def test_a_server_that_serves_ranges_of_a_changed_file_is_seen_through(
    plan: Plan, store: Path, tiny: Entry, content: bytes
) -> None:
    plan.content = as_bytes(state(7))
    plan.drops = [100_000] * download.ATTEMPTS_WITHOUT_PROGRESS
    plan.ranges = False
    with pytest.raises(SamnnError):
        download.get("tiny_vit")
    note = store / f".part-{tiny.file}.json"
    old = json.loads(note.read_text())
    plan.content, plan.ranges, plan.drops = content, True, []
    note.write_text(json.dumps(old | {"validator": f'"{hashlib.md5(content).hexdigest()}"', "size_bytes": 1}))
    download.get("tiny_vit")  # 206 for an If-Range that fits, but the size differs from what was noted
    assert (store / tiny.file).read_bytes() == content


def test_giving_up_keeps_what_there_is_and_the_next_command_goes_on(
    plan: Plan, store: Path, tiny: Entry, content: bytes
) -> None:
    plan.drops = [300_000] + [0] * download.ATTEMPTS_WITHOUT_PROGRESS
    with pytest.raises(
        SamnnError, match=r"connection ended after 300,000 of .* goes on where this one stopped"
    ):
        download.get("tiny_vit")
    assert names(store) == {".part-tiny_vit.pth", ".part-tiny_vit.pth.json"}
    plan.drops, plan.requests = [], []
    download.get("tiny_vit")
    assert plan.requests == [("/tiny_vit.pth", "bytes=300000-", len(content) - 300_000)]
    assert names(store) == {tiny.file}


def test_a_whole_part_of_a_killed_process_is_not_downloaded_again(
    plan: Plan, store: Path, tiny: Entry, content: bytes
) -> None:
    plan.drops = [300_000] + [0] * download.ATTEMPTS_WITHOUT_PROGRESS
    with pytest.raises(SamnnError):
        download.get("tiny_vit")
    (store / ".part-tiny_vit.pth").write_bytes(content)
    plan.drops, plan.requests = [], []
    download.get("tiny_vit")
    assert plan.requests == [] and (store / tiny.file).read_bytes() == content


def test_a_part_longer_than_the_file_is_started_anew(
    plan: Plan, store: Path, tiny: Entry, content: bytes
) -> None:
    plan.drops = [300_000] + [0] * download.ATTEMPTS_WITHOUT_PROGRESS
    with pytest.raises(SamnnError):
        download.get("tiny_vit")
    (store / ".part-tiny_vit.pth").write_bytes(content + b"more")
    plan.drops = []
    download.get("tiny_vit")  # the server answers 416 first
    assert (store / tiny.file).read_bytes() == content


def test_a_server_that_is_busy_is_asked_again(plan: Plan, tiny: Entry) -> None:
    plan.statuses = [503, 429]
    assert download.get("tiny_vit")[1]
    assert len(plan.requests) == 3


def test_a_file_of_unknown_length_is_downloaded_too(
    plan: Plan, store: Path, tiny: Entry, content: bytes
) -> None:
    plan.length = False
    download.get("tiny_vit")
    assert (store / tiny.file).read_bytes() == content


REFUSED = {  # what the server does → what the message says, and how often it may be asked
    "missing": ({"statuses": [404]}, "the server answers 404 Not Found", 1),
    "forbidden": ({"statuses": [403]}, "the server answers 403", 1),
    "always_busy": ({"statuses": [503] * 9}, "the server answers 503", download.ATTEMPTS_WITHOUT_PROGRESS),
    "login_page": (
        {"content": b"<html>Log in</html>", "content_type": "text/html; charset=utf-8"},
        "a web page",
        1,
    ),
    "another_file": ({"content": b"x" * 1000}, r"is 1,000 bytes long, but tiny_vit is \d{3},\d{3}", 1),
    "other_values": ({"content": as_bytes(state(7))}, "is not tiny_vit: its sha256 is", 1),
    "page_called_binary": ({"content": b"<html>Log in</html>", "length": False}, "is a web page", 1),
    "nothing": ({"content": b"", "length": False}, "is empty", 1),
    "cut_off_without_length": ({"length": False, "drops": [200_000]}, "cut off or damaged", 1),
    "code": ({"content": as_bytes({"a": print}), "length": False}, "holds code or objects", 1),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_the_file_leaves_nothing_behind(kind: str, plan: Plan, store: Path, tiny: Entry) -> None:
    changes, said, asked = REFUSED[kind]
    for name, value in changes.items():
        setattr(plan, name, list(value) if isinstance(value, list) else value)
    with pytest.raises(SamnnError, match=said) as caught:
        download.get("tiny_vit")
    assert "\n" not in str(caught.value)
    assert len(plan.requests) == asked and not names(store)


def test_a_wrong_file_of_ours_is_replaced(plan: Plan, store: Path, tiny: Entry, content: bytes) -> None:
    store.mkdir()
    (store / tiny.file).write_bytes(content[:1000])
    assert download.get("tiny_vit")[1]
    assert verified("tiny_vit")[0].read_bytes() == content


def test_a_wrong_file_in_a_folder_of_others_is_named(
    plan: Plan, store: Path, tiny: Entry, content: bytes, tmp_path: Path, monkeypatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / tiny.file).write_bytes(content[:1000])
    monkeypatch.setattr(download, "folder_to_write", lambda: store)  # root may write everywhere
    monkeypatch.setenv("SAMNN_WEIGHTS", f"{shared}{os.pathsep}{store}")
    with pytest.raises(SamnnError, match=r"cut off or damaged.*searched before"):
        download.get("tiny_vit")
    assert plan.requests == []


def test_what_a_read_only_folder_has_needs_no_other_folder(
    plan: Plan, tiny: Entry, content: bytes, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / tiny.file).write_bytes(content)
    monkeypatch.setenv("SAMNN_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(download, "folder_to_write", lambda: pytest.fail("nothing is to be written"))
    assert download.get("tiny_vit") == (tmp_path / tiny.file, False)
    assert plan.requests == []


def test_no_folder_that_can_be_written_to_is_said(
    plan: Plan, tiny: Entry, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMNN_WEIGHTS", f"{tmp_path / 'file'}{os.pathsep}/proc/weights")
    with pytest.raises(
        SamnnError, match=r"No folder for weights: .*file .*, /proc/weights .*Set SAMNN_WEIGHTS"
    ):
        download.get("tiny_vit")
    assert plan.requests == []


def test_a_write_that_fails_is_said_and_what_there_is_stays(
    plan: Plan, store: Path, tiny: Entry, content: bytes, command: Callable[..., subprocess.Popen]
) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    limited = command("weights", "get", "tiny_vit", preexec_fn=small_files_only)
    _, err = limited.communicate()
    assert limited.returncode == 1 and "Traceback" not in err
    assert f"{store / tiny.file}: cannot be written (File too large). Make room" in err
    assert (store / ".part-tiny_vit.pth").stat().st_size == 400_000
    download.get("tiny_vit")
    assert plan.requests[-1][1] == "bytes=400000-" and (store / tiny.file).read_bytes() == content


def test_too_little_space_is_said_before_anything_is_downloaded(
    plan: Plan, tiny: Entry, store: Path, monkeypatch
) -> None:
    monkeypatch.setitem(REGISTRY, "tiny_vit", replace(tiny, size_bytes=10**18))
    plan.length = False
    with pytest.raises(SamnnError, match=r"MB free, tiny_vit needs 1,000,000,000,000 MB more"):
        download.get("tiny_vit")


def test_a_server_that_is_not_there_is_said_with_the_way_round(tiny: Entry, monkeypatch) -> None:
    for mirror, said in [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://name.invalid", "cannot be downloaded"),
        ("ftp://127.0.0.1", "no http"),
        ("/some/folder", "named by SAMNN_WEIGHTS"),
        ("http://[::1", "no http"),
        ("http://127.0.0.1:99999", "no http"),
        ("http://a b", "no http"),
    ]:
        monkeypatch.setenv("SAMNN_WEIGHTS_MIRROR", mirror)
        with pytest.raises(SamnnError, match=said):
            download.get("tiny_vit")


def test_a_folder_in_the_place_of_the_file_is_said_before_anything_is_downloaded(
    plan: Plan, store: Path, tiny: Entry
) -> None:
    (store / tiny.file).mkdir(parents=True)
    with pytest.raises(SamnnError, match="is a folder where the file belongs"):
        download.get("tiny_vit")
    assert plan.requests == []


def test_ctrl_c_ends_a_download_and_keeps_its_beginning(
    plan: Plan, store: Path, content: bytes, command: Callable[..., subprocess.Popen]
) -> None:
    plan.bytes_per_s = len(content) / 5
    process = command("weights", "get", "tiny_vit")
    part = store / ".part-tiny_vit.pth"
    wait_for(part)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT and err == "Stopped by SIGINT.\n"
    assert part.stat().st_size > 0 and not (store / ".lock-tiny_vit.pth").exists()


def wait_for(part: Path) -> None:
    until = time.monotonic() + 30
    while not part.exists() or part.stat().st_size < 1:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_at_once_download_once(plan: Plan, store: Path, tiny: Entry, content: bytes, command) -> None:
    plan.bytes_per_s = len(content) / 1.5
    both = [command("weights", "get", "tiny_vit") for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.split(":")[0] for text in said) == ["Downloaded and verified", "Here already"]
    assert len(plan.requests) == 1 and names(store) == {tiny.file}


def test_a_killed_download_is_taken_up_by_the_next_process(
    plan: Plan, store: Path, tiny: Entry, content: bytes, command
) -> None:
    plan.bytes_per_s = len(content) / 5
    first = command("weights", "get", "tiny_vit")
    part = store / ".part-tiny_vit.pth"
    wait_for(part)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    have = part.stat().st_size
    plan.bytes_per_s, plan.requests = None, []
    second = command("weights", "get", "tiny_vit")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert [request for request in plan.requests if request[1] is not None] == [
        ("/tiny_vit.pth", f"bytes={have}-", len(content) - have)
    ]
    assert (store / tiny.file).read_bytes() == content and names(store) == {tiny.file}
