"""`samnn env`, evaluated by real shells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import samnn.plugins

PLUGINS = str(Path(samnn.plugins.__file__).parent)
FOLDERS = ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "SAMNN_WEIGHTS"]
VARIABLES = ["nnUNet_extTrainer", *FOLDERS]
AWKWARD = 'a b/it\'s "q"/$HOME `x` \\n;#*/Zoë 心'


def clean_environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return {**kept, **variables}


def evaluated(script: str, *arguments: str, shell: str = "bash", **variables: str) -> dict[str, str]:
    """The variables after `script` ran in a real shell, "-" where unset."""
    show = "; ".join(f'printf "%s\\0" "${{{name}--}}"' for name in VARIABLES)
    shown = subprocess.run(
        [shell, "-c", f"{script}\n{show}", shell, *arguments],
        env=clean_environment(**variables),
        capture_output=True,
        check=True,
    ).stdout
    return dict(zip(VARIABLES, os.fsdecode(shown).split("\0"), strict=False))


def samnn_env(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["samnn", "env", *arguments], env=clean_environment(**variables), capture_output=True, text=True
    )


SHELLS = pytest.mark.parametrize("shell", ["bash", "sh"])


@SHELLS
def test_without_root_only_our_trainers_are_added(shell):
    assert evaluated('eval "$(samnn env)"', shell=shell) == {
        "nnUNet_extTrainer": PLUGINS, **dict.fromkeys(FOLDERS, "-"),
    }  # fmt: skip


@SHELLS
def test_with_root_the_four_folders_lie_below_it(shell, tmp_path):
    assert evaluated('eval "$(samnn env "$1")"', str(tmp_path), shell=shell) == {
        "nnUNet_extTrainer": PLUGINS,
        "nnUNet_raw": f"{tmp_path}/nnUNet_raw",
        "nnUNet_preprocessed": f"{tmp_path}/nnUNet_preprocessed",
        "nnUNet_results": f"{tmp_path}/nnUNet_results",
        "SAMNN_WEIGHTS": f"{tmp_path}/weights",
    }


@SHELLS
def test_awkward_names_arrive_letter_by_letter(shell, tmp_path):
    root = tmp_path / AWKWARD
    found = evaluated('eval "$(samnn env "$1")"', str(root), shell=shell, nnUNet_extTrainer=f"/x/{AWKWARD}")
    assert found["nnUNet_raw"] == f"{root}/nnUNet_raw"
    assert found["nnUNet_extTrainer"] == f"/x/{AWKWARD}{os.pathsep}{PLUGINS}"


def test_a_name_that_is_no_valid_text_arrives_byte_by_byte(tmp_path):
    root = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    assert evaluated('eval "$(samnn env "$1")"', root)["nnUNet_raw"] == f"{root}/nnUNet_raw"


def test_trainers_already_listed_stay_in_front_and_ours_appear_once():
    script = 'eval "$(samnn env)"; eval "$(samnn env)"'
    for before, after in [
        ("/other", f"/other:{PLUGINS}"),
        (f"{PLUGINS}/:/other", f"{PLUGINS}/:/other"),  # listed with a slash
        (":/other:", f"/other:{PLUGINS}"),  # empty entries
        ("", PLUGINS),
    ]:
        assert evaluated(script, nnUNet_extTrainer=before)["nnUNet_extTrainer"] == after


def test_a_folder_that_is_set_stays_and_a_note_says_so(tmp_path):
    there = {"nnUNet_raw": "/mine", "nnUNet_results": ""}
    found = evaluated('eval "$(samnn env "$1")"', str(tmp_path), **there)
    assert (found["nnUNet_raw"], found["nnUNet_results"]) == ("/mine", f"{tmp_path}/nnUNet_results")
    notes = samnn_env(str(tmp_path), **there).stderr.splitlines()
    assert len(notes) == 1 and "nnUNet_raw stays /mine" in notes[0] and "--force" in notes[0]


def test_force_replaces_folders_and_still_only_appends_trainers(tmp_path):
    found = evaluated(
        'eval "$(samnn env --force "$1")"', str(tmp_path), nnUNet_raw="/mine", nnUNet_extTrainer="/o"
    )
    assert found["nnUNet_raw"] == f"{tmp_path}/nnUNet_raw"
    assert found["nnUNet_extTrainer"] == f"/o:{PLUGINS}"


def test_evaluating_twice_changes_and_says_nothing_more(tmp_path):
    once = evaluated('eval "$(samnn env "$1")"', str(tmp_path))
    assert evaluated('eval "$(samnn env "$1")"', str(tmp_path), **once) == once
    assert samnn_env(str(tmp_path), **once).stderr == ""


def test_a_relative_root_becomes_absolute_and_nothing_is_created(tmp_path):
    found = evaluated('cd "$1"; eval "$(samnn env sub/../data)"', str(tmp_path))
    assert found["nnUNet_raw"] == f"{tmp_path}/data/nnUNet_raw"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taken", ["root", "root/nnUNet_results"])
def test_a_file_in_the_way_is_refused_without_a_line_to_evaluate(tmp_path, taken):
    (tmp_path / taken).parent.mkdir(exist_ok=True)
    (tmp_path / taken).write_text("not a folder")
    refused = samnn_env(str(tmp_path / "root"))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"{tmp_path / taken}: is a file" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("root", "code", "fault"),
    [
        ("~nobodyhere/x", 1, "no such user"),
        (f"{__file__}/below", 1, f"{__file__}: is a file"),
        ("", 2, "argument is empty"),
        ("a" * 300, 1, "File name too long"),
    ],
)
def test_a_root_that_cannot_be_is_refused_without_a_line_to_evaluate(root, code, fault):
    refused = samnn_env(root)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert fault in refused.stderr and "Traceback" not in refused.stderr


def test_force_without_root_is_refused():
    refused = samnn_env("--force")
    assert refused.returncode == 2 and refused.stdout == "" and "ROOT" in refused.stderr


def test_neither_torch_nor_nnunet_nor_our_trainers_are_imported():
    listing = samnn_env(PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rpartition("|")[2].strip() for line in listing.stderr.splitlines()}
    assert "samnn.environment" in loaded
    assert not loaded & {"torch", "nnunetv2", "samnn.plugins", "trainer_enet"}
