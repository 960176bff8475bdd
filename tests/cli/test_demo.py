"""The demo: every step is a real command with a log, done once; the chain ends in a table and a picture."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from samnn.dataset_conversion import _heart
from samnn.demo import Demo, Step
from samnn.errors import SamnnError
from samnn.phantom import write_segthor

SAMNN = str(Path(sys.executable).with_name("samnn"))


@pytest.fixture
def demo(tmp_path):
    demo = Demo(tmp_path / "demo", None, Console(file=io.StringIO(), width=120))
    demo.logs.mkdir(parents=True)
    return demo


def python(code):
    return [sys.executable, "-c", code]


def said(demo):
    return demo.console.file.getvalue()


def test_a_finished_step_is_not_done_again(demo):
    step = Step("count", python("open('count', 'a').write('x')"))
    demo.do(step)
    demo.do(step)
    assert (demo.out / "count").read_text() == "x"
    assert "finished before" in said(demo)


def test_a_step_whose_command_changed_is_done_again(demo):
    demo.do(Step("count", python("open('count', 'a').write('x')")))
    demo.do(Step("count", python("open('count', 'a').write('y')")))
    assert (demo.out / "count").read_text() == "xy"


def test_a_failing_step_shows_the_end_of_its_log_and_is_tried_again(demo):
    broken = "import os, sys; print('bad news'); sys.exit(0 if os.path.exists('cure') else 3)"
    with pytest.raises(SamnnError, match=r"(?s)broken failed with exit code 3.*broken\.log.*bad news"):
        demo.do(Step("broken", python(broken)))
    (demo.out / "cure").touch()
    demo.do(Step("broken", python(broken)))
    assert "bad news" in (demo.logs / "broken.log").read_text()


def test_the_option_for_a_leftover_is_added_only_where_there_is_one(demo):
    command = [*python("import sys; print(sys.argv[1:])"), "first"]
    leftover = (demo.out / "half", "--continue")
    demo.do(Step("one", command, leftover=leftover))
    (demo.out / "half").touch()
    demo.do(Step("two", command, leftover=leftover))
    assert (demo.logs / "one.log").read_text() == "['first']\n"
    assert (demo.logs / "two.log").read_text() == "['first', '--continue']\n"


def test_commands_see_the_folders_of_the_demo_and_our_trainers(demo):
    names = ["nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer", "EXTRA"]
    demo.do(Step("show", python(f"import os; print(*(os.environ[n] for n in {names}))"), {"EXTRA": "1"}))
    raw, preprocessed, results, trainers, extra = (demo.logs / "show.log").read_text().split()
    assert {Path(folder).parent for folder in (raw, preprocessed, results)} == {demo.out}
    assert (Path(trainers.split(":")[-1]) / "trainer_enet.py").is_file() and extra == "1"


def test_every_command_is_printed_so_that_it_can_be_typed(demo):
    demo.do(Step("show", [*python("pass"), "a b"], {"nnUNet_n_proc_DA": "0"}))
    assert f"nnUNet_n_proc_DA=0 {sys.executable} -c pass 'a b'" in said(demo)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    done = subprocess.run([SAMNN, "demo", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_with_a_demo_of_other_data_is_refused(tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "demo.json").write_text('{"data": "/other/data"}')
    with pytest.raises(SamnnError, match="demo of /other/data"):
        Demo(out, tmp_path, Console(file=io.StringIO())).run()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SamnnError, match="cannot be made"):
        Demo(tmp_path / "file" / "demo", None, Console(file=io.StringIO())).run()


def test_the_chain_runs_on_a_users_folder_and_evaluates_the_held_back_patient(tmp_path):
    """Unlabelled test patients, as in the challenge: fold 0's validation patient is evaluated instead."""
    source = tmp_path / "my SegTHOR"
    write_segthor(source, displace=_heart.displace, n_test=1)
    test = source / "test" / "Patient_06"
    shutil.move(test / "Patient_06.nii.gz", source / "test" / "Patient_06.nii.gz")
    shutil.rmtree(test)

    demo = Demo(
        tmp_path / "demo",
        source,
        Console(file=io.StringIO(), width=120),
        trainer="nnUNetTrainerENet_1epochs_2iters",
    )
    demo.run()
    assert (demo.out / "predictions" / "Patient_06.nii.gz").is_file()
    rows = list(csv.DictReader((demo.out / "evaluation" / "metrics.csv").open()))
    assert len({row["case"] for row in rows}) == 1 and {row["class"] for row in rows} >= {"heart", "aorta"}
    assert (demo.out / "predictions.png").read_bytes().startswith(b"\x89PNG")
    assert "hausdorff95" in said(demo) or "HD95" in said(demo)

    before = time.monotonic()
    demo.run()
    assert said(demo).count("finished before") == 5 and time.monotonic() - before < 30


@pytest.mark.slow
def test_the_demo_finds_the_heart_of_made_up_patients(tmp_path):
    """200 iterations are too few for the thin organs."""
    done = subprocess.run([SAMNN, "demo", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "out" / "evaluation" / "metrics.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["metric"] == "dice"]
    assert len(rows) == 8
    assert all(float(row["value"]) > 0.5 for row in rows if row["class"] == "heart")
    assert re.search(r"references beside predictions: .*predictions\.png", done.stdout)


def test_data_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(SamnnError, match="typo: no such folder"):
        Demo(tmp_path / "demo", tmp_path / "typo", Console(file=io.StringIO())).run()
    assert not (tmp_path / "demo").exists()


def test_a_folder_inside_the_data_is_refused(tmp_path):
    with pytest.raises(SamnnError, match="lies inside the data"):
        Demo(tmp_path / "segthor" / "demo", _made(tmp_path / "segthor"), Console(file=io.StringIO())).run()


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_note_of_the_data_is_a_message(tmp_path, content):
    (_made(tmp_path / "demo") / "demo.json").write_text(content)
    with pytest.raises(SamnnError, match=r"demo\.json: is damaged"):
        Demo(tmp_path / "demo", None, Console(file=io.StringIO())).run()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
