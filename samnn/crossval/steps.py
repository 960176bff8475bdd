"""Steps: what an experiment consists of, in which order, and what each asks of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from samnn.crossval.experiment import FILE, Experiment, Method, root
from samnn.errors import SamnnError

CRF_FINETUNE = "_CRFfinetune"
LOWDATA = "lowdata.toml"


@dataclass(frozen=True)
class Step:
    """One job: done when its marker is there. `needs` are the steps before it."""

    name: str
    kind: str  # "prepare", "fold", "predict", "evaluate", "ensemble", "best", "compare" or "curve"
    needs: tuple[str, ...]
    method: Method | None = None
    fold: int | None = None
    is_test: bool = False  # of the test set
    cpus: int = 1
    memory_mb: int = 4000
    minutes: int = 60
    gpus: int = 0

    @property
    def marker(self) -> str:
        """The file that says it is done, relative to the folder of the run."""
        return f"{_beside(self.name, 'done')}.json"

    @property
    def log(self) -> str:
        return f"{_beside(self.name, 'logs')}.log"

    @property
    def state(self) -> str:
        return f"{_beside(self.name, 'state')}.json"


def _beside(name: str, folder: str) -> str:
    """`size_5/fold-…` → `size_5/FOLDER/fold-…`."""
    head, _, tail = name.rpartition("/")
    return f"{head}/{folder}/{tail}" if head else f"{folder}/{tail}"


def steps_in(out: Path) -> list[Step]:
    """All steps of the folder: of its experiment, or of all experiments of a learning curve.

    Raises:
        SamnnError: the folder holds neither.
    """
    out = Path(out)
    if (out / FILE).is_file():
        return list(steps_of(Experiment.read(out / FILE)))
    if not (out / LOWDATA).is_file():
        raise SamnnError(f"{out}: holds no experiment: there is neither {FILE} nor {LOWDATA}.")
    parts = sorted(path.parent for path in out.glob(f"size_*/{FILE}"))
    steps: list[Step] = []
    for part in parts:
        for step in steps_of(Experiment.read(part / FILE)):
            if step.kind == "prepare":  # one for all
                steps += [] if steps else [step]
            else:
                needs = tuple(need if need == "prepare" else f"{part.name}/{need}" for need in step.needs)
                steps.append(replace(step, name=f"{part.name}/{step.name}", needs=needs))
    evaluations = tuple(step.name for step in steps if step.kind == "evaluate" and not step.is_test)
    return [*steps, Step("curve", "curve", evaluations)]


def steps_of(experiment: Experiment) -> Iterator[Step]:
    """Preparation, folds, then what gathers them."""
    methods = experiment.methods
    rest = {"memory_mb": _mb(experiment.memory_gb), "minutes": _minutes(experiment.hours)}
    yield Step("prepare", "prepare", (), cpus=experiment.cpus, **rest)
    for method in methods:
        for fold in experiment.folds:
            needs = ("prepare", *_finished_before(experiment, method, fold))
            limits = _limits(experiment, method)
            yield Step(_fold(method, fold), "fold", needs, method, fold, **limits)
    done = {method: tuple(_fold(method, fold) for fold in experiment.folds) for method in methods}
    for is_test in (False, True) if has_test_set(experiment) else (False,):
        end = "-test" if is_test else ""
        if is_test:
            for method in methods:
                limits = _limits(experiment, method) | {"gpus": 1 if experiment.device == "cuda" else 0}
                step = Step(
                    f"predict-{method.folder}", "predict", done[method], method, is_test=True, **limits
                )
                yield step
                done[method] = (step.name,)
        all_done = tuple(name for method in methods for name in done[method])
        is_labelled = not is_test or has_test_labels(experiment)
        if is_labelled:
            for method in methods:
                name = f"evaluate{end}-{method.folder}"
                yield Step(name, "evaluate", done[method], method, is_test=is_test, **rest)
        if experiment.saves_probabilities:
            yield Step(f"ensemble{end}", "ensemble", all_done, is_test=is_test, **rest)
            if not is_test:
                yield Step("best", "best", all_done, **rest)
        if is_labelled:
            needs = (*all_done, f"ensemble{end}") if experiment.saves_probabilities else all_done
            yield Step(f"compare{end}", "compare", needs, is_test=is_test, **rest)


def has_test_set(experiment: Experiment) -> bool:
    """Whether there are images to predict, and that is wished."""
    return experiment.test and any(_raw(experiment, "imagesTs"))


def has_test_labels(experiment: Experiment) -> bool:
    return any(_raw(experiment, "labelsTs"))


def raw_folder(experiment: Experiment, what: str) -> Path:
    """imagesTs or labelsTs of the raw dataset."""
    return root("nnUNet_raw") / experiment.dataset / what


def _raw(experiment: Experiment, what: str) -> list[Path]:
    try:
        return sorted(raw_folder(experiment, what).glob("[!.]*"))
    except SamnnError:  # no raw data on this machine
        return []


def _limits(experiment: Experiment, method: Method) -> dict[str, int]:
    """What a fold of a method asks of the machine."""
    return {
        "cpus": int(experiment.limit(method, "cpus")),
        "memory_mb": _mb(experiment.limit(method, "memory_gb")),
        "minutes": _minutes(experiment.limit(method, "hours")),
        "gpus": int(experiment.limit(method, "gpus")) if experiment.device == "cuda" else 0,
    }


def _finished_before(experiment: Experiment, method: Method, fold: int) -> tuple[str, ...]:
    """`_CRFfinetune` starts from the finished fold of the trainer without it, where that is in the experiment."""
    start = replace(method, trainer=method.trainer.replace(CRF_FINETUNE, ""))
    return (_fold(start, fold),) if start != method and start in experiment.methods else ()


def _fold(method: Method, fold: int) -> str:
    return f"fold-{method.folder}-{fold}"


def _mb(gigabytes: float) -> int:
    return max(1, round(1000 * gigabytes))


def _minutes(hours: float) -> int:
    return max(1, round(60 * hours))
