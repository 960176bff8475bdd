"""Whatever file is named as weights: tensors, or one sentence that says what it is. Nothing in it is ever run."""

from __future__ import annotations

import argparse
import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from tiny_weights import as_bytes, state

from samnn.errors import SamnnError
from samnn.weights import read, read_state_dict


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


READABLE = {
    "bare": lambda s: as_bytes(s),
    "ordered": lambda s: as_bytes(OrderedDict(s)),
    "under_model": lambda s: as_bytes({"model": s}),
    "under_state_dict_beside_more": lambda s: as_bytes(
        {"epoch": 3, "state_dict": s, "optimizer": {"state": {}}}
    ),
    "under_nnunet_key": lambda s: as_bytes({"network_weights": s}),
    "before_torch_1_6": lambda s: as_bytes(s, _use_new_zipfile_serialization=False),
    "safetensors": lambda s: safetensors_bytes(s),
    "parameters": lambda s: as_bytes({key: torch.nn.Parameter(value) for key, value in s.items()}),
}


@pytest.mark.parametrize("layout", READABLE)
def test_every_usual_layout_gives_the_same_tensors(layout: str, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(READABLE[layout](state()))
    assert same(read(file), state())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_a_file_is_mapped_so_that_unused_tensors_stay_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(as_bytes(state()))
    kept = read_state_dict(file)
    assert str(file) in Path("/proc/self/maps").read_text() and kept


def test_reading_twice_gives_the_same_tensors_and_a_changed_file_gives_new_ones(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(as_bytes(state(1)))
    first, second = read_state_dict(file), read_state_dict(file)
    assert first["padding"] is second["padding"] and first is not second
    (tmp_path / "new").write_bytes(as_bytes(state(2)))
    os.replace(tmp_path / "new", file)
    assert same(read_state_dict(file), state(2))


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def _tar(content: bytes, name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def _script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)), buffer)
    return buffer.getvalue()


NOT_WEIGHTS = {  # what the file holds → what the message must say of it
    "nothing": (b"", "is empty"),
    "html": (b"\n  <!DOCTYPE html><html>Log in</html>", "is a web page"),
    "xml": (b"<?xml version='1.0'?><Error/>", "is a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS pointer"),
    "json": (b'{"error": "quota exceeded"}', "is text"),
    "words": (b"lorem ipsum dolor", "no file of torch"),
    "zeros": (bytes(4096), "zeros, not weights"),
    "gzip": (gzip.compress(as_bytes(state())), "is an archive"),
    "tar": (_tar(as_bytes(state()), "weights.pth"), "is an archive"),
    "tar_that_starts_like_a_pickle": (_tar(b"", "\x80\x02.pth"), "is an archive"),
    "zip": (_zip(**{"weights.pth": as_bytes(state())}), "is an archive"),
    "script": (_script(), "TorchScript"),
    "zip_cut_off": (as_bytes(state())[:-5000], "cut off or damaged"),
    "old_cut_off": (as_bytes(state(), _use_new_zipfile_serialization=False)[:-5000], "Get it again"),
    "safetensors_cut_off": (safetensors_bytes(state())[:-5000], "Get it again"),
    "safetensors_header_cut_off": (safetensors_bytes(state())[:60], "cut off"),
    "safetensors_header_broken": (struct.pack("<Q", 64) + b"{" * 64, "Get it again"),
    "a_tensor": (as_bytes(torch.zeros(3)), "holds a Tensor"),
    "no_tensors": (as_bytes({}), "holds nothing"),
    "numbers": (as_bytes({"a": 1.0}), "'a' is a float"),
    "tensors_and_numbers": (as_bytes(state() | {"epoch": 3}), "'epoch' is a int"),
    "keys_that_are_no_names": (as_bytes({3: torch.zeros(1)}), "3 is a Tensor"),
    "objects": (as_bytes({"model": state(), "args": argparse.Namespace(lr=1)}), "argparse.Namespace"),
    "a_plain_pickle": (pickle.dumps({"a": [1]}, protocol=2), "Get it"),
}


@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_what_is_no_weights_is_refused_in_one_line_that_says_what_it_is(kind: str, tmp_path: Path) -> None:
    content, said = NOT_WEIGHTS[kind]
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(SamnnError) as caught:
        read_state_dict(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and said in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before_torch_1_6"])
def test_code_in_a_pickle_is_named_and_never_run(new: bool, tmp_path: Path) -> None:
    file, marker = tmp_path / "weights.pth", tmp_path / "was_run"
    file.write_bytes(as_bytes({"model": state(), "x": _Evil(marker)}, _use_new_zipfile_serialization=new))
    with pytest.raises(SamnnError, match=r"holds code or objects \(posix\.mkdir\)"):
        read_state_dict(file)
    assert not marker.exists()


def test_folders_pipes_and_missing_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in [("", "is a folder"), ("pipe", "no regular file"), ("none.pth", "no such file")]:
        with pytest.raises(SamnnError, match=said):
            read_state_dict(tmp_path / name)
