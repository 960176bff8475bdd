"""The model of memory and time of a training step, fitted on measured ones (benchmarks/plan_memory.py)."""

from __future__ import annotations

from dataclasses import dataclass

from samnn.planning.counting import Count


@dataclass(frozen=True)
class Coefficients:
    """peak = weights + state + `saved` · kept · micro-batch + `logits` · logits · batch + `constant_mib`, in bytes;

    seconds = `per_teraflop` · FLOP · 1e-12 + `per_gigabyte` · kept bytes · batch · 1e-9 + `constant_s`, where the
    forward pass of a batch that goes through in parts counts twice.
    """

    saved: float
    logits: float
    constant_mib: float
    per_teraflop: float
    per_gigabyte: float
    constant_s: float

    def peak_bytes(self, count: Count, batch: int, micro_batch: int) -> float:
        """Memory of a training step."""
        activations = self.saved * count.saved_bytes * micro_batch + self.logits * count.logits_bytes * batch
        return count.weight_bytes + count.state_bytes + activations + self.constant_mib * 2**20

    def seconds(self, count: Count, batch: int, micro_batch: int) -> float:
        """Time of a training step."""
        flops = count.step_flops + (count.forward_flops if micro_batch < batch else 0)
        kept = count.saved_bytes * batch * 1e-9
        return self.per_teraflop * flops * batch * 1e-12 + self.per_gigabyte * kept + self.constant_s


# What the numbers were measured on; and by how much the memory of points that were left out of the fit was misjudged at
# most (docs/planning.md has all errors).
ORIGIN = "fitted on one core of a CPU (AVX-512) in float32, not on a GPU"
MEMORY_ERROR = 0.32
FITTED_ON = "cpu"
FITTED: dict[str, Coefficients] = {  # by Planned.name
    "samed": Coefficients(0.6259, 36.14, 65.17, 11.34, 0.0, 0.05446),
    "sam2unet": Coefficients(0.914, 23.79, 49.31, 13.08, 0.0, 0.3145),
    "enet": Coefficients(0.8428, 26.22, 90.96, 36.17, 0.2711, 0.06148),
}


def coefficients(name: str) -> Coefficients:
    """Those fitted for a network, or, for one that was not measured, the most of the others."""
    if name in FITTED:
        return FITTED[name]
    columns = zip(*(vars(one).values() for one in FITTED.values()), strict=True)
    return Coefficients(*(max(column) for column in columns))
