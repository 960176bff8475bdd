"""What every converter promises. A new one joins by its file, and a function of its name in set_samples.py."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import set_samples
from small_thorax import files
from typer.testing import CliRunner

import samnn.dataset_conversion
from samnn.cli import app, main
from samnn.dataset_conversion import checks
from samnn.dataset_conversion._pixels import read_mask, read_picture
from samnn.io import read_labels, read_volume

ROOM = Path(samnn.dataset_conversion.__path__[0])
CONVERTERS = sorted(path.stem for path in ROOM.glob("[!_]*.py"))
KILLED_AT_THE_SECOND_RENAME = """
import importlib, json, os, signal, sys
from samnn.cli import main

commands = json.loads(sys.argv[1])
for converter in commands:
    importlib.import_module(f"samnn.dataset_conversion.{converter}")

def kill_at_the_second(event, arguments, renames=[]):
    renames += [event] if event == "os.rename" else []
    if event == "os.rename" and len(renames) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

ends = {}
for converter, arguments in commands.items():
    child = os.fork()
    if child == 0:
        sys.addaudithook(kill_at_the_second)
        sys.argv = ["samnn", *arguments]
        try:
            main()
        finally:
            os._exit(0)
    ends[converter] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(ends))
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture(params=CONVERTERS)
def converter(request) -> str:
    return request.param


@pytest.fixture
def sample(converter, tmp_path, shared) -> set_samples.Sample:
    return getattr(set_samples, converter)(tmp_path / "source", shared)


@pytest.fixture
def run(monkeypatch, capfd) -> Run:
    """Run the command line in this process; the exit code, and all it printed."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["samnn", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            signal.signal(signal.SIGTERM, before)
        return code, "".join(capfd.readouterr())

    return call


def arguments(converter: str, sample: set_samples.Sample, raw: Path) -> list[str]:
    return [*map(str, ["convert", converter, *sample.arguments, "-d", 77, "--name", "Set", "-o", raw])]


def test_help_says_source_licence_citation_layout_and_examples(converter):
    help_text = CliRunner().invoke(app, ["convert", converter, "--help"]).output
    said = re.sub(r"[│\s]+", " ", help_text)
    wanted = ["Examples", f"samnn convert {converter}", "--dry-run"]
    if converter != "pairs":  # anybody's own data
        wanted += ["Source:", "Licence:", "Citation:", "Layout:"]
    assert [word for word in wanted if word not in said] == []


def test_real_cases_come_back_voxel_for_voxel_and_check_finds_no_error(converter, sample, run, tmp_path):
    before = files(tmp_path / "source")
    code, said = run(*arguments(converter, sample, tmp_path / "raw"))
    assert code == 0, said
    dataset = tmp_path / "raw/Dataset077_Set"
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [dataset.name]
    found = {
        path.relative_to(dataset).as_posix()
        for folder in ("images", "labels")
        for path in dataset.glob(f"{folder}T?/*")
    }
    assert found == {*sample.images, *sample.labels}
    for name, expected in sample.images.items():
        if name.endswith(".png"):
            np.testing.assert_array_equal(read_picture(dataset / name)[0].voxels.T, expected)
            continue
        volume = read_volume(dataset / name)
        np.testing.assert_array_equal(volume.voxels, expected)
        if sample.spacing_mm is not None:
            np.testing.assert_allclose(volume.grid.spacing_mm, sample.spacing_mm)
    for name, expected in sample.labels.items():
        if name.endswith(".png"):
            np.testing.assert_array_equal(read_mask(dataset / name).voxels.T, expected)
        else:
            np.testing.assert_array_equal(read_labels(dataset / name).voxels, expected)
    report = checks.check(str(dataset), workers=1)
    assert [str(finding) for finding, _ in errors(report)] == []
    record = json.loads((dataset / "conversion.json").read_text())
    assert record["converter"] == converter
    assert {f"{name}" for name in record["cases"]} == {
        Path(name).name.rpartition("_")[0] for name in sample.images
    }
    assert files(tmp_path / "source") == before


def errors(report) -> list:
    return [(finding, name) for name, finding in report.findings if finding.severity.value == "error"]


def test_a_dry_run_writes_nothing(converter, sample, run, tmp_path):
    before = files(tmp_path)
    code, said = run(*arguments(converter, sample, tmp_path / "raw"), "--dry-run")
    assert code == 0, said
    assert files(tmp_path) == before and not (tmp_path / "raw").exists()


def test_a_file_cut_short_is_refused_by_name_and_nothing_is_written(converter, sample, run, tmp_path):
    sample.victim.write_bytes(sample.victim.read_bytes()[: sample.victim.stat().st_size // 2])
    code, said = run(*arguments(converter, sample, tmp_path / "raw"))
    assert code == 1 and "Traceback" not in said
    assert sample.victim.name in said
    assert not (tmp_path / "raw/Dataset077_Set").exists()


def test_a_file_without_its_counterpart_is_refused_by_name(converter, sample, run, tmp_path):
    counted = converter == "medsam_npz"  # one file a case: nothing else misses it
    sample.lonely.unlink()
    code, said = run(*arguments(converter, sample, tmp_path / "raw"))
    if counted:
        assert code == 0, said
        return
    assert code == 1 and "Traceback" not in said
    stem = sample.lonely.name.partition(".")[0]
    assert stem in said or re.sub(r".*?_", "", stem).lstrip("slice0") in said
    assert not (tmp_path / "raw/Dataset077_Set").exists()


def test_a_source_that_is_not_there_is_refused_by_name(converter, sample, run, tmp_path):
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    code, said = run(*arguments(converter, sample, tmp_path / "raw"))
    assert code == 1 and "Traceback" not in said
    assert str(tmp_path / "source") in said.replace("\n", "")
    assert not (tmp_path / "raw").exists()


def test_an_existing_dataset_stays_without_overwrite(converter, sample, run, tmp_path):
    (tmp_path / "raw/Dataset077_Set").mkdir(parents=True)
    code, said = run(*arguments(converter, sample, tmp_path / "raw"))
    assert code == 1 and "--overwrite" in said
    assert not list((tmp_path / "raw/Dataset077_Set").iterdir())


@pytest.fixture(scope="module")
def killed(tmp_path_factory, shared) -> Path:
    """A folder for each converter, with its source and what a conversion left that was killed (SIGKILL)."""
    root = tmp_path_factory.mktemp("killed")
    commands = {
        name: arguments(name, getattr(set_samples, name)(root / name / "source", shared), root / name / "raw")
        for name in CONVERTERS
    }
    command = [sys.executable, "-c", KILLED_AT_THE_SECOND_RENAME, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(CONVERTERS, -signal.SIGKILL)
    return root


def test_killed_in_the_middle_nothing_half_is_there_and_the_next_run_ends_as_a_clean_one(
    converter, killed, shared, run
):
    folder = killed / converter
    assert [path.name for path in (folder / "raw").glob("[!.]*")] == []
    sample = getattr(set_samples, converter)(folder / "other", shared)  # for the arguments alone
    shutil.rmtree(folder / "other")
    options = [str(option).replace(f"{folder}/other", f"{folder}/source") for option in sample.arguments]
    for raw in ("raw", "clean"):
        code, said = run(*arguments(converter, replace(sample, arguments=options), folder / raw))
        assert code == 0, said
    assert [path.name for path in (folder / "raw").iterdir()] == ["Dataset077_Set"]
    assert files(folder / "raw") == files(folder / "clean")
