"""The metrics: one a file, found by its file name. A new file is a new metric."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from samnn.errors import SamnnError

from ..calibration import Calibration
from ..masks import MaskPair
from ..metric import BY_FORMULA, Metric
from ..surface import DEFINITIONS, Definition

FORMULA = "Formula: "
VOXEL_FORMULA = "Formula on border voxels: "


@dataclass(frozen=True)
class FoundMetric:
    """One file of this folder: its name, its declaration, and for each definition of a surface formula and function."""

    name: str
    declared: Metric
    formulas: dict[Definition, str]
    functions: dict[Definition, Callable[[MaskPair], float] | Callable[[Calibration], float]]

    def value(self, pair: MaskPair, calibration: Calibration | None = None) -> float:
        """Compute the metric, or take the value that is declared for empty masks. NaN where it is undefined."""
        when_empty = {
            "absent": self.declared.if_both_empty,
            "false": self.declared.if_reference_empty,
            "missed": self.declared.if_prediction_empty,
        }
        fixed = when_empty.get(pair.outcome, BY_FORMULA)
        needed = calibration if self.declared.needs == "probabilities" else pair
        return float(self.functions[pair.surface_definition](needed) if fixed is BY_FORMULA else fixed)

    def definition(self, surface: Definition) -> str | None:
        """Name the definition of a surface, for metrics that are measured on surfaces."""
        return DEFINITIONS[surface] if self.declared.of_surfaces else None


@cache
def find_metrics(*, probabilities: bool = False) -> dict[str, FoundMetric]:
    """Import every file of this folder: fractions first, then millilitres and millimetres, each by name.

    With `probabilities` those that need them come last, without it they are left out.

    Raises:
        SamnnError: a file lacks its declaration `METRIC`, its function `compute` or the formula in its docstring.
    """
    found = [_load(module.name) for module in pkgutil.iter_modules(__path__)]
    found.sort(key=lambda metric: (metric.declared.needs, metric.declared.unit, metric.name))
    return {metric.name: metric for metric in found if probabilities or metric.declared.needs == "masks"}


def _load(name: str) -> FoundMetric:
    module = importlib.import_module(f"{__name__}.{name}")
    lines = (module.__doc__ or "").splitlines()
    formula = next((line.removeprefix(FORMULA) for line in lines if line.startswith(FORMULA)), "")
    voxel_formula = next(
        (line.removeprefix(VOXEL_FORMULA) for line in lines if line.startswith(VOXEL_FORMULA)), formula
    )
    declared = getattr(module, "METRIC", None)
    compute = getattr(module, "compute", None)
    if not isinstance(declared, Metric) or not callable(compute) or not formula:
        raise SamnnError(
            f"{module.__file__}: is no metric. It needs METRIC = Metric(…), compute(pair) and, in its docstring, "
            f"a line '{FORMULA}…'. See dice.py beside it."
        )
    on_voxels = getattr(module, "compute_on_voxels", compute)
    return FoundMetric(
        name,
        declared,
        formulas={"surfel": formula, "voxel": voxel_formula},
        functions={"surfel": compute, "voxel": on_voxels},
    )
