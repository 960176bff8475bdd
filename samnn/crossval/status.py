"""Status: what is done, running, failed and why, read from the markers, records and locks that jobs leave."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samnn.atomic import LOCK_PREFIX
from samnn.crossval.experiment import FILE, Experiment
from samnn.crossval.folds import Fold
from samnn.crossval.steps import Step

DONE, RUNNING, FAILED, KILLED, WAITING = "done", "running", "failed", "killed", "waiting"
STYLES = {DONE: "green", RUNNING: "cyan", FAILED: "red", KILLED: "yellow", WAITING: "dim"}


@dataclass(frozen=True)
class State:
    """How one step is: `reason` where it failed, `seconds` it has run (the last time)."""

    step: Step
    status: str
    reason: str = ""
    seconds: float | None = None
    where: str = ""


def states_of(out: Path, steps: Sequence[Step]) -> list[State]:
    return [_state(out, step) for step in steps]


def _state(out: Path, step: Step) -> State:
    record = _read(out / step.state)
    began, ended = record.get("began"), record.get("ended")
    seconds = (ended or time.time()) - began if began is not None else None
    where = " ".join(
        filter(None, [record.get("host", ""), f"job {record['job']}" if record.get("job") else ""])
    )
    if (out / step.marker).is_file():
        return State(step, DONE, seconds=seconds if ended else None, where=where)
    if not record:
        return State(step, WAITING)
    if _is_locked(out / step.state):
        return State(step, RUNNING, seconds=seconds, where=where)
    if ended is None or record.get("was_killed"):
        return State(step, KILLED, "ended from outside; the next run goes on", where=where)
    if record.get("reason"):
        return State(step, FAILED, record["reason"], seconds, where)
    return State(step, WAITING)


def print_status(out: Path, steps: Sequence[Step], console: Console) -> bool:
    """A table of all steps, and why some failed; → whether all are done."""
    states = states_of(out, steps)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("step", "state", "", "where"):
        table.add_column(heading, overflow="fold")
    for state in states:
        link = Text(state.step.name)
        if (out / state.step.log).is_file():
            link.stylize(f"link file://{out / state.step.log}")
        table.add_row(link, Text(state.status, style=STYLES[state.status]), _how_far(out, state), state.where)
    console.print(table)
    for state in states:
        if state.status in (FAILED, KILLED):
            console.print(
                Text(f"\n{state.step.name}: {state.reason}\n  log: {out / state.step.log}"), soft_wrap=True
            )
    counts = {status: sum(state.status == status for state in states) for status in STYLES}
    console.print("\n" + ", ".join(f"{n} {status}" for status, n in counts.items() if n))
    report = out / "comparison" / "report.html"
    if report.is_file():
        console.print(Text(f"report: {report}"), soft_wrap=True)
    return counts[DONE] == len(states)


def _how_far(out: Path, state: State) -> str:
    if state.status == RUNNING and state.step.kind == "fold":
        part = out / Path(state.step.name).parent
        epoch = Fold(Experiment.read(part / FILE), state.step.method, state.step.fold).epoch()
        if epoch is not None:
            return f"epoch {epoch}"
    if state.seconds is None or state.status not in (DONE, RUNNING):
        return ""
    minutes, seconds = divmod(round(state.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _is_locked(target: Path) -> bool:
    """Whether a process, on whatever machine, holds the lock of a step."""
    try:
        lock = os.open(target.with_name(f"{LOCK_PREFIX}{target.name}"), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)
