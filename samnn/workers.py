"""Workers: the same function on many cases, in processes or threads, none of them lost in silence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from samnn.errors import SamnnError


class Named(Protocol):
    """A case of whatever kind: messages name it."""

    @property
    def name(self) -> str: ...


Case = TypeVar("Case", bound=Named)
Result = TypeVar("Result")

VOXELS_WORTH_A_WORKER = 20_000_000  # below this a new process takes longer to start than it saves
MOST_WORKERS = 8  # each holds a whole case in memory; more only where asked for


def sensible_workers(n_cases: int, n_voxels: int) -> int:
    """As many processes as there are cores, cases, and work (voxels of all cases together) to share."""
    return max(1, min(os.cpu_count() or 1, n_cases, n_voxels // VOXELS_WORTH_A_WORKER, MOST_WORKERS))


def each_case(
    function: Callable[..., Result],
    cases: Sequence[Case],
    *arguments: Any,
    workers: int,
    tell: Callable[[str], None],
) -> Iterator[tuple[Case, Result | None, str | None]]:
    """Yield each case with `function(case, *arguments)`, or with the message of what failed, as they finish.

    One worker stays in this process. No more cases are handed out than there are workers, so that memory holds
    one case a worker. Where a worker dies, the cases under way are tried again one at a time, `tell` hears of it, and
    the others go on with half the workers; a case whose worker dies even then has failed. Close the iterator to end
    it early: then, and where this process dies, the workers end too.
    """
    if workers == 1:
        for case in cases:
            yield case, *_attempt(function, case, *arguments)
        return
    waiting = deque(cases)
    while waiting:
        under_way = yield from _in_processes(function, waiting, arguments, workers)
        if under_way:
            workers = max(1, workers // 2)
            names = ", ".join(sorted(case.name for case in under_way))
            tell(
                f"A worker process died, most likely killed for lack of memory, while at one of: {names}. These are "
                f"tried again one at a time; the others go on with --workers {workers}."
            )
        again = deque(under_way)
        while again:
            for case in (yield from _in_processes(function, again, arguments, 1)):
                yield (
                    case,
                    None,
                    f"{case.name}: its worker process died twice, the second time with no other one beside it; most "
                    "likely it was killed for lack of memory.",
                )


def each_case_in_threads(
    function: Callable[..., Result], cases: Sequence[Case], *arguments: Any, workers: int
) -> Iterator[tuple[Case, Result | None, str | None]]:
    """As `each_case`, in threads of this process, for functions that spend their time in code without Python's lock.

    Reading, packing and ITK are such. Nothing is imported or copied anew, but what kills one kills all. An iterator
    that is closed early waits for the cases under way.
    """
    waiting = deque(cases)
    with ThreadPoolExecutor(workers) as pool:
        running: dict[Future, Case] = {}
        while waiting or running:
            while waiting and len(running) < workers:
                case = waiting.popleft()
                running[pool.submit(_attempt, function, case, *arguments)] = case
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), *future.result()


def _in_processes(
    function: Callable[..., Result], waiting: deque[Case], arguments: tuple[Any, ...], workers: int
) -> Generator[tuple[Case, Result | None, str | None], None, list[Case]]:
    """Take cases from `waiting` until none is left or a worker dies; return those that were under way then."""
    context = multiprocessing.get_context("spawn")  # a forked copy of a threaded process may hang
    parent_ends, parent_lives = context.Pipe(duplex=False)
    with (
        ProcessPoolExecutor(
            min(workers, len(waiting)),
            mp_context=context,
            initializer=_end_with_parent,
            initargs=(parent_ends,),
        ) as pool,
        _closed_on_error(parent_lives),
    ):
        running: dict[Future, Case] = {}
        while True:
            while waiting and len(running) < workers:
                try:
                    with _interrupts_kept_from_children():
                        future = pool.submit(_attempt, function, waiting[0], *arguments)
                except BrokenProcessPool:
                    return list(running.values())
                running[future] = waiting.popleft()
            if not running:
                return []
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(finished, key=lambda future: future.exception() is not None):
                try:
                    result = future.result()
                except BrokenProcessPool:
                    return list(running.values())
                yield running.pop(future), *result


def _end_with_parent(parent_ends: Connection) -> None:
    """In a worker: end at once when the other end of the pipe is closed, which the death of the parent does too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent answers

    def watch() -> None:
        parent_ends.poll(None)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _closed_on_error(parent_lives: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        parent_lives.close()
        raise


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """A process started in here is born deaf to Ctrl-C: it could not answer before its imports are done."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _attempt(
    function: Callable[..., Result], case: Case, *arguments: Any
) -> tuple[Result | None, str | None]:
    try:
        return function(case, *arguments), None
    except SamnnError as error:
        return None, str(error)
    except MemoryError:
        return None, f"{case.name}: does not fit into memory. Try fewer --workers."
