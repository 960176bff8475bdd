"""ENet equals the public implementation, takes any picture, and behaves as nnU-Net expects of a network."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from samnn.errors import SamnnError
from samnn.nn.enet import ENet


@pytest.fixture(scope="module")
def reference(shared):
    """Sizes, state dict, input and logits, computed once by the public implementation."""
    folder = shared / "reference"
    sizes = json.loads((folder / "config.json").read_text())["enet"]
    state = torch.load(folder / "enet_state.pt", weights_only=True)
    tensors = torch.load(folder / "enet_io.pt", weights_only=True)
    return sizes, state, tensors["x"], tensors["logits"]


def network_of(sizes):
    torch.manual_seed(0)
    return ENet(
        sizes["in_channels"], sizes["num_classes"], kernels=sizes["kernels"], projection=sizes["factor"]
    )


@pytest.fixture(scope="module")
def small():
    """One network for many questions; running statistics moved away from 0 and 1 by a few training steps."""
    torch.manual_seed(0)
    network = ENet(2, 3, kernels=4, projection=2)
    for _ in range(5):
        network(torch.randn(4, 2, 32, 32) * 3 + 1)
    return network.eval()


# ---- equal to the reference


def test_default_sizes_have_392891_parameters():
    assert sum(parameter.numel() for parameter in ENet(1, 5).parameters()) == 392_891


def test_reference_logits_are_reproduced(reference):
    sizes, state, x, logits = reference
    network = network_of(sizes)
    network.load_reference(state)
    with torch.no_grad():
        difference = (network.eval()(x) - logits).abs().max()
    assert difference <= 1e-4 * logits.std()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefix_of_a_wrapped_network_is_taken_off(reference, prefix):
    sizes, state, x, _ = reference
    plain, wrapped = network_of(sizes).eval(), network_of(sizes).eval()
    plain.load_reference(state)
    wrapped.load_reference({prefix + key: value for key, value in state.items()})
    assert torch.equal(plain(x), wrapped(x))


def test_every_tensor_of_the_reference_arrives_unchanged(reference):
    """Same multiset of tensors before and after, so that no two are swapped for want of a use."""
    sizes, state, _, _ = reference
    network = network_of(sizes)
    network.load_reference(state)
    ours = sorted(value.double().sum().item() for value in network.state_dict().values())
    theirs = sorted(value.double().sum().item() for value in state.values())
    assert ours == theirs


def test_dilations_are_those_of_the_paper():
    """The reference picture is so small that the widest dilation sees only padding: it cannot tell."""
    encoder = ENet(1, 5).encoder
    for stage in (encoder.stage2, encoder.stage3):
        assert [block.convolve[0].dilation[0] for block in stage] == [1, 2, 1, 4, 1, 8, 1, 16]


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda state: without(state, "bottleneck3.7.conv_out.1.running_var"), "bottleneck3.7.conv_out.1.running_var"),
        (lambda state: {**state, "crf.weight": torch.zeros(1)}, "crf.weight"),
        (lambda state: {**state, "final.2.bias": torch.zeros(99)}, "final.2.bias (99,)"),
        (lambda state: {}, "missing: conv0.weight"),
    ],
    ids=["missing", "unexpected", "another shape", "empty"],
)  # fmt: skip
def test_unfit_weights_are_refused_by_name_and_nothing_is_loaded(reference, spoil, named):
    sizes, state, _, _ = reference
    network = network_of(sizes)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(SamnnError) as refusal:
        network.load_reference(spoil(state))
    assert named in str(refusal.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_weights_of_other_sizes_are_refused(reference):
    sizes, state, _, _ = reference
    network = network_of({**sizes, "num_classes": sizes["num_classes"] + 1})
    with pytest.raises(SamnnError, match=r"another shape: final\.2\.weight"):
        network.load_reference(state)


# ---- any picture, any sizes


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), batch=st.integers(1, 3))
def test_logits_have_the_size_of_the_picture(small, height, width, batch):
    with torch.no_grad():
        assert small(torch.randn(batch, 2, height, width)).shape == (batch, 3, height, width)


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 20),
    classes=st.integers(1, 9),
    projection=st.integers(1, 5),
    extra=st.integers(0, 6),
)
def test_any_number_of_channels_classes_and_kernels_works(channels, classes, projection, extra):
    network = ENet(channels, classes, kernels=max(2, projection) + extra, projection=projection).eval()
    with torch.no_grad():
        assert network(torch.randn(1, channels, 17, 24)).shape == (1, classes, 17, 24)


def test_padding_equals_zeros_added_by_hand(small):
    image = torch.randn(2, 2, 21, 43)
    by_hand = torch.zeros(2, 2, 24, 48)
    by_hand[:, :, :21, :43] = image
    with torch.no_grad():
        assert torch.equal(small(image), small(by_hand)[:, :, :21, :43])


def test_sizes_that_cannot_work_are_refused():
    for wrong in [{"input_channels": 0}, {"num_classes": 0}, {"kernels": 3}, {"projection": 0}]:
        with pytest.raises(SamnnError, match="ENet needs"):
            ENet(**{"input_channels": 1, "num_classes": 2, **wrong})


# ---- behaviour


def test_in_eval_mode_a_picture_does_not_feel_its_neighbours(small):
    images = torch.randn(3, 2, 40, 24)
    with torch.no_grad():
        together = small(images)
        alone = torch.cat([small(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 12])
def test_gradient_reaches_every_parameter(channels):
    torch.manual_seed(0)
    network = ENet(channels, 3)
    network(torch.randn(2, channels, 30, 50)).square().mean().backward()
    dead = [
        name for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]  # fmt: skip
    # a bias before batch norm is taken out by the mean: its gradient is rounding noise, and may be exactly zero
    before_norm = {
        f"{name}.{position}.bias"
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential)
        for position, (first, second) in enumerate(zip(module, list(module)[1:], strict=False))
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d)
    }
    assert set(dead) <= before_norm
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_input_is_left_as_it_was(small):
    image = torch.randn(1, 2, 32, 32)
    before = image.clone()
    small(image)
    assert torch.equal(image, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_stays_finite_on_strong_inputs_in_training_and_prediction(dtype):
    """Thirty standard deviations: metal in a CT."""
    torch.manual_seed(0)
    network = ENet(1, 5)
    image = torch.randn(2, 1, 64, 64) * 30
    for training in (True, False):
        network.train(training)
        with torch.autocast("cpu", dtype=dtype):
            logits = network(image)
        assert logits.dtype == dtype and logits.isfinite().all()


def test_it_compiles_as_one_graph_with_the_same_result(small):
    """Only the tracing of torch.compile: its code generation takes minutes."""
    compiled = torch.compile(small, backend="eager", fullgraph=True, dynamic=False)
    image = torch.randn(1, 2, 30, 40)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), small(image))


@pytest.mark.slow
def test_it_learns_to_mark_a_bright_square():
    torch.manual_seed(0)
    network = ENet(1, 2, kernels=8)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(30):
        target = torch.zeros(4, 32, 32, dtype=torch.long)
        for picture, (row, column) in enumerate(torch.randint(0, 20, (4, 2)).tolist()):
            target[picture, row : row + 12, column : column + 12] = 1
        image = target[:, None] * 2.0 + 0.5 * torch.randn(4, 1, 32, 32)
        loss = nn.functional.cross_entropy(network(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    marked = network(image).argmax(1) == 1
    overlap = 2 * (marked & (target == 1)).sum() / (marked.sum() + (target == 1).sum())
    assert overlap > 0.8


def test_state_dict_round_trip_gives_the_same_logits(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "enet.pt")
    again = ENet(2, 3, kernels=4, projection=2).eval()
    again.load_state_dict(torch.load(tmp_path / "enet.pt", weights_only=True))
    image = torch.randn(1, 2, 33, 20)
    assert torch.equal(again(image), small(image))


# ---- what nnU-Net expects


def test_only_seg_layers_depend_on_the_number_of_classes():
    three, seven = ENet(1, 3).state_dict(), ENet(1, 7).state_dict()
    assert three.keys() == seven.keys()
    other_shapes = {key for key in three if three[key].shape != seven[key].shape}
    assert other_shapes == {key for key in three if ".seg_layers." in key} != set()


def test_deep_supervision_changes_the_container_and_neither_parameters_nor_logits():
    torch.manual_seed(0)
    network = ENet(1, 2, True).eval()
    image = torch.randn(1, 1, 16, 16)
    (listed,) = network(image)
    network.decoder.deep_supervision = False  # as nnU-Net's trainers do before validation
    assert torch.equal(network(image), listed)
    assert network.state_dict().keys() == ENet(1, 2).state_dict().keys()


def test_the_network_has_no_initialize_that_nnunet_would_apply_to_it():
    assert not hasattr(ENet(1, 2), "initialize")


def test_output_layers_are_the_one_that_makes_the_logits():
    (layer,) = ENet(1, 3).output_layers
    assert layer.out_channels == 3


def test_batch_norm_folded_for_prediction_changes_nothing():
    torch.manual_seed(0)
    network = ENet(2, 3)
    for _ in range(3):
        network(torch.randn(4, 2, 48, 64) * 3 + 1)  # running statistics that are not 0 and 1
    network.eval()
    image = torch.randn(2, 2, 40, 56)
    layer_by_layer = network(image).detach()
    with torch.no_grad():
        torch.testing.assert_close(
            network(image), layer_by_layer, rtol=1e-4, atol=1e-4 * float(layer_by_layer.std())
        )


def test_backward_hooks_see_the_gradients_of_inner_layers():
    seen = []
    network = ENet(1, 2)
    network.encoder.stage1[0].expand.register_full_backward_hook(lambda *_: seen.append(1))
    network.encoder.stage1[0].dropout.register_full_backward_hook(lambda *_: seen.append(1))
    network(torch.randn(2, 1, 32, 32)).sum().backward()
    assert len(seen) == 2


def test_a_norm_in_training_mode_is_not_folded():
    network = ENet(1, 2).eval()
    norm = network.encoder.stage1[0].reduce[1].train()
    with torch.no_grad():
        network(torch.randn(2, 1, 32, 32))
    assert norm.num_batches_tracked == 1
