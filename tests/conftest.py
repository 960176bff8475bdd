"""What several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared reference numbers and data sets: SAMNN_SHARED, or `shared` beside the clone."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SAMNN_SHARED", beside))
    if not folder.is_dir():
        reason = f"{folder} does not exist: set SAMNN_SHARED to the folder of reference numbers and data"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take minutes, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.parent.name != "training")
