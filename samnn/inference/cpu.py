"""How a CPU is used for prediction: tiles side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from samnn import hardware

MOST_WORKERS = 4  # each holds the activations of a tile
MEMORY_SHARE = 0.5  # of the free memory, for all workers together

Job = TypeVar("Job")
Result = TypeVar("Result")


def workers(n_tiles: int, bytes_per_tile: int) -> int:
    """Tiles to compute side by side: a core each is faster than all cores on one, as long as memory lasts."""
    fitting = int(MEMORY_SHARE * hardware.free_memory_bytes(torch.device("cpu")) // max(bytes_per_tile, 1))
    return max(1, min(hardware.cores(), n_tiles, MOST_WORKERS, fitting))


def side_by_side(function: Callable[[Job], Result], jobs: Sequence[Job], n_workers: int) -> Iterator[Result]:
    """`function` of each job in the order of the jobs, `n_workers` at a time, which share the cores."""
    if n_workers == 1:
        yield from map(function, jobs)
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        n_workers, initializer=torch.set_num_threads, initargs=(max(1, hardware.cores() // n_workers),)
    )
    running: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            running.append(pool.submit(function, job))
            if len(running) > n_workers:  # one waits, so that nobody has to
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # the workers have set what new threads start with


@contextmanager
def counted_activations(network: nn.Module) -> Iterator[Callable[[], int]]:
    """Yield a function that says how many bytes the layers have given out in the block: more than lived at once."""
    counted = [0]

    def count(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            counted[0] += output.nbytes

    hooks = [
        module.register_forward_hook(count) for module in network.modules() if not list(module.children())
    ]
    try:
        yield lambda: counted[0]
    finally:
        for hook in hooks:
            hook.remove()
