"""The places a patch can take in a case, and drawing one of them with fewer rejections than one by one."""

from __future__ import annotations

import math
import random
import re
from array import array
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

MOST_DRAWS = 1000


class Places:
    """First voxels of a box in a case, as nnU-Net draws them: each axis on its own, evenly, over the borders a little.

    Args, one number an axis each:
        shape: of the case, in voxels.
        patch: size of the drawn box.
        pad: by how much the box may reach over both borders together (nnU-Net's `need_to_pad`).
        margin, final: the part of the box that decides begins `margin` after the box and has size `final`.
        occupied: for each layer of blocks across the axis, whether it holds any foreground: 0 or 1, uint8.
        block: edges of a block in voxels.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        patch: Sequence[int],
        pad: Sequence[int],
        margin: Sequence[int],
        final: Sequence[int],
        occupied: Sequence[np.ndarray],
        block: Sequence[int],
    ) -> None:
        self.ranges: list[range] = []
        # places along an axis from which the box touches an occupied layer
        self.near: list[range | array] = []
        for axis, (n, size) in enumerate(zip(shape, patch, strict=True)):
            more = max(int(pad[axis]), size - n)  # a box larger than the case is centred on it
            places = range(-more // 2, n + more // 2 + more % 2 - size + 1)
            self.ranges.append(places)
            runs: list[range] = []
            for run in re.finditer(b"\x01+", occupied[axis].tobytes()):
                start = max(run.start() * block[axis] - final[axis] - margin[axis] + 1, places.start)
                stop = min(run.end() * block[axis] - margin[axis], places.stop)
                start = max(start, runs[-1].stop) if runs else start
                if start < stop:
                    runs.append(range(start, stop))
            self.near.append(runs[0] if len(runs) == 1 else array("i", chain.from_iterable(runs)))
        self.n_near = math.prod(map(len, self.near))
        self.n_far = math.prod(map(len, self.ranges)) - self.n_near

    def draw(self, acceptance: float, has_foreground: Callable[[list[int]], bool]) -> list[int] | None:
        """A place with probability ∝ 1 where it has foreground, ∝ `acceptance` where not.

        A place that is far from foreground along any axis has none. All those are drawn together, with the
        probability they have in the end; only near ones are looked at and rejected. None after 1000 rejections.
        """
        far = acceptance * self.n_far
        for _ in range(MOST_DRAWS):
            if random.random() * (self.n_near + far) < far:
                return self._draw_far()
            place = [random.choice(near) for near in self.near]
            if has_foreground(place) or random.random() < acceptance:
                return place
        return None

    def _draw_far(self) -> list[int]:
        while True:
            place = [random.choice(places) for places in self.ranges]
            if any(p not in near for p, near in zip(place, self.near, strict=True)):
                return place
