"""The summary of an evaluation, and the two files it leaves: metrics.csv and summary.json."""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path
from typing import Any

from samnn import __version__
from samnn.atomic import whole_file, write_json
from samnn.errors import SamnnError

from .calibration import NOTHING
from .cases import ENDINGS, NPZ
from .evaluate import Evaluation
from .journal import NAME as JOURNAL
from .metrics import FoundMetric, find_metrics
from .reliability import NAME as PLOT
from .reliability import draw_reliability, is_our_plot
from .result import ClassResult
from .results import SUMMARY_KEY, is_our_summary
from .surface import Definition

EMPTY_MASK_POLICY = (
    "A class in neither map (absent) is undefined for every metric of masks; metrics of probabilities are computed "
    "all the same. A class in the reference only (missed) or in "
    "the prediction only (false) has the value its metric declares, such as Dice 0 and NSD 0; distances are "
    "undefined then. Undefined values are null, are left out of mean, std, median, min and max, and are counted: "
    "n + n_undefined is the number of cases; n_missed and n_false count failures, whether or not they have a value."
)
CSV_HEADER = "case,label,class,metric,value,unit"


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """Sum up in plain JSON values: settings and definitions, then each class and metric over the cases."""
    case_set = evaluation.case_set
    metrics = find_metrics(probabilities=case_set.channels is not None, surface=evaluation.surface)
    classes = {}
    for name in evaluation.labels.classes:
        by_case = {case: results[name] for case, results in evaluation.results.items()}
        outcomes = {
            outcome: [case for case, result in by_case.items() if result.outcome == outcome]
            for outcome in ("missed", "false", "absent")
        }
        classes[name] = {
            "label": next(iter(by_case.values())).label,
            **outcomes,
            "metrics": {metric: _over_cases(metric, list(by_case.values())) for metric in metrics},
        }
        if case_set.channels is not None:
            classes[name]["reliability"] = sum(
                (result.calibration for result in by_case.values()), NOTHING
            ).bins
    return {
        SUMMARY_KEY: __version__,
        "reference": _as_text(case_set.reference),
        "prediction": _as_text(case_set.prediction),
        "labels": _as_text(case_set.labels_source) if case_set.labels_source else None,
        "ignore_label": evaluation.labels.ignore,
        "tolerance_mm": evaluation.tolerance_mm,
        "surface": evaluation.surface,
        "empty_mask_policy": EMPTY_MASK_POLICY,
        "definitions": {name: _definition(metric, evaluation.surface) for name, metric in metrics.items()},
        "from_probabilities": case_set.channels is not None,
        "resampled": {case.name: list(case.differences) for case in case_set.cases if case.differences},
        "notes": case_set.notes,
        "n_cases": len(evaluation.results),
        "cases": list(evaluation.results),
        "n_missing": len(case_set.missing),
        "missing": case_set.missing,
        "macro": {metric: _over_classes(metric, classes) for metric in metrics},
        "classes": classes,
    }


def check_target(out: Path) -> None:
    """Refuse, before the long work, an output folder that cannot be written or holds somebody else's files.

    nnU-Net writes a summary.json of its own into prediction folders, and reads it there: no mixing with ours.

    Raises:
        SamnnError: the reason, and what to do.
    """
    existing = next(folder for folder in [out, *out.absolute().parents] if folder.exists())
    if not existing.is_dir():
        raise SamnnError(f"{existing}: is a file; the output needs a folder. Choose another -o.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SamnnError(f"{existing}: cannot be written to. Check its permissions, or choose another -o.")
    for name, is_ours in [
        ("metrics.csv", _is_our_csv),
        ("summary.json", is_our_summary),
        (PLOT, is_our_plot),
    ]:
        if (out / name).exists() and not is_ours(out / name):
            raise SamnnError(f"{out / name}: exists and is not from samnn evaluate. Choose another -o.")
    for path in out.glob("*"):
        if path.name.endswith((*ENDINGS, *NPZ)) and path.name != PLOT:
            raise SamnnError(
                f"{out}: holds images, label maps or probabilities ({path.name}). Choose another -o."
            )


def write_outputs(evaluation: Evaluation, out: Path) -> None:
    """Write metrics.csv, summary.json and, from probabilities, reliability.png into the folder `out`.

    Those of an earlier evaluation are replaced; the journal of this one is removed.

    Raises:
        SamnnError: as `check_target`, or the disk is full.
    """
    check_target(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SamnnError(f"{out}: cannot be made ({error.strerror}). Choose another -o.") from error
    summary = summarise(evaluation)
    with whole_file(out / "metrics.csv") as part:
        evaluation.table.to_csv(part, index=False, na_rep="nan", encoding="utf-8")
        if summary["from_probabilities"]:
            draw_reliability(summary["classes"], out / PLOT)
        write_json(out / "summary.json", summary)
    if not summary["from_probabilities"]:
        (out / PLOT).unlink(missing_ok=True)
    (out / JOURNAL).unlink(missing_ok=True)


def _over_cases(metric: str, results: list[ClassResult]) -> dict[str, float | None]:
    values = [result.values[metric] for result in results]
    defined = [value for value in values if not math.isnan(value)]
    outcomes = [result.outcome for result in results]
    return {
        "n": len(defined),
        "n_undefined": len(values) - len(defined),
        "n_missed": outcomes.count("missed"),
        "n_false": outcomes.count("false"),
        "mean": statistics.fmean(defined) if defined else None,
        "std": statistics.stdev(defined) if len(defined) > 1 else None,  # of a sample: n − 1
        "median": statistics.median(defined) if defined else None,
        "min": min(defined, default=None),
        "max": max(defined, default=None),
    }


def _over_classes(metric: str, classes: dict[str, Any]) -> dict[str, float | None]:
    """The mean of the classes' means; a class without any value is left out and counted."""
    means = [entry["metrics"][metric]["mean"] for entry in classes.values()]
    defined = [mean for mean in means if mean is not None]
    return {
        "mean": statistics.fmean(defined) if defined else None,
        "n_classes": len(defined),
        "n_classes_undefined": len(means) - len(defined),
    }


def _definition(metric: FoundMetric, surface: Definition) -> dict[str, Any]:
    declared = metric.declared
    empty = [declared.if_both_empty, declared.if_reference_empty, declared.if_prediction_empty]
    both, reference, prediction = [empty_value(value) for value in empty]
    return {
        "formula": metric.formulas[surface],
        "needs": declared.needs,
        "unit": declared.unit,
        "better": declared.better,
        "range": [None if math.isinf(end) else end for end in declared.range],
        "definition": metric.definition(surface),
        "source": declared.source,
        "if_both_empty": both,
        "if_reference_empty": reference,
        "if_prediction_empty": prediction,
    }


def empty_value(value: float | None) -> str:
    """Say in a word what a metric declares for an empty mask."""
    if value is None:
        return "by formula"
    return "undefined" if math.isnan(value) else f"{value:g}"


def _as_text(path: Path) -> str:
    """The absolute path; bytes of it that are no text, which UTF-8 cannot hold, as \\udc… codes."""
    return str(path.absolute()).encode("utf-8", "backslashreplace").decode()


def _is_our_csv(path: Path) -> bool:
    if not path.is_file():  # a folder or a device
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(len(CSV_HEADER) + 1).rstrip("\r\n") == CSV_HEADER
