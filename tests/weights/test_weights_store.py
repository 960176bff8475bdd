"""Names and paths lead to files that are what they say; a hash is computed once."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save as safetensors_bytes
from tiny_weights import as_bytes, state

from samnn.errors import SamnnError
from samnn.weights import REGISTRY, Entry, add, locate, read, verified
from samnn.weights import store as store_module
from samnn.weights.store import status
from samnn.weights.users import used_by


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is hashed, in order."""
    files: list[Path] = []
    hash_file = store_module.hash_file

    def noting(path: Path, *rest: object) -> str:
        files.append(path)
        return hash_file(path, *rest)

    monkeypatch.setattr(store_module, "hash_file", noting)
    return files


# ---- the registry


def test_every_entry_says_where_from_under_which_licence_how_large_and_who_says_so() -> None:
    letters = ["t", "s", "b+", "l"]
    assert list(REGISTRY) == [
        "sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b",
        *(f"sam2_hiera_{letter}" for letter in letters), *(f"sam2.1_hiera_{letter}" for letter in letters),
    ]  # fmt: skip
    for known in REGISTRY.values():
        assert known.url.startswith("https://") and known.url.endswith("/" + known.file)
        assert (
            known.page.startswith("https://")
            and known.licence == "Apache-2.0"
            and known.size_bytes > 100_000_000
        )
        assert re.fullmatch("[0-9a-f]{64}", known.sha256) and known.sha256_page.startswith("https://")
    for what in ("file", "url", "sha256", "size_bytes"):
        assert len({getattr(known, what) for known in REGISTRY.values()}) == len(REGISTRY), what


TIMM = {
    "sam_vit_b": "samvit_base_patch16", "sam_vit_l": "samvit_large_patch16", "sam_vit_h": "samvit_huge_patch16",
    "sam2_hiera_t": "sam2_hiera_tiny", "sam2_hiera_s": "sam2_hiera_small",
    "sam2_hiera_b+": "sam2_hiera_base_plus", "sam2_hiera_l": "sam2_hiera_large",
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_the_telling_tensors_have_the_shapes_of_timms_encoders(name: str) -> None:
    with torch.device("meta"):
        encoder = timm.create_model(TIMM[name], pretrained=False)
    shapes = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    prefix = "image_encoder.trunk." if "hiera" in name else "image_encoder."
    for key, shape in REGISTRY[name].shapes.items():
        if key.startswith(prefix):
            assert shapes[key.removeprefix(prefix)] == shape
    for key in REGISTRY[name].absent:
        assert key.removeprefix(prefix) not in shapes


def test_trainers_use_only_weights_that_there_are() -> None:
    assert used_by().keys() <= REGISTRY.keys()


# ---- lookup


def test_folders_are_searched_in_order(tiny: Entry, content: bytes, tmp_path: Path, monkeypatch) -> None:
    folders = [tmp_path / name for name in "abc"]
    monkeypatch.setenv("SAMNN_WEIGHTS", os.pathsep.join(map(str, folders)))
    for folder in folders[1:]:
        folder.mkdir()
        (folder / tiny.file).write_bytes(content)
    assert locate("tiny_vit") == tmp_path / "b" / tiny.file


def test_what_is_missing_is_said_with_both_ways_to_get_it(tiny: Entry, store: Path) -> None:
    with pytest.raises(SamnnError) as caught:
        read("tiny_vit")
    for word in (str(store), "samnn weights get tiny_vit", "samnn weights add FILE", tiny.url):
        assert word in str(caught.value)


def test_an_unknown_name_lists_those_there_are(store: Path) -> None:
    with pytest.raises(
        SamnnError, match=r"sam_vit_x: no such weights. There are: sam_vit_b, .*sam2\.1_hiera_b\+"
    ):
        read("sam_vit_x")


def test_looking_up_and_verifying_imports_no_torch(tiny: Entry, store: Path, content: bytes) -> None:
    store.mkdir()
    (store / tiny.file).write_bytes(content)
    code = f"import sys; from samnn import weights; weights.verified({str(store / tiny.file)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# ---- verification


def test_the_right_file_is_read_by_name(tiny: Entry, store: Path, content: bytes) -> None:
    store.mkdir()
    (store / tiny.file).write_bytes(content)
    path, sha256 = verified("tiny_vit")
    assert (path, sha256) == (store / tiny.file, hashlib.sha256(content).hexdigest())
    assert torch.equal(read("tiny_vit")["padding"], state()["padding"])


def test_a_file_is_hashed_once_also_by_the_next_process_and_again_when_it_changes(
    tiny: Entry, store: Path, content: bytes, hashed: list[Path]
) -> None:
    store.mkdir()
    file = store / tiny.file
    file.write_bytes(content)
    assert status(tiny) == "not verified yet"
    for _ in range(3):
        verified("tiny_vit")
        read("tiny_vit")
    assert hashed == [file] and status(tiny) == "verified"
    verified("tiny_vit", afresh=True)
    assert len(hashed) == 2
    os.utime(file, ns=(0, time.time_ns()))  # touched: it may have changed
    verified("tiny_vit")
    assert len(hashed) == 3


def test_same_size_and_time_but_other_content_in_a_new_file_is_noticed(
    tiny: Entry, store: Path, content: bytes
) -> None:
    store.mkdir()
    file = store / tiny.file
    file.write_bytes(content)
    verified("tiny_vit")
    before = file.stat()
    other = bytearray(content)
    other[-30_000] ^= 1
    (store / "new").write_bytes(other)
    os.utime(store / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(store / "new", file)
    with pytest.raises(SamnnError, match="is not tiny_vit: its sha256 is"):
        verified("tiny_vit")
    assert status(tiny) == "wrong"


def test_a_damaged_note_of_a_hash_is_as_none(
    tiny: Entry, store: Path, content: bytes, hashed: list[Path]
) -> None:
    store.mkdir()
    (store / tiny.file).write_bytes(content)
    verified("tiny_vit")
    (note,) = (store / ".verified").iterdir()
    for damaged in ("", "[]", '{"identity": 3}'):
        note.write_text(damaged)
        verified("tiny_vit")
    assert len(hashed) == 4


def test_a_read_only_folder_serves_and_its_hash_is_remembered_elsewhere(
    tiny: Entry, store: Path, content: bytes, tmp_path: Path, monkeypatch, hashed: list[Path]
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / tiny.file).write_bytes(content)
    (shared / ".verified").write_text("a file in the way: nothing can be noted here, whoever asks")
    monkeypatch.setenv("SAMNN_WEIGHTS", f"{shared}{os.pathsep}{store}")
    for _ in range(2):
        assert verified("tiny_vit")[0] == shared / tiny.file
    assert hashed == [shared / tiny.file] and len(list((store / ".verified").iterdir())) == 1


WRONG = {  # content → what the message must say
    "another_variant": (
        as_bytes(state(**{"image_encoder.blocks.2.attn.qkv.weight": (72, 24)})),
        "none that samnn knows",
    ),
    "other_values": (as_bytes(state(7)), "shapes of tiny_vit"),
    "web_page": (b"<html>", "is a web page"),
    "pickle_with_code": (as_bytes({"a": print}), r"holds code or objects \(print\)"),
    "cut_off": (as_bytes(state())[:300_000], "cut off"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_under_a_right_name_is_refused(kind: str, tiny: Entry, store: Path) -> None:
    content, said = WRONG[kind]
    store.mkdir()
    (store / tiny.file).write_bytes(content)
    for ask in (verified, read):
        with pytest.raises(SamnnError, match=said) as caught:
            ask("tiny_vit")
        assert "\n" not in str(caught.value)


def test_a_file_that_is_another_known_one_is_called_by_its_name(
    tiny: Entry, store: Path, content: bytes, monkeypatch
) -> None:
    monkeypatch.setitem(REGISTRY, "twin", replace(tiny, name="twin", file="twin.pth", sha256="0" * 64))
    store.mkdir()
    (store / "twin.pth").write_bytes(content)
    with pytest.raises(SamnnError, match="is not twin: it is tiny_vit"):
        verified("twin")


# ---- where no hash is published


def test_without_a_published_hash_shapes_decide(
    tiny_without_hash: Entry, store: Path, content: bytes
) -> None:
    store.mkdir()
    file = store / tiny_without_hash.file
    for other, said in [
        (
            {"image_encoder.blocks.2.attn.qkv.weight": (72, 24)},
            r"it has a tensor image_encoder\.blocks\.2\.\S+, too",
        ),
        ({"mask_decoder.mask_tokens.weight": (5, 256)}, "is 5 × 256, not 4 × 256"),
    ]:
        file.write_bytes(as_bytes(state(**other)))
        with pytest.raises(SamnnError, match=f"is not tiny_vit: .*{said}"):
            verified("tiny_vit")
    file.write_bytes(as_bytes({"padding": torch.zeros(3)}))
    with pytest.raises(SamnnError, match="it has no tensor image_encoder"):
        verified("tiny_vit")


def test_without_a_published_hash_the_first_one_is_kept(
    tiny_without_hash: Entry, store: Path, content: bytes
) -> None:
    store.mkdir()
    file = store / tiny_without_hash.file
    file.write_bytes(content)
    assert verified("tiny_vit")[1] == hashlib.sha256(content).hexdigest()
    file.write_bytes(as_bytes(state(7)))
    for _ in range(2):
        with pytest.raises(SamnnError, match="has changed since its first use"):
            verified("tiny_vit")
    add(file, "tiny_vit")
    assert verified("tiny_vit")[1] == hashlib.sha256(file.read_bytes()).hexdigest()


# ---- a user's own file


def test_a_users_own_file_is_read_and_hashed_by_its_path(store: Path, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "own.safetensors"
    file.write_bytes(safetensors_bytes(state(3)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for named in (file, str(file), "own.safetensors", "~/own.safetensors"):
        assert torch.equal(read(named)["padding"], state(3)["padding"])
        assert verified(named) == (file, hashlib.sha256(file.read_bytes()).hexdigest())


# ---- add


def test_adding_a_file_recognises_it_and_copies_it(
    tiny: Entry, store: Path, content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "download(1)"
    file.write_bytes(content)
    assert add(file) == (tiny, store / tiny.file)
    assert add(file, "tiny_vit") == (tiny, store / tiny.file)  # twice does no harm
    assert add(store / tiny.file) == (tiny, store / tiny.file)
    assert (store / tiny.file).read_bytes() == content and status(tiny) == "verified"
    assert {path.name for path in store.iterdir()} == {tiny.file, ".verified"}


def test_adding_refuses_what_is_unknown_or_not_what_it_is_said_to_be(
    tiny: Entry, store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.pth"
    file.write_bytes(as_bytes(state(7)))
    with pytest.raises(
        SamnnError, match=r"none of the weights samnn knows.*shapes of tiny_vit.*used by their path"
    ):
        add(file)
    with pytest.raises(SamnnError, match="is not tiny_vit"):
        add(file, "tiny_vit")
    with pytest.raises(SamnnError, match="no such weights"):
        add(file, "tiny_vitt")
    assert not list(store.rglob("*.pth"))
