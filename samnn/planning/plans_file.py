"""The plans that `samnn plan` writes: a copy of the user's with ours added; what others wrote in it stays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samnn.errors import SamnnError
from samnn.training.steps import OUR_KEY

STOCK = "nnUNetPlans"
PLANNERS = {  # name of plans → nnU-Net's planner that writes them by default
    STOCK: "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}


def read_base(folder: Path, name: str) -> dict[str, Any]:
    """The plans that ours are added to.

    Raises:
        SamnnError: they are not there, or are ours.
    """
    path = folder / f"{name}.json"
    plans = _read(path)
    if plans is None:
        there = sorted(file.stem for file in folder.glob("*Plans*.json"))
        raise SamnnError(
            f"{path}: does not exist"
            + (f"; there are {', '.join(there)} (-p names others)" if there else "")
            + f". {_how_to_make(name, int(folder.name[7:10]))}"
        )
    if OUR_KEY in plans:
        raise SamnnError(
            f"{path}: was written by samnn plan, from {plans[OUR_KEY].get('planned_from')}. Name those with -p."
        )
    return plans


def _how_to_make(name: str, number: int) -> str:
    if name not in PLANNERS:
        return "nnU-Net makes none of that name by itself: plan it yourself, or name others."
    return (
        f"Make it: nnUNetv2_plan_and_preprocess -d {number} -c 2d"
        f"{'' if name == STOCK else f' -pl {PLANNERS[name]}'}, or add --preprocess."
    )


def joined(
    path: Path, base_name: str, base: Mapping[str, Any], ours: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """The content of the plans at `path` with our configurations planned anew, and those of a person that stay.

    A configuration there that is not as we wrote it is a person's. Of ours, those that are not planned now stay.

    Raises:
        SamnnError: the file there is not ours, or was planned from other plans; the base has one of the names.
    """
    taken = sorted(ours.keys() & base["configurations"].keys())
    if taken:
        raise SamnnError(
            f"{base_name} has a configuration {taken[0]} of its own. Rename it there, or plan the others with --only."
        )
    before = _read(path) or {"configurations": {}, OUR_KEY: {"planned_from": base_name, "wrote": {}}}
    if OUR_KEY not in before:
        raise SamnnError(f"{path}: was not written by samnn plan and stays as it is. Choose another --name.")
    if before[OUR_KEY]["planned_from"] != base_name:
        raise SamnnError(
            f"{path}: was planned from {before[OUR_KEY]['planned_from']}, not from {base_name}, and trainings may depend on "
            "it. Choose another --name, or delete the file."
        )
    wrote, there = before[OUR_KEY]["wrote"], before["configurations"]
    persons = {name: content for name, content in there.items() if wrote.get(name) != _digest(content)}
    earlier = {
        name: content
        for name, content in there.items()
        if name not in persons and "trainer" in content.get(OUR_KEY, {})
    }
    ours = {
        name: earlier[name] if _measured_again(earlier.get(name), content) else content
        for name, content in ours.items()
    }
    written = {**base["configurations"], **earlier, **ours}
    plans = {
        **base,
        "plans_name": path.stem,
        "configurations": {**written, **persons},
        OUR_KEY: {
            "planned_from": base_name,
            "wrote": {name: _digest(content) for name, content in written.items() if name not in persons},
        },
    }
    return plans, sorted(persons)


def _measured_again(earlier: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Whether both are the same but for measured numbers, which are never twice the same."""
    if earlier is None or not all(
        content[OUR_KEY].get("step", {}).get("measured") for content in (earlier, now)
    ):
        return False
    bare = [
        {**content, OUR_KEY: {**content[OUR_KEY], "step": content[OUR_KEY]["step"]["device"]}}
        for content in (earlier, now)
    ]
    return bare[0] == bare[1]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        plans = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plans["configurations"], dict):
            raise TypeError("configurations is no object")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise SamnnError(f"{path}: is not nnU-Net's plans ({error!r}). Mend it or move it away.") from error
    return plans


def _digest(configuration: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]
