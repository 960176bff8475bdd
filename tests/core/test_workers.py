"""Cases done by threads: each once, no more at a time than asked for, and what fails is said."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import dataclass

import pytest

from samnn.errors import SamnnError
from samnn.workers import each_case_in_threads


@dataclass(frozen=True)
class Case:
    name: str


CASES = [Case(str(number)) for number in range(12)]


def squared(case: Case) -> int:
    if case.name == "7":
        raise SamnnError("7: is a prime.")
    return int(case.name) ** 2


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_every_case_is_done_once_and_a_failure_is_said(workers):
    done = {
        case.name: (result, problem)
        for case, result, problem in each_case_in_threads(squared, CASES, workers=workers)
    }
    assert done.pop("7") == (None, "7: is a prime.")
    assert done == {str(number): (number**2, None) for number in range(12) if number != 7}


def test_no_more_cases_are_under_way_than_workers():
    """And as many as there are workers: each waits until another one is there."""
    together = threading.Barrier(3, timeout=20)
    under_way = []

    def work(case: Case) -> int:
        under_way.append(case)
        together.wait()
        most = len(under_way)
        under_way.remove(case)
        return most

    assert max(result for _, result, _ in each_case_in_threads(work, CASES, workers=3)) <= 3


def test_closed_early_it_ends_when_the_cases_under_way_do():
    """Told by the threads that worked: other tests of the same process may leave threads of their own."""
    ended, workers = [], set()

    def work(case: Case) -> None:
        workers.add(threading.current_thread())
        time.sleep(0.05)
        ended.append(case)

    with closing(each_case_in_threads(work, CASES, workers=2)) as finished:
        next(finished)
    assert 1 <= len(ended) <= 4
    assert workers and not any(worker.is_alive() for worker in workers)
