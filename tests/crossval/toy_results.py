"""What two runs of an experiment must have in common: weights, label maps, and the numbers of the comparison."""

from __future__ import annotations

from pathlib import Path

import torch

from samnn.io import read_labels


def results_of(results: Path, out: Path) -> dict[str, object]:
    """Everything an experiment is run for, in a form that can be compared with `same`."""
    found: dict[str, object] = {}
    for fold in sorted(results.glob("*__*__*/fold_*")):
        name = f"{fold.parent.name}/{fold.name}"
        content = torch.load(fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)
        found[f"{name} weights"] = {k: v.numpy().tobytes() for k, v in content["network_weights"].items()}
        found[f"{name} losses"] = content["logging"]["train_losses"]
        found[f"{name} labels"] = {
            path.name: read_labels(path).voxels.tobytes()
            for path in sorted((fold / "validation").glob("*.nii.gz"))
        }
    found["table"] = (out / "comparison" / "tables" / "values.csv").read_text()
    return found


def differing(first: dict[str, object], second: dict[str, object]) -> list[str]:
    """The names of what is not the same in both."""
    return [name for name in sorted(first.keys() | second.keys()) if first.get(name) != second.get(name)]


def trainings(results: Path) -> dict[str, int]:
    """Fold → how many trainings were started in it, by their logs."""
    return {
        f"{fold.parent.name}/{fold.name}": len(list(fold.glob("training_log_*.txt")))
        for fold in sorted(results.glob("*__*__*/fold_*"))
    }
