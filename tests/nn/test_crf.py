"""The CRF does what its formula says: crfseg's numbers, a voxel-by-voxel sum, invariances, precision, compilation."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from samnn.errors import SamnnError
from samnn.nn.crf import MeanFieldCRF
from samnn.nn.crf_head import CRFHead, attach_crf, crf_of


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_hand(
    crf: MeanFieldCRF, logits: torch.Tensor, spacing: np.ndarray, image: torch.Tensor | None = None
) -> torch.Tensor:
    """The docstring's formula, one pair of voxels after the other: (B, C, *spatial) → logits."""
    places = list(np.ndindex(*logits.shape[2:]))
    kernel = torch.zeros(len(logits), len(places), len(places), dtype=logits.dtype)
    edges = torch.zeros_like(kernel)
    for b, (i, here), (j, there) in itertools.product(
        range(len(logits)), enumerate(places), enumerate(places)
    ):
        steps = [abs(p - q) for p, q in zip(here, there, strict=True)]

        def gauss(inv_theta: torch.Tensor, steps: list[int] = steps, b: int = b) -> torch.Tensor:
            return torch.exp(
                -0.5 * sum((d * float(s) * t) ** 2 for d, s, t in zip(steps, spacing[b], inv_theta))  # noqa: B905
            )

        is_itself = 0 in steps if crf.kernel == "crfseg" else not any(steps)
        if not is_itself and all(d <= r for d, r in zip(steps, crf.radius, strict=True)):
            kernel[b, i, j] = gauss(crf.inv_smoothness_theta)
        if (
            image is not None
            and any(steps)
            and all(d <= r for d, r in zip(steps, crf.appearance_radius, strict=True))
        ):
            unlike = (image[(b, slice(None), *here)] - image[(b, slice(None), *there)]).square().sum()
            edges[b, i, j] = gauss(crf.inv_appearance_theta) * torch.exp(
                -0.5 * unlike * crf.inv_intensity_theta**2
            )
    if crf.kernel == "dense":
        kernel = kernel / kernel.sum(-1, keepdim=True)

    unary = logits.flatten(2)
    binary = crf.regions or unary.shape[1] == 1
    x = unary
    for _ in range(crf.n_iter):
        belief = torch.sigmoid(x) if binary else x.softmax(1)

        def message(belief: torch.Tensor) -> torch.Tensor:
            total = crf.smoothness_weight * torch.einsum("bij,bcj->bci", kernel, belief)
            if image is not None:
                total = total + crf.appearance_weight * torch.einsum(
                    "bij,bcj->bci", edges / edges.sum(-1, keepdim=True), belief
                )
            return total

        x = unary + (message(belief) - message(1 - belief) if binary else message(belief))
    return x.reshape(logits.shape)


@pytest.mark.parametrize("case", ["case0", "case1", "case2", "case3"])
def test_equals_crfseg(shared: Path, case: str) -> None:
    """Numbers computed by crfseg: 2D, 2D and 3D with spacing, one class returning probabilities."""
    stored = torch.load(shared / "reference" / "crfseg_io.pt", weights_only=True)[case]
    crf = MeanFieldCRF(stored["n_spatial_dims"], **stored["kwargs"])
    torch.testing.assert_close(crf(stored["x"], stored["spacing"]), stored["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3, 5, 6), {}),
        ((2, 3, 5, 6), {"kernel": "dense"}),
        ((2, 1, 5, 6), {}),
        ((2, 1, 5, 6), {"kernel": "dense"}),
        ((2, 3, 5, 6), {"regions": True}),
        ((2, 3, 3, 2, 4), {"filter_size": (3, 3, 5)}),
        ((2, 3, 3, 2, 4), {"kernel": "dense", "filter_size": (1, 3, 5)}),
        ((2, 3, 5, 4), {"kernel": "dense", "appearance_weight": 0.8, "appearance_filter_size": (3, 5)}),
        ((2, 1, 3, 2, 4), {"appearance_weight": 0.8, "appearance_theta": 2.0, "appearance_filter_size": 3}),
    ],
    ids=str,
)
def test_values_and_gradients_equal_the_sum_over_all_pairs(shape: tuple[int, ...], options: dict) -> None:
    """In double precision, with a spacing per sample; gradients of logits, image, weights and bandwidths."""
    n = len(shape) - 2
    crf = MeanFieldCRF(
        n,
        **{"filter_size": 5, "n_iter": 3, "smoothness_weight": 0.7, "smoothness_theta": [1.5, 0.8, 1.1][:n]}
        | options,
    ).double()
    logits = random_logits(*shape).requires_grad_()
    spacing = np.array([[1.0, 0.7, 1.3], [2.0, 1.1, 0.6]])[:, :n]
    image = (
        random_logits(shape[0], 2, *shape[2:], seed=1).requires_grad_()
        if "appearance_weight" in options
        else None
    )
    inputs = [logits, *crf.parameters(), *([image] if image is not None else [])]
    found, expected = crf(logits, spacing, image), by_hand(crf, logits, spacing, image)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    seed = random_logits(*shape, seed=2)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_one_neighbour_by_hand() -> None:
    """Two voxels 2 mm apart, θ 2 mm, weight 3, one iteration, one axis: 1 + 3 · e^−½ · softmax(…)."""
    crf = MeanFieldCRF(1, n_iter=1, smoothness_weight=3, smoothness_theta=2)
    logits = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # class 0 is likelier at the first voxel
    p_first = math.e / (math.e + 1)
    expected = torch.tensor(
        [
            [1 + 3 * math.exp(-0.5) * 0.5, 3 * math.exp(-0.5) * p_first],
            [3 * math.exp(-0.5) * 0.5, 3 * math.exp(-0.5) * (1 - p_first)],
        ]
    )
    torch.testing.assert_close(crf(logits, (2.0,))[0], expected)
    dense = MeanFieldCRF(1, n_iter=1, smoothness_weight=3, smoothness_theta=2, kernel="dense")
    torch.testing.assert_close(dense(logits, (2.0,))[0, 0], torch.tensor([1 + 3 * 0.5, 3 * p_first]))


def test_the_three_returns_are_one_answer() -> None:
    for n_classes in (1, 4):
        logits = random_logits(2, n_classes, 8, 9)
        found = {kind: MeanFieldCRF(2, returns=kind)(logits) for kind in ("logits", "proba", "log-proba")}
        torch.testing.assert_close(found["log-proba"].exp(), found["proba"])
        expected = found["logits"].sigmoid() if n_classes == 1 else found["logits"].softmax(1)
        torch.testing.assert_close(found["proba"], expected)


def test_a_dense_kernel_leaves_a_constant_picture_shifted_by_the_weight_up_to_its_border() -> None:
    """Every neighbour says the same: the weighted mean is that, whatever bandwidth, spacing and place."""
    logits = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 7, 9)
    crf = MeanFieldCRF(2, n_iter=1, kernel="dense", smoothness_theta=(0.7, 3), smoothness_weight=2)
    shift = crf(logits, (2.0, 0.5)) - logits
    torch.testing.assert_close(shift, 2 * logits.softmax(1))


@pytest.mark.parametrize("kernel", ["crfseg", "dense"])
def test_neighbours_out_of_reach_change_nothing_and_stay_finite(kernel: str) -> None:
    """1 mm wide at 100 mm spacing no neighbour weighs anything; gradients stay finite, too."""
    crf = MeanFieldCRF(3, kernel=kernel)
    logits = random_logits(1, 3, 4, 5, 6, dtype=torch.float32).requires_grad_()
    smoothed = crf(logits, (100.0, 100.0, 100.0))
    assert torch.equal(smoothed, logits)
    smoothed.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in [logits, *crf.parameters()])


def test_the_unit_of_length_does_not_matter() -> None:
    logits = random_logits(2, 3, 8, 9)
    in_mm = MeanFieldCRF(2, smoothness_theta=(2.0, 3.0)).double()(logits, (1.0, 1.5))
    in_cm = MeanFieldCRF(2, smoothness_theta=(0.2, 0.3)).double()(logits, (0.1, 0.15))
    torch.testing.assert_close(in_mm, in_cm, rtol=1e-6, atol=1e-6)


def test_samples_do_not_see_each_other() -> None:
    logits = random_logits(3, 4, 8, 9)
    crf = MeanFieldCRF(2, kernel="dense", appearance_weight=1.0)
    image = random_logits(3, 1, 8, 9, seed=1)
    spacing = [[1, 1], [2, 1], [0.5, 3]]
    alone = [crf(logits[i : i + 1], spacing[i], image[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(crf(logits, spacing, image), torch.cat(alone))


def test_regions_are_one_class_problems_side_by_side() -> None:
    logits = random_logits(2, 3, 8, 9)
    together = MeanFieldCRF(2, regions=True)(logits)
    alone = torch.cat([MeanFieldCRF(2)(logits[:, c : c + 1]) for c in range(3)], 1)
    torch.testing.assert_close(together, alone)


def test_the_appearance_term_follows_an_edge_of_the_image() -> None:
    """A noisy half-plane: with the image, a doubtful voxel beside the edge goes with its own side."""
    image = torch.zeros(1, 1, 9, 10)
    image[..., 5:] = 3.0
    logits = torch.zeros(1, 2, 9, 10)
    logits[:, 0, :, :5] = logits[:, 1, :, 5:] = 2.0
    logits[0, :, 4, 5] = 0.0  # on the right side, undecided
    # a plain mean over a window reaching further to the left than to the right of the volume is undecided, too
    crf = MeanFieldCRF(2, smoothness_weight=0.0, appearance_weight=3.0, appearance_theta=10.0)
    with_edge = crf(logits, None, image)[0, 1, 4, 5] - crf(logits, None, image)[0, 0, 4, 5]
    flat = crf(logits, None, 0 * image)[0, 1, 4, 5] - crf(logits, None, 0 * image)[0, 0, 4, 5]
    assert with_edge > 2 > 1 > flat


def test_crfsegs_parameters_load() -> None:
    crf = MeanFieldCRF(3)
    crf.load_state_dict(
        {"smoothness_weight": torch.tensor(2.0), "inv_smoothness_theta": torch.tensor([1.0, -0.5, 0.25])}
    )
    assert crf.learned() == {"smoothness_weight": 2.0, "smoothness_theta_mm": [1.0, 2.0, 4.0]}
    assert not any(p.requires_grad for p in MeanFieldCRF(2, requires_grad=False).parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_it_computes_in_float32(dtype: torch.dtype) -> None:
    """Logits near the end of fp16's range, too."""
    crf = MeanFieldCRF(2, kernel="dense", appearance_weight=1.0, smoothness_weight=50.0)
    logits = (random_logits(1, 3, 8, 9) * 2e4).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    image = random_logits(1, 1, 8, 9).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        refined = crf(logits, None, image)
    assert refined.dtype == torch.float32
    assert torch.equal(refined, crf(logits.float(), None, image.float()))
    refined.softmax(1).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in [logits, *crf.parameters()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter_size": 4}, "filter_size=4; expected odd"),
        ({"filter_size": (3, 3, 3)}, "one for each of 2 axes"),
        ({"smoothness_theta": 0}, "smoothness_theta=0; expected positive"),
        ({"returns": "labels"}, "returns='labels'"),
        ({"kernel": "gauss"}, "kernel='gauss'"),
        ({"n_iter": -1}, "n_iter=-1"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_wrong_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(SamnnError, match=message):
        MeanFieldCRF(2, **options)


def test_wrong_inputs_are_refused() -> None:
    logits, image = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5)
    with pytest.raises(SamnnError, match="of 3 dimensions got logits"):
        MeanFieldCRF(3)(logits)
    with pytest.raises(SamnnError, match=r"spacing_mm has shape \(3, 2\)"):
        MeanFieldCRF(2)(logits, torch.ones(3, 2))
    with pytest.raises(SamnnError, match="takes no image"):
        MeanFieldCRF(2)(logits, None, image)
    with pytest.raises(SamnnError, match="needs an image"):
        MeanFieldCRF(2, appearance_weight=1.0)(logits)
    with pytest.raises(SamnnError, match="does not fit"):
        MeanFieldCRF(2, appearance_weight=1.0)(logits, None, image[..., :4])


# ---- at the end of a network


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.deep = True

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        logits = self.conv(image)
        return [logits, logits[..., ::2, ::2]] if self.deep else logits


def test_a_head_refines_the_main_output_alone_and_renames_nothing() -> None:
    torch.manual_seed(0)
    network = TwoOutputs()
    image = torch.randn(2, 1, 8, 10)
    plain, names = network(image), set(network.state_dict())
    attach_crf(network, CRFHead((2.0, 1.0), smoothness_theta=(2.0, 1.0)))
    refined = network(image)
    expected = MeanFieldCRF(2, smoothness_theta=(2.0, 1.0))(plain[0], (2.0, 1.0))
    torch.testing.assert_close(refined[0], expected)
    assert torch.equal(refined[1], plain[1])
    network.deep = False
    torch.testing.assert_close(network(image), expected)
    assert isinstance(network, TwoOutputs)
    own = {"smoothness_weight", "inv_smoothness_theta", "has_regions"}
    assert set(network.state_dict()) == names | {f"crf.seg_layers.{name}" for name in own}
    with pytest.raises(SamnnError, match="has something called `crf` already"):
        attach_crf(network, CRFHead((1.0, 1.0)))


def test_a_head_learns_from_its_weights_that_the_channels_are_regions() -> None:
    torch.manual_seed(0)
    trained, built = TwoOutputs(), TwoOutputs()
    for network in (trained, built):
        attach_crf(network, CRFHead((1.0, 1.0)))
    crf_of(trained).set_regions(True)
    image = torch.randn(1, 1, 8, 10)
    built.load_state_dict(trained.state_dict())
    assert torch.equal(built(image)[0], trained(image)[0])


def test_a_network_with_a_head_compiles_without_a_break() -> None:
    network = TwoOutputs()
    attach_crf(
        network,
        CRFHead((1.0, 2.0), kernel="dense", appearance_weight=1.0, appearance_filter_size=(1, 3), n_iter=2),
    )
    image = torch.randn(2, 1, 8, 10)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(image)[0], network(image)[0])
    compiled(image)[0].square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_head_with_an_appearance_term_sees_the_networks_image() -> None:
    network = TwoOutputs()
    options = {"appearance_weight": 1.0, "intensity_theta": 0.1}
    image = torch.randn(1, 1, 8, 10)
    logits = network(image)[0]
    attach_crf(network, CRFHead((1.0, 1.0), **options))
    torch.testing.assert_close(network(image)[0], MeanFieldCRF(2, **options)(logits, None, image))
