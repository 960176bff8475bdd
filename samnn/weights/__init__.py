"""Pretrained checkpoints: a name or a path → verified file → tensors. Nothing here downloads but `download`.

Names and the folders of SAMNN_WEIGHTS: docs/weights.md. torch is imported only when tensors are read.
"""

from samnn.weights.files import read_state_dict
from samnn.weights.registry import REGISTRY, Entry, entry
from samnn.weights.store import add, folder_to_write, folders, is_name, locate, read, verified

__all__ = [
    "REGISTRY",
    "Entry",
    "add",
    "entry",
    "folder_to_write",
    "folders",
    "is_name",
    "locate",
    "read",
    "read_state_dict",
    "verified",
]
