"""Experiment: the methods, folds and limits of a cross-validation, as arguments or as a short TOML file."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from samnn.atomic import whole_file
from samnn.environment import DATASET, EXTERNAL_TRAINERS, dataset_there, settings
from samnn.errors import Problems, SamnnError

FILE = "experiment.toml"
DEVICES = ("cuda", "cpu", "mps")
NNUNETS = {"epochs": 1000, "iters": 250}  # where the trainer's name gives no number
WITH_LOADING = 1.5  # of a training step: batches of validation, and what the estimate misses
HOURS_AROUND, GB_AROUND = 1.0, 6.0  # start, validation and export of a fold; torch and the cases in memory
CAN_GROW = ("methods", "folds", "limits", "hours", "memory_gb", "cpus", "gpus", "retries", "group", "metrics")
GATHERED_BY = ("methods", "folds", "group", "metrics")  # what evaluations and comparisons depend on
LIMITS = ("hours", "memory_gb", "cpus", "gpus")


@dataclass(frozen=True)
class Method:
    """What nnU-Net trains: written `TRAINER:CONFIGURATION`, or `TRAINER:CONFIGURATION:PLANS`."""

    trainer: str
    configuration: str
    plans: str = "nnUNetPlans"

    @classmethod
    def parse(cls, text: str) -> Method:
        """Raises SamnnError: it is written otherwise."""
        parts = text.split(":")
        if len(parts) not in (2, 3) or not all(re.fullmatch(r"[\w.+-]+", part) for part in parts):
            raise SamnnError(
                f"{text!r} names no method. Write TRAINER:CONFIGURATION or TRAINER:CONFIGURATION:PLANS, such as "
                "nnUNetTrainerENet:2d."
            )
        return cls(*parts)

    @property
    def folder(self) -> str:
        """The name of its results folder."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"

    def __str__(self) -> str:
        shown = f"{self.trainer}:{self.configuration}"
        return shown if self.plans == "nnUNetPlans" else f"{shown}:{self.plans}"


@dataclass(frozen=True)
class Experiment:
    """Everything that decides what is computed, and what a scheduler has to know.

    `hours`, `memory_gb`, `cpus` and `gpus` are those of one fold; `limits` has others for single methods. What plans
    say of a method's memory and time comes before `hours` and `memory_gb`, and after `limits`.
    """

    out: Path
    dataset: str  # DatasetXXX_Name
    methods: tuple[Method, ...]
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    device: str = "cuda"
    ensemble: bool = True  # needs saved probabilities
    test: bool = True  # predict imagesTs where there are any
    group: str | None = None  # regular expression that names the patient in a case's name
    metrics: str = "dice,nsd,hausdorff95"
    hours: float = 24.0
    memory_gb: float = 16.0
    cpus: int = 4
    gpus: int = 1
    retries: int = 3  # of a job that was killed or ran out of time
    limits: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # method → hours, memory_gb, cpus, gpus
    preprocessed: str | None = None  # other folders than those of the environment
    results: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if not self.methods:
            problems.append("there is no method.")
        for what, values in [("method", self.methods), ("fold", self.folds)]:
            problems += [
                f"{what} {value} is named twice."
                for value in dict.fromkeys(values)
                if values.count(value) > 1
            ]
        if not self.folds or any(fold < 0 for fold in self.folds):
            problems.append("folds are numbers from 0 on.")
        if self.device not in DEVICES:
            problems.append(f"device is {self.device!r}; expected {', '.join(DEVICES)}.")
        if not all(_is_limit(getattr(self, name)) for name in LIMITS) or self.retries < 0:
            problems.append("hours, memory_gb, cpus and gpus are numbers above 0, retries not below.")
        if self.group is not None:
            try:
                re.compile(self.group)
            except re.error as error:
                problems.append(f"group {self.group!r} is no regular expression ({error}).")
        known = metric_names()
        problems += [
            f"there is no metric {name!r}; there are {', '.join(known)}."
            for name in self.metrics.split(",")
            if name not in known
        ]
        names = {str(method) for method in self.methods}
        for name, values in self.limits.items():
            if name not in names:
                problems.append(f"limits name {name}, which is no method of the experiment.")
            if not isinstance(values, Mapping):
                problems.append(
                    f"limits of {name}: expected a table, such as hours = 48 below [limits.{name!r}]."
                )
                continue
            if unknown := sorted(values.keys() - set(LIMITS)):
                problems.append(f"limits of {name}: unknown {', '.join(unknown)}.")
            problems += [
                f"limits of {name}: {limit} is {value!r}; expected a number above 0."
                for limit, value in values.items()
                if limit in LIMITS and not _is_limit(value)
            ]
        if problems:
            raise Problems("This is no experiment that can be run.", problems)

    @classmethod
    def read(cls, path: Path, *, out: Path | None = None) -> Experiment:
        """Read a TOML file; `out` defaults to its folder.

        Raises:
            SamnnError: it is missing, no TOML, or has unknown or unfit values.
        """
        refuse_old_python("samnn crossval")
        import tomllib

        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SamnnError(
                f"{path}: cannot be read ({error.strerror}). Name an experiment's file."
            ) from error
        except ValueError as error:
            raise SamnnError(f"{path}: is no TOML ({error}).") from error
        return cls.of(content, source=str(path), out=out or Path(path).absolute().parent)

    @classmethod
    def of(cls, content: Mapping[str, Any], *, source: str, out: Path | None) -> Experiment:
        """Make one of plain values, as TOML and the command line have them; `out` defaults to the results folder.

        Raises:
            SamnnError: a value is unknown, missing or unfit.
        """
        known = {entry.name: entry.type for entry in fields(cls) if entry.name != "out"}
        if unknown := sorted(content.keys() - known.keys()):
            raise SamnnError(f"{source}: does not know {', '.join(unknown)}. It takes: {', '.join(known)}.")
        values = dict(content)
        if missing := [name for name in ("dataset", "methods") if not values.get(name)]:
            raise SamnnError(f"{source}: lacks {' and '.join(missing)} (-d, --methods).")
        for name, value in values.items():
            if not _fits(value, str(known[name])):
                raise SamnnError(f"{source}: {name} is {value!r}; expected {_expected(str(known[name]))}.")
        values["dataset"] = dataset_name(str(values["dataset"]))
        values["methods"] = tuple(map(Method.parse, values["methods"]))
        if "folds" in values:
            values["folds"] = tuple(values["folds"])
        if out is None:
            out = root("nnUNet_results") / values["dataset"] / "crossval"
        return cls(out=Path(os.path.abspath(out)), **values)

    def content(self) -> dict[str, Any]:
        """Plain values, those that differ from the defaults."""
        values: dict[str, Any] = {
            "dataset": self.dataset,
            "methods": [str(method) for method in self.methods],
        }
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("out", "dataset", "methods") or value in (None, {}):
                continue
            values[entry.name] = list(value) if isinstance(value, tuple) else value
        return values

    def write(self) -> None:
        """Write `out`/experiment.toml."""
        self.out.mkdir(parents=True, exist_ok=True)
        content = self.content()
        limits = content.pop("limits", {})
        lines = [f"{name} = {as_toml(value)}" for name, value in content.items()]
        for method, values in limits.items():
            lines += ["", f"[limits.{as_toml(method)}]"]
            lines += [f"{name} = {as_toml(value)}" for name, value in values.items()]
        with whole_file(self.out / FILE) as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def settle(self) -> set[str]:
        """Write the file, unless it is there already; → which of methods and folds differ from an earlier one's.

        Raises:
            SamnnError: the folder holds something else, or an experiment that differs in more than it can grow by.
        """
        if not (self.out / FILE).is_file():
            if self.out.is_dir() and any(
                path for path in self.out.iterdir() if not path.name.startswith(".lock-")
            ):
                raise SamnnError(
                    f"{self.out}: is not empty and holds no experiment. Name another folder with -o."
                )
            self.write()
            return set()
        before = Experiment.read(self.out / FILE)
        if before == self:
            return set()
        differing = [
            f"{entry.name} was {getattr(before, entry.name)!r}, is {getattr(self, entry.name)!r}."
            for entry in fields(self)
            if entry.name not in CAN_GROW and getattr(before, entry.name) != getattr(self, entry.name)
        ]
        if differing:
            raise Problems(
                f"{self.out}: holds another experiment. Go on with it (--resume), or name another folder with -o.",
                differing,
            )
        gone = [
            f"{what} {value} is in it."
            for what, name in (("method", "methods"), ("fold", "folds"))
            for value in getattr(before, name)
            if value not in getattr(self, name)
        ]
        if gone:
            raise Problems(
                f"{self.out}: holds a larger experiment. Name all of it, or another folder with -o.", gone
            )
        self.write()
        return {name for name in GATHERED_BY if getattr(before, name) != getattr(self, name)}

    # ---- where things lie

    @property
    def number(self) -> str:
        """The dataset's number, as commands take it."""
        return str(int(DATASET.fullmatch(self.dataset)[1]))

    @property
    def saves_probabilities(self) -> bool:
        """For an ensemble of two methods or more."""
        return self.ensemble and len(self.methods) > 1

    @property
    def preprocessed_folder(self) -> Path:
        return Path(self.preprocessed or root("nnUNet_preprocessed")) / self.dataset

    @property
    def results_folder(self) -> Path:
        return Path(self.results or root("nnUNet_results")) / self.dataset

    def fold_folder(self, method: Method, fold: int) -> Path:
        return self.results_folder / method.folder / f"fold_{fold}"

    def gathered(self, method: Method) -> Path:
        """A results folder of links to this experiment's folds alone."""
        return self.out / "results" / self.dataset / method.folder

    def environment(self) -> dict[str, str]:
        """The variables that nnU-Net's commands need beyond those that are set."""
        variables = {EXTERNAL_TRAINERS: settings(os.environ).variables[EXTERNAL_TRAINERS]}
        for name, folder in [("nnUNet_preprocessed", self.preprocessed), ("nnUNet_results", self.results)]:
            if folder is not None:
                variables[name] = folder
        return variables

    def limit(self, method: Method, name: str) -> float:
        """One of hours, memory_gb, cpus and gpus for a fold of `method`."""
        own = self.limits.get(str(method), {})
        if name in own:
            return own[name]
        return _planned(self, method).get(name, getattr(self, name))

    def with_folders(self, *, out: Path, preprocessed: Path | None, results: Path | None) -> Experiment:
        """The same experiment elsewhere."""
        paths = [None if path is None else str(path) for path in (preprocessed, results)]
        return replace(self, out=out, preprocessed=paths[0], results=paths[1])


def refuse_old_python(what: str) -> None:
    if sys.version_info < (3, 11):
        raise SamnnError(f"{what} needs Python 3.11 or newer, as Snakemake 9 does.")


def as_toml(value: object) -> str:
    """Text, numbers, truth values and lists of them: as in JSON, but for two ways to escape characters."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def root(variable: str) -> Path:
    """One of nnU-Net's three folders. Raises SamnnError: the variable is not set."""
    value = os.environ.get(variable)
    if not value:
        raise SamnnError(f'{variable} is not set. eval "$(samnn env ROOT)" sets it.')
    return Path(os.path.abspath(value))


def dataset_name(text: str) -> str:
    """The full name of a dataset; a number is looked up in nnU-Net's folders.

    Raises:
        SamnnError: there is none, or several of that number.
    """
    return text if DATASET.fullmatch(text) else dataset_there(text)


def _planned(experiment: Experiment, method: Method) -> dict[str, float]:
    """What the plans say under the key `samnn` of the configuration: memory_gb and hours of a fold.

    Either these, or the cost of a training step on this kind of device, from which they follow. `experiment.hours` is
    the most: a fold that is stopped then goes on in the next job.
    """
    path = experiment.preprocessed_folder / f"{method.plans}.json"
    try:
        configuration = json.loads(path.read_text(encoding="utf-8"))["configurations"][method.configuration]
        planned = dict(configuration.get("samnn", {}))
        step = planned.get("step", {})
        if step and step["device"] == experiment.device:
            epochs, iterations = (
                int(found[1]) if (found := re.search(rf"_(\d+){unit}(?=_|$)", method.trainer)) else usual
                for unit, usual in NNUNETS.items()
            )
            hours = HOURS_AROUND + WITH_LOADING * step["seconds"] * epochs * iterations / 3600
            planned.setdefault("hours", min(hours, experiment.hours))
            if experiment.device == "cpu":  # that of a GPU is none of the scheduler's
                planned.setdefault("memory_gb", GB_AROUND + WITH_LOADING * step["gib"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # not planned yet; what is wrong with plans is the business of the checks
    return {
        name: float(planned[name])
        for name in ("hours", "memory_gb")
        if isinstance(planned.get(name), int | float)
    }


def metric_names() -> list[str]:
    """Those that `samnn compare` takes: the files of evaluation3d/metrics."""
    import samnn.evaluation3d.metrics as metrics

    folder = Path(metrics.__path__[0])
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _is_limit(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    )


def _fits(value: object, kind: str) -> bool:
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind.startswith("tuple"):
        wanted = int if "int" in kind else str
        return (
            isinstance(value, Sequence)
            and not isinstance(value, str)
            and all(isinstance(entry, wanted) for entry in value)
        )
    if kind == "str" and isinstance(value, int):  # dataset = 55
        return True
    kinds = {"float": (int, float), "int": int, "str": str, "str | None": str}
    return isinstance(value, kinds.get(kind, Mapping))


def _expected(kind: str) -> str:
    words = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text"}
    return words.get(kind.removesuffix(" | None"), "a list" if kind.startswith("tuple") else "a table")
