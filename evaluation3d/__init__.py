"""3D evaluation in millimetres, from files, without torch and without nnU-Net."""

from .evaluate import ClassResult, Evaluation, evaluate_case, evaluate_folder
from .summary import summarise, write_outputs

__all__ = ["ClassResult", "Evaluation", "evaluate_case", "evaluate_folder", "summarise", "write_outputs"]
