"""Starting: an experiment from arguments, a file, or the folder of an earlier run; checked, then run."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samnn.atomic import only_writer
from samnn.crossval.experiment import FILE, Experiment, refuse_old_python
from samnn.crossval.steps import LOWDATA, Step, steps_in, steps_of
from samnn.environment import dataset_there
from samnn.errors import SamnnError


def start(
    given: Mapping[str, Any],
    *,
    file: Path | None,
    out: Path | None,
    resume: bool,
    executor: str,
    jobs: int | None,
    extra: str,
    dry_run: bool,
    print_commands: bool,
    console: Console,
) -> None:
    """Run a cross-validation to its report, or say what would be run.

    Raises:
        SamnnError: what the user has to mend; nothing was started then, unless steps failed.
    """
    experiment = _experiment(given, file, out, resume)
    dataset_there(experiment.dataset)
    if print_commands:
        from samnn.crossval.script import shell_lines

        for line in shell_lines(experiment):
            print(line)
        return
    from samnn.crossval.check import check
    from samnn.crossval.engine import run

    with console.status("checking every method"):
        check(experiment, is_prepared=False)
    if dry_run:
        from samnn.crossval.status import states_of

        steps = list(steps_of(experiment))
        _print_steps(
            steps, {state.step.name: state.status for state in states_of(experiment.out, steps)}, console
        )
        return
    _refuse_unmatched_quotes(extra)
    with only_writer(experiment.out / "run"):  # a second command must not touch what the first one runs on
        changed = experiment.settle()
        steps = steps_in(experiment.out)
        if "folds" in changed:  # test cases are predicted by all folds
            shutil.rmtree(experiment.out / "test", ignore_errors=True)
        if changed:  # what was gathered from other methods or folds is gathered again
            for step in steps:
                if step.kind not in ("fold", "prepare", "predict"):
                    (experiment.out / step.marker).unlink(missing_ok=True)
            (experiment.out / "done" / "prepare.json").unlink(missing_ok=True)  # it checks the new ones
        run(experiment.out, steps, experiment, executor=executor, jobs=jobs, extra=extra, console=console)
    report = experiment.out / "comparison" / "report.html"
    if report.is_file():
        console.print(Text(f"Written: {report}"), soft_wrap=True)


def start_lowdata(
    given: Mapping[str, Any],
    *,
    sizes: Sequence[str] | None,
    seed: int,
    out: Path | None,
    resume: bool,
    executor: str,
    jobs: int | None,
    extra: str,
    dry_run: bool,
    console: Console,
) -> None:
    """Run a learning curve, or say what would be run. Raises SamnnError, as `start`."""
    from samnn.crossval.check import check
    from samnn.crossval.engine import run
    from samnn.crossval.lowdata import LowData

    if resume:
        if out is None or given or sizes:
            raise SamnnError("--resume takes the folder of the learning curve, -o OUT, and nothing else.")
        curve = LowData.read(out.absolute())
    else:
        curve = LowData.of(_with_device(given), sizes or [], seed=seed, out=out)
    dataset_there(curve.base.dataset)
    with console.status("checking every method"):
        check(curve.base, is_prepared=False)
    if dry_run:
        _print_steps([step for part in curve.parts() for step in steps_of(part)], {}, console)
        return
    _refuse_unmatched_quotes(extra)
    with only_writer(curve.out / "run"):
        curve.settle()
        steps = steps_in(curve.out)
        run(curve.out, steps, curve.base, executor=executor, jobs=jobs, extra=extra, console=console)
    console.print(Text(f"Written: {curve.out / 'learning_curve.csv'} and .png"), soft_wrap=True)


def _refuse_unmatched_quotes(extra: str) -> None:
    try:
        shlex.split(extra)
    except ValueError as error:
        raise SamnnError(f"--snakemake {extra!r}: {error}.") from error


def _experiment(given: Mapping[str, Any], file: Path | None, out: Path | None, resume: bool) -> Experiment:
    if resume:
        if out is None:
            raise SamnnError("--resume takes the folder of the experiment: -o OUT.")
        if file is not None:
            raise SamnnError("--resume goes on with OUT/experiment.toml; leave --file out.")
        if (out / LOWDATA).is_file():
            raise SamnnError(f"{out}: holds a learning curve: samnn lowdata --resume -o {out}")
        earlier = Experiment.read(out / FILE)
        return Experiment.of(earlier.content() | given, source="the command line", out=earlier.out)
    if file is None:
        return Experiment.of(_with_device(given), source="the command line", out=out)
    refuse_old_python("samnn crossval --file")
    import tomllib

    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SamnnError(f"{file}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise SamnnError(f"{file}: cannot be read as TOML ({error}).") from error
    return Experiment.of(_with_device(content | given), source=str(file), out=out)


def _with_device(given: Mapping[str, Any]) -> dict[str, Any]:
    if "device" in given:
        return dict(given)
    import torch

    return dict(given) | {"device": "cuda" if torch.cuda.is_available() else "cpu"}


def _print_steps(steps: Sequence[Step], states: Mapping[str, str], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("step", "state", "cores", "GPUs", "memory", "hours"):
        table.add_column(heading, overflow="fold")
    for step in steps:
        hours = f"{step.minutes / 60:g}"
        memory = f"{step.memory_mb / 1000:g} GB"
        table.add_row(
            Text(step.name),
            states.get(step.name, "waiting"),
            str(step.cpus),
            str(step.gpus or ""),
            memory,
            hours,
        )
    console.print(table)
    console.print(f"{len(steps)} steps. Every method can be trained. Nothing was started.")
