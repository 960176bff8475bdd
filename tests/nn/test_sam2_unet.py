"""SAM2-UNet equals the public implementation, takes any picture, trains only its adapters and decoder."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from samnn.errors import SamnnError
from samnn.nn.adapted_hiera import ARCHITECTURES, AdaptedHiera, hiera_sizes
from samnn.nn.hiera_windows import block_without_filling
from samnn.nn.sam2_unet import SAM2UNet

TINY = {  # 64x64 pixels are 16x16, 8x8, 4x4 and 2x2 tokens: full windows, windows cut off, one global block
    "embed_dim": 8,
    "num_heads": 1,
    "stages": [1, 2, 3, 1],
    "global_att_blocks": [4],
    "window_pos_embed_bkg_spatial_size": [7, 7],
    "window_spec": [8, 4, 14, 7],
}


def tiny(channels=1, classes=2, deep_supervision=False, **options):
    torch.manual_seed(0)
    options = {"architecture": TINY, "adapter_dim": 4, "scratch": True, **options}
    return SAM2UNet(channels, classes, deep_supervision, **options)


@pytest.fixture(scope="module")
def reference(shared):
    """Sizes, state dict and tensors, computed once by the public implementation."""
    folder = shared / "reference"
    sizes = json.loads((folder / "config.json").read_text())["sam2unet"]
    state = torch.load(folder / "sam2unet_state.pt", weights_only=True)
    return sizes, state, torch.load(folder / "sam2unet_io.pt", weights_only=True)


def network_of(sizes, channels=3, **options):
    torch.manual_seed(0)
    return SAM2UNet(channels, sizes["num_classes"], True, architecture=sizes["hiera"], **options)


@pytest.fixture(scope="module")
def small():
    """One network for many questions; running statistics moved away from 0 and 1 by a few training steps."""
    network = tiny(2, 3, adapter_init="published")
    for _ in range(3):
        network(torch.randn(2, 2, 64, 64) * 3 + 1)
    return network.eval()


# ---- equal to the reference


def test_reference_features_and_outputs_are_reproduced(reference):
    sizes, state, tensors = reference
    network = network_of(sizes).eval()
    network.load_reference(state)
    with torch.no_grad():
        found = [*network.encoder(tensors["x"]), *network(tensors["x"])]
    expected = [*tensors["features"], tensors["out"], tensors["out1"], tensors["out2"]]
    assert len(found) == len(expected) == 7
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.std()


def test_every_tensor_of_the_reference_but_up4_arrives_unchanged(reference):
    """Same multiset of tensors before and after, so that no two are swapped for want of a use."""
    sizes, state, _ = reference
    network = network_of(sizes)
    network.load_reference(state)
    ours = sorted(value.double().sum().item() for value in network.state_dict().values())
    theirs = sorted(value.double().sum().item() for key, value in state.items() if not key.startswith("up4."))
    assert ours == theirs


def test_reference_loads_without_up4_and_with_a_prefix(reference):
    sizes, state, tensors = reference
    plain, wrapped = network_of(sizes).eval(), network_of(sizes).eval()
    plain.load_reference(state)
    wrapped.load_reference({f"module.{key}": value for key, value in state.items() if "up4" not in key})
    assert torch.equal(plain(tensors["x"])[0], wrapped(tensors["x"])[0])


@pytest.fixture(scope="module")
def trunk_file(shared):
    return torch.load(shared / "reference" / "sam2_hiera_tiny_trunk.pt", weights_only=True)


@pytest.mark.parametrize("layout", ["Meta's", "Meta's, with the rest of SAM 2", "without model", "bare"])
def test_trunk_loads_from_metas_layout_and_leaves_the_rest_alone(reference, trunk_file, layout):
    sizes, _, _ = reference
    given = dict(trunk_file["model"])
    if layout == "Meta's, with the rest of SAM 2":
        given["sam_mask_decoder.iou_token.weight"] = given["image_encoder.neck.convs.0.conv.bias"] = (
            torch.ones(3)
        )
    if layout == "bare":
        given = {key.removeprefix("image_encoder.trunk."): value for key, value in given.items()}
    network = network_of(sizes)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_trunk(given if layout in ("without model", "bare") else {"model": given})
    after = network.state_dict()
    trunk = [key for key in after if key.startswith("encoder.trunk.")]
    sums = sorted(after[key].double().sum().item() for key in trunk)
    assert sums == sorted(value.double().sum().item() for value in trunk_file["model"].values())
    assert all(torch.equal(after[key], before[key]) for key in after if key not in trunk)


def test_one_channel_equals_that_channel_three_times(reference):
    sizes, state, _ = reference
    grey, colour = network_of(sizes, 1).eval(), network_of(sizes, 3).eval()
    grey.load_reference(state)
    colour.load_reference(state)
    x = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        ours, theirs = grey(x)[0], colour(x.expand(-1, 3, -1, -1))[0]
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.std()


def test_named_trunks_have_the_tensors_of_timms():
    names = {
        "sam2_hiera_t": "tiny",
        "sam2_hiera_s": "small",
        "sam2_hiera_b+": "base_plus",
        "sam2_hiera_l": "large",
    }
    assert names.keys() == ARCHITECTURES.keys()
    options = {"adapter_dim": 1, "adapter_init": "zero", "adapter_from": 0, "gradient_checkpointing": "none"}
    for name, timms in names.items():
        with torch.device("meta"):
            ours = AdaptedHiera(hiera_sizes(name, None), 3, **options).trunk
            theirs = timm.create_model(f"sam2_hiera_{timms}", num_classes=0)
        shapes = {
            key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("head.")
        }
        assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
        windows = [block.window_size for block in theirs.blocks]
        assert [block.window_size for block in ours.blocks] == windows
        assert [b.attn.num_heads for b in ours.blocks] == [b.attn.num_heads for b in theirs.blocks]


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (
            lambda state: without(state, "rfb2.conv_cat.bn.running_var"),
            "receptive_fields.1.merge.1.running_var",
        ),
        (lambda state: {**state, "crf.weight": torch.zeros(1)}, "unexpected: crf.weight"),
        (lambda state: {**state, "head.bias": torch.zeros(99)}, "found (99,), expected"),
        (lambda state: {"conv0.weight": torch.zeros(1)}, "found conv0.weight"),
        (lambda state: {}, "found nothing"),
    ],
    ids=["missing", "unexpected", "another shape", "another network", "empty"],
)
def test_unfit_reference_is_refused_by_name_and_nothing_is_loaded(reference, spoil, named):
    sizes, state, _ = reference
    network = network_of(sizes)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(SamnnError) as refusal:
        network.load_reference(spoil(state))
    assert named in str(refusal.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_trunk_of_another_size_is_refused_with_found_and_expected(trunk_file):
    n_blocks = len({key.split(".")[3] for key in trunk_file["model"] if ".blocks." in key})
    with pytest.raises(
        SamnnError, match=rf"found a trunk of {n_blocks} blocks.*expected 7 blocks and 8 channels"
    ):
        tiny(architecture={**TINY, "stages": [1, 2, 3, 1], "embed_dim": 8}).load_trunk(trunk_file)
    with pytest.raises(SamnnError, match="not SAM 2's"):
        tiny().load_trunk({"model": {"vision_encoder.x": torch.zeros(1)}})


# ---- windows


@settings(max_examples=30, deadline=None)
@given(
    side=st.sampled_from([2, 4, 6, 7, 14]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    pools=st.booleans(),
    batch=st.integers(1, 2),
)
def test_a_block_without_filling_equals_timms_block_and_so_do_its_gradients(
    side, height, width, pools, batch
):
    assume(not pools or side % 2 == 0)  # timm cannot pool the others
    torch.manual_seed(0)
    sizes = hiera_sizes(
        "", {**TINY, "window_spec": [8, side, side, side], "global_att_blocks": [], "num_heads": 2}
    )
    options = {"adapter_dim": 1, "adapter_init": "zero", "adapter_from": 0, "gradient_checkpointing": "none"}
    trunk = AdaptedHiera(sizes, 3, **options).trunk
    block = trunk.blocks[3 if pools else 2]  # the first of the third stage, the last of the second
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(batch, 2 * height, 2 * width, block.dim)
    results = []
    for form in ("for CPUs", "any device", "timm"):
        block.attn.qkv.bias.requires_grad_(form != "for CPUs")
        x = x.detach().requires_grad_()
        y = block(x) if form == "timm" else block_without_filling(block, x, block.norm1(x))
        (y * torch.arange(y.numel()).reshape(y.shape).sin()).sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(results[0], results[2], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(results[1], results[2], rtol=1e-3, atol=1e-4)


# ---- any picture, any sizes


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 100), width=st.integers(1, 100), batch=st.integers(1, 3))
def test_logits_have_the_size_of_the_picture(small, height, width, batch):
    with torch.no_grad():
        assert small(torch.randn(batch, 2, height, width)).shape == (batch, 3, height, width)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("classes", [1, 7])
def test_any_number_of_channels_and_classes_works(channels, classes):
    network = tiny(channels, classes).eval()
    with torch.no_grad():
        assert network(torch.randn(1, channels, 17, 40)).shape == (1, classes, 17, 40)


def test_any_window_works():
    """Six tokens of four pixels: pictures are padded to multiples of 96 then."""
    network = tiny(architecture={**TINY, "window_spec": [6, 6, 6, 6]}).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, 40, 230)).shape == (1, 2, 40, 230)


def test_padding_equals_zeros_added_by_hand(small):
    image = torch.randn(2, 2, 41, 83)
    by_hand = torch.zeros(2, 2, 64, 96)
    by_hand[:, :, :41, :83] = image
    with torch.no_grad():
        assert torch.equal(small(image), small(by_hand)[:, :, :41, :83])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"channels": 0}, "input_channels=0"),
        ({"classes": 0}, "num_classes=0"),
        ({"adapter_dim": 0}, "adapter_dim=0"),
        ({"adapter_init": "ones"}, "zero, published"),
        ({"adapter_from": 8}, "0 … 7"),
        ({"adapter_from": -1}, "0 … 7"),
        ({"adapter_from": 1, "channels": 2}, "learned projection"),
        ({"gradient_checkpointing": "late"}, "none, light, all"),
        ({"architecture": None, "backbone": "sam2_hiera_x"}, "sam2_hiera_t, sam2_hiera_s"),
        ({"architecture": {"depth": 12}}, "does not know depth"),
        ({"architecture": {**TINY, "stages": [1, 1, 1]}}, "four stages"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_that_cannot_work_are_refused(wrong, named):
    with pytest.raises(SamnnError) as refusal:
        tiny(**wrong)
    assert named in str(refusal.value)


# ---- what is trained


def test_the_trunk_is_frozen_and_stays_in_evaluation_mode():
    network = tiny().train()
    assert not any(module.training for module in network.encoder.trunk.modules())
    assert not any(parameter.requires_grad for parameter in network.encoder.trunk.parameters())
    assert network.training and all(module.training for module in network.decoder.modules())


@pytest.mark.parametrize("channels", [1, 2])
def test_gradient_reaches_every_trainable_parameter(channels):
    network = tiny(channels, 3, True, adapter_init="published")
    sum(logits.square().mean() for logits in network(torch.randn(2, channels, 64, 64))).backward()
    trainable = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in trainable.values())
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    assert {name.split(".")[1] for name in trainable if name.startswith("encoder.")} == {"adapters"}


def test_adapters_start_as_nothing_and_learn_at_once():
    network = tiny(3)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        alone = network.encoder.trunk.forward_intermediates(image, intermediates_only=True)
        for ours, trunks in zip(network.encoder(image), alone, strict=True):
            torch.testing.assert_close(ours, trunks, rtol=1e-4, atol=1e-5)
    network(image.expand(2, -1, -1, -1)).square().mean().backward()
    assert all(adapter.expand.weight.grad.abs().sum() > 0 for adapter in network.encoder.adapters)


def test_published_adapters_start_at_random():
    adapters = tiny(adapter_init="published").encoder.adapters
    assert all(layer.weight.std() > 0.05 for a in adapters for layer in (a.reduce, a.expand))


def training_step(**options):
    """Gradients of the parameters that have one, and how many bytes the forward pass kept for them."""
    network = tiny(1, 2, True, adapter_init="published", adapter_dim=4, **options)
    for adapter in network.encoder.adapters:  # those before adapter_from too
        nn.init.constant_(adapter.expand.bias, 0.1)
    frozen = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = network(torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1)))
    n_bytes = sum(size for pointer, size in kept.items() if pointer not in frozen)
    sum(logits.square().mean() for logits in outputs).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}, n_bytes


@pytest.mark.slow
def test_the_later_the_first_adapter_the_less_is_kept():
    kept = [training_step(adapter_from=block, gradient_checkpointing="none")[1] for block in range(8)]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)


def test_adapters_before_the_first_stay_as_they_are_and_the_others_learn():
    grads, _ = training_step(adapter_from=3)
    trained = {int(name.split(".")[2]) for name in grads if name.startswith("encoder.adapters.")}
    assert trained == {3, 4, 5, 6}
    fresh = tiny(adapter_init="published", adapter_from=3).encoder.adapters
    assert [bool(adapter.expand.weight.any()) for adapter in fresh] == [False] * 3 + [True] * 4


def test_checkpointing_keeps_less_and_changes_no_gradient():
    (plain, much), (light, less), (every, least) = (
        training_step(gradient_checkpointing=which) for which in ("none", "light", "all")
    )
    assert much > less > least
    for other in (light, every):
        torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-6)


def test_batch_norm_counts_a_step_once_whatever_is_computed_again():
    after = {}
    for which in ("none", "light", "all"):
        network = tiny(gradient_checkpointing=which)
        network(torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))).sum().backward()
        after[which] = dict(network.decoder.named_buffers())
    for name, plain in after["none"].items():
        for which in ("light", "all"):
            torch.testing.assert_close(after[which][name], plain, msg=f"{name}, {which}")


def test_a_second_backward_pass_gives_the_same_gradients_again():
    network = tiny(gradient_checkpointing="light")
    loss = network(torch.randn(2, 1, 64, 64)).square().sum()
    weights = [p for p in network.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    counts = [b.clone() for b in network.buffers()]
    second = torch.autograd.grad(loss, weights, allow_unused=True)
    assert any(g is not None and g.any() for g in first)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(list(network.buffers()), counts)


def test_training_without_weights_is_refused_until_some_are_loaded():
    image = torch.randn(2, 1, 32, 32)
    network = tiny(scratch=False)
    network.eval()(image)
    with pytest.raises(SamnnError, match="none were loaded"):
        network.train()(image)
    outer = nn.Sequential(network)  # as wrappers do
    outer.load_state_dict(outer.state_dict())
    network(image)


# ---- behaviour


def test_in_eval_mode_a_picture_does_not_feel_its_neighbours(small):
    images = torch.randn(3, 2, 72, 40)
    with torch.no_grad():
        together = small(images)
        alone = torch.cat([small(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_stays_finite_and_close_on_strong_inputs(dtype):
    """Thirty standard deviations: metal in a CT."""
    network = tiny(1, 5, adapter_init="published")
    image = torch.randn(2, 1, 72, 64) * 30
    for training in (True, False):
        network.train(training)
        with torch.autocast("cpu", dtype=dtype):
            logits = network(image)
            logits.float().square().mean().backward()
        assert logits.isfinite().all()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    with torch.no_grad():
        exact = network(image)
    assert (logits.float() - exact).abs().max() < 0.2 * exact.std()


def test_it_compiles_as_one_graph_with_the_same_result(small):
    """Only the tracing of torch.compile: its code generation takes minutes."""
    compiled = torch.compile(small, backend="eager", fullgraph=True, dynamic=False)
    image = torch.randn(1, 2, 40, 72)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image), small(image))


def test_it_compiles_for_training_with_the_same_gradients():
    network = tiny(1, 2, True, adapter_init="published", adapter_from=1).double()
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    image = torch.randn(2, 1, 64, 64, dtype=torch.double)  # batch norm of few values enlarges rounding
    gradients = []
    for forward in (network, compiled):
        network.zero_grad()
        sum(logits.square().mean() for logits in forward(image)).backward()
        gradients.append(
            {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        )
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-9)


def test_it_learns_to_mark_a_bright_square_with_a_random_frozen_trunk():
    network = tiny(1, 2, adapter_dim=8)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(40):
        target = torch.zeros(4, 32, 32, dtype=torch.long)
        for picture, (row, column) in enumerate(torch.randint(0, 16, (4, 2)).tolist()):
            target[picture, row : row + 16, column : column + 16] = 1
        image = target[:, None] * 2.0 + 0.5 * torch.randn(4, 1, 32, 32)
        loss = F.cross_entropy(network(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    marked = network(image).argmax(1) == 1
    overlap = 2 * (marked & (target == 1)).sum() / (marked.sum() + (target == 1).sum())
    assert overlap > 0.8


def test_state_dict_round_trip_gives_the_same_logits(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "sam2.pt")
    again = tiny(2, 3).eval()
    again.load_state_dict(torch.load(tmp_path / "sam2.pt", weights_only=True))
    image = torch.randn(1, 2, 33, 20)
    assert torch.equal(again(image), small(image))


# ---- what nnU-Net expects


def test_only_seg_layers_depend_on_the_number_of_classes():
    three, seven = tiny(1, 3), tiny(1, 7)
    a, b = three.state_dict(), seven.state_dict()
    assert a.keys() == b.keys()
    other_shapes = {key for key in a if a[key].shape != b[key].shape}
    assert other_shapes == {key for key in a if ".seg_layers." in key} != set()
    assert len(three.output_layers) == 3
    assert {id(p) for layer in three.output_layers for p in layer.parameters()} == {
        id(p) for name, p in three.named_parameters() if ".seg_layers." in name
    }


def test_deep_supervision_adds_the_side_outputs_and_changes_neither_parameters_nor_the_main_output():
    network = tiny(1, 2, True).eval()
    image = torch.randn(1, 1, 40, 48)
    main, *sides = network(image)
    assert [side.shape for side in sides] == [main.shape] * 2
    network.decoder.deep_supervision = False  # as nnU-Net's trainers do before validation
    assert torch.equal(network(image), main)
    assert network.state_dict().keys() == tiny(1, 2).state_dict().keys()


def test_the_network_has_no_initialize_that_nnunet_would_apply_to_it():
    assert not hasattr(tiny(), "initialize")
