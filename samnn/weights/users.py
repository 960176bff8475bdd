"""Which trainers use which weights, read from the text of the plugin files: importing them would import torch.

A trainer class declares `weights = {suffix: name}`, a literal dict in its body: the empty suffix is its default, as in
`weights: ClassVar[dict[str, str]] = {"": "sam_vit_b", "vitl": "sam_vit_l"}`. Its class method
`needed_weights(plans_manager, configuration) -> str | Path | None` says which of them (or which file of the user's) a
job needs; `samnn doctor` asks it.
"""

from __future__ import annotations

import ast
from pathlib import Path

from samnn.environment import trainers_folder
from samnn.errors import SamnnError


def used_by() -> dict[str, list[str]]:
    """The trainers that use each weights: name → trainer names with their suffix.

    Raises:
        SamnnError: a file is no Python, or a trainer's `weights` no literal dict.
    """
    users: dict[str, list[str]] = {}
    for path in sorted(trainers_folder().glob("trainer_*.py")):
        try:
            lines = ast.parse(path.read_text(encoding="utf-8")).body
        except (SyntaxError, ValueError) as error:
            raise SamnnError(f"{path}: is no Python ({error}). Mend it.") from error
        for trainer in lines:
            if isinstance(trainer, ast.ClassDef):
                for suffix, name in _declared(path, trainer).items():
                    users.setdefault(name, []).append("_".join(filter(None, (trainer.name, suffix))))
    return users


def _declared(path: Path, trainer: ast.ClassDef) -> dict[str, str]:
    for line in trainer.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "weights" for target in targets):
            try:
                return {str(suffix): str(name) for suffix, name in ast.literal_eval(line.value).items()}
            except (ValueError, AttributeError) as error:
                raise SamnnError(
                    f"{path}: weights of {trainer.name} is no literal dict. Write it out."
                ) from error
    return {}
