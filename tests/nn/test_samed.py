"""SAMed equals the public implementations, adapts what it says, takes any picture, and behaves as nnU-Net expects."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from samnn.errors import SamnnError
from samnn.nn.samed import ADAPTATIONS, SAMed

TINY = {
    "embed_dim": 16, "depth": 2, "num_heads": 2, "global_attn_indexes": [1], "window_size": 2, "patch_size": 8,
    "mlp_ratio": 2, "prompt_dim": 16, "decoder_heads": 2, "decoder_mlp_dim": 16, "base_image_size": 32,
}  # fmt: skip


def tiny(channels=1, classes=3, *, seed=0, **options):
    """A network whose every tensor is random, so that nothing is hidden by zeros."""
    torch.manual_seed(seed)
    network = SAMed(channels, classes, **{"architecture": TINY, "lora_rank": 2, "scratch": True, **options})
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(torch.randn_like(value) * 0.2 + (value == 1))
    return network.eval()


@pytest.fixture(scope="module")
def reference(shared):
    """A function from a file's stem to its tensors, and the sizes."""
    folder = shared / "reference"
    sizes = json.loads((folder / "config.json").read_text())

    def tensors(stem):
        path = next(folder.glob(f"{stem}.pt*"))
        return torch.load(path, weights_only=True)

    return tensors, sizes


def close(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-4 * theirs.std()


# ---- equal to the references


def test_sam_embeddings_are_reproduced(reference):
    tensors, sizes = reference
    network = SAMed(3, 5, architecture=sizes["sam"], image_size=sizes["sam"]["base_image_size"]).eval()
    network.load_sam(tensors("sam_tiny_base"))
    case = tensors("sam_tiny_encoder_io")
    assert close(network.encoder(case["x"]), case["image_embeddings"])


def test_sam_embeddings_of_low_contrast_are_reproduced(reference):
    """Tokens so small that the epsilon of the layer norms counts."""
    tensors, sizes = reference
    case, base = tensors("sam_tiny_lowcontrast_io"), tensors("sam_tiny_base")
    for name in ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        base[f"image_encoder.{name}"] = base[f"image_encoder.{name}"] * case["token_scale"]
    network = SAMed(3, 5, architecture=sizes["sam"], image_size=sizes["sam"]["base_image_size"]).eval()
    network.load_sam(base)
    assert close(network.encoder(case["x"]), case["image_embeddings"])


ADAPTED = [("samed", "lora"), ("samed_s", "lora_decoder")]


def published(reference, name, adapt, **options):
    """A network with the weights of the reference, and the reference's numbers."""
    tensors, sizes = reference
    network = SAMed(
        3, sizes[name]["num_foreground"] + 1, architecture=sizes["sam"], adapt=adapt,
        image_size=sizes[name]["image_size"], lora_rank=sizes[name]["rank"], **options,
    ).eval()  # fmt: skip
    network.load_sam(tensors("sam_tiny_base"))
    network.load_samed(tensors(f"{name}_lora"))
    return network, tensors(f"{name}_io")


@pytest.mark.parametrize(("name", "adapt"), ADAPTED)
def test_maps_of_published_adapters_are_reproduced(reference, name, adapt):
    network, case = published(reference, name, adapt)
    with torch.no_grad():
        assert close(network.decoder(network.encoder(case["x"])), case["low_res_logits"])
        assert close(network(case["x"]), case["masks"])


def our_lora_name(key):
    key = key.replace("sam.image_encoder", "encoder").replace("sam.mask_decoder", "decoder")
    for matrix in "ab":
        key = key.replace(f"w_{matrix}.weight", f"lora.out.{matrix}")
        for part in "qv":
            key = key.replace(f"linear_{matrix}_{part}.weight", f"lora.{part}.{matrix}")
            key = key.replace(f"fa_ti_{part}_proj_{matrix.upper()}.weight",
                              f"decoder.transformer.final_attn_token_to_image.{part}_proj.lora.out.{matrix}")  # fmt: skip
    return key


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("name", "adapt"), ADAPTED)
def test_loss_and_gradients_of_published_adapters_are_reproduced(reference, name, adapt, checkpointing):
    network, case = published(reference, name, adapt, gradient_checkpointing=checkpointing)
    loss = F.cross_entropy(network(case["x"]), case["target"])
    assert loss.item() == pytest.approx(case["loss"].item(), rel=1e-5)
    loss.backward()
    parameters = dict(network.named_parameters())
    for key, norm in case["lora_grad_norm"].items():
        assert parameters[our_lora_name(key)].grad.norm().item() == pytest.approx(float(norm), rel=2e-4), key


@pytest.mark.parametrize(("name", "adapt"), ADAPTED)
def test_what_is_trained_is_what_the_public_code_trains_and_gives_a_gradient(reference, name, adapt):
    network, case = published(reference, name, adapt)
    tensors, sizes = reference
    idle = ("iou_prediction_head", "point_embeddings", "not_a_point_embed", "mask_downscaling")
    file = tensors(f"{name}_lora")
    unused = sum(value.numel() for key, value in file.items() if any(part in key for part in idle))
    ours = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert ours == sizes[name]["n_trainable"] - unused
    lora = {key for key, p in network.named_parameters() if p.requires_grad and ".lora." in key}
    assert lora == {
        our_lora_name(key)
        for key in case["trainable"]
        if ".linear_" in key or ".w_" in key or key.startswith("fa_ti_")
    }


def test_ai4mi_is_reproduced(reference):
    tensors, sizes = reference
    size, case = sizes["ai4mi_samed_fast"], tensors("ai4mi_samed_fast_io")
    network = SAMed(
        3, size["num_classes"], architecture=sizes["sam"], image_size=size["image_size"], lora_rank=size["rank"],
        adapt="lora_decoder",
    ).eval()  # fmt: skip
    network.load_samed(tensors("ai4mi_samed_fast_full"))
    with torch.no_grad():
        embeddings = network.encoder(case["x"])
        assert close(embeddings, case["image_embeddings"])
        assert close(network.decoder(embeddings), case["low_res_logits"])


@pytest.mark.slow
@pytest.mark.parametrize("size", [448, 512, 1024])
def test_segment_anything_at_full_size_is_reproduced(size):
    """The package segment-anything, ViT-B, every weight random."""
    sam_modules = pytest.importorskip("segment_anything.modeling")
    torch.manual_seed(0)
    theirs = sam_modules.ImageEncoderViT(
        img_size=size, use_rel_pos=True, global_attn_indexes=[2, 5, 8, 11], window_size=14, out_chans=256,
        norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6), qkv_bias=True,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(torch.randn_like(value) * 0.02 + (value == 1))
    state = {f"image_encoder.{key}": value for key, value in theirs.state_dict().items()}
    ours = SAMed(3, 2, image_size=size).eval()
    ours.load_sam(state)
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert close(ours.encoder(image), theirs(image))


# ---- any picture, any sizes


@pytest.fixture(scope="module")
def small():
    return tiny()


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), batch=st.integers(1, 2))
def test_logits_have_the_size_of_the_picture(small, height, width, batch):
    with torch.no_grad():
        assert small(torch.randn(batch, 1, height, width)).shape == (batch, 3, height, width)


def seen_by_encoder(network, image):
    sizes = []
    handle = network.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape))
    with torch.no_grad():
        network(image)
    handle.remove()
    return tuple(sizes[0][-2:])


def test_image_size_none_is_the_smallest_multiple_of_224_not_below_the_longer_side():
    network = tiny(architecture={**TINY, "window_size": 14, "patch_size": 16})
    for patch, side in [((224, 100), 224), ((100, 225), 448), ((448, 448), 448), ((449, 20), 672)]:
        assert seen_by_encoder(network, torch.zeros(1, 1, *patch)) == (side, side)


def test_image_size_is_a_square_or_height_and_width_whatever_the_picture():
    for given_size, seen in [(32, (32, 32)), ([16, 48], (16, 48)), ((40, 8), (40, 8))]:
        assert seen_by_encoder(tiny(image_size=given_size), torch.zeros(1, 1, 30, 50)) == seen


def test_positions_of_another_grid_are_resized_as_those_of_a_loaded_checkpoint():
    """A network without image_size keeps SAM's positions and resizes them in every forward."""
    free = tiny(3)
    fixed = tiny(3, image_size=48, seed=1)
    fixed.load_sam(in_timms_layout(free.encoder))
    fixed.decoder.load_state_dict(free.decoder.state_dict())
    for block, other in zip(fixed.encoder.blocks, free.encoder.blocks, strict=True):
        block.attn.qkv.load_state_dict(other.attn.qkv.state_dict())
    image = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(fixed(image), free(image))


def in_timms_layout(encoder):
    return {key: value for key, value in encoder.state_dict().items() if ".lora." not in key}


def test_one_channel_is_what_three_equal_ones_are():
    grey, colour = tiny(1), tiny(3)
    weights = colour.state_dict()
    weights["encoder.patch_embed.proj.weight"] = weights["encoder.patch_embed.proj.weight"].sum(
        1, keepdim=True
    )
    grey.load_state_dict(weights)
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_other_channels_are_brought_to_three_by_a_learned_projection(channels):
    network = tiny(channels)
    assert network.project.weight.shape == (3, channels, 1, 1) and network.project.weight.requires_grad
    assert network(torch.randn(1, channels, 20, 30)).shape == (1, 3, 20, 30)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 30}, "multiples of 8"),
        ({"image_size": [32, 0]}, "multiples of 8"),
        ({"lora_rank": 0}, "lora_rank=0"),
        ({"adapt": "Lora"}, "lora, lora_decoder, frozen, full"),
        ({"architecture": None, "backbone": "vit_b"}, "sam_vit_b, sam_vit_l, sam_vit_h"),
        ({"architecture": {"embed_dim": 16}}, "lacks depth, num_heads"),
    ],
    ids=["odd size", "no size", "no rank", "adapt", "backbone", "architecture"],
)
def test_sizes_that_cannot_work_are_refused(options, said):
    with pytest.raises(SamnnError, match=said):
        SAMed(1, 2, **{"architecture": TINY, **options})


# ---- adaptation


def test_lora_starts_as_the_identity():
    torch.manual_seed(0)
    adapted = SAMed(1, 3, architecture=TINY, adapt="lora_decoder").eval()
    frozen = SAMed(1, 3, architecture=TINY, adapt="frozen").eval()
    frozen.load_state_dict({key: value for key, value in adapted.state_dict().items() if ".lora." not in key})
    image = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(adapted(image), frozen(image))


def trained(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_modes_train_what_they_say():
    networks = {adapt: tiny(2, adapt=adapt) for adapt in ADAPTATIONS}
    names = {adapt: {name for name, _ in network.named_parameters()} for adapt, network in networks.items()}
    decoder = {name for name in names["frozen"] if name.startswith("decoder.")}
    project = {"project.weight", "project.bias"}
    assert trained(networks["full"]) == names["full"]
    assert trained(networks["frozen"]) == decoder | project
    lora = {name for name in names["lora"] if ".lora." in name}
    assert len(lora) == 8 and all(
        name.startswith("encoder.blocks.") for name in lora
    )  # 2 blocks, q and v, A and B
    assert trained(networks["lora"]) == decoder | project | lora
    everywhere = {name for name in names["lora_decoder"] if ".lora." in name}
    assert len(everywhere) == 8 + 2 * 3 * 4 + 4  # two layers of three attentions, and the last one
    transformer = {name for name in decoder if name.startswith("decoder.transformer.")}
    assert trained(networks["lora_decoder"]) == (decoder - transformer) | project | everywhere


@pytest.mark.parametrize("adapt", ADAPTATIONS)
def test_gradient_reaches_every_trained_parameter_and_no_other(adapt):
    network = tiny(2, adapt=adapt, silent_token=True).train()
    network(torch.randn(2, 2, 40, 24)).square().mean().backward()
    # a shift of all keys does not change a softmax: the gradient of their bias is rounding noise, and may be zero
    dead = {
        name for name, p in network.named_parameters()
        if p.grad is None or (not p.grad.abs().sum() > 0 and not name.endswith("k_proj.bias"))
    }  # fmt: skip
    assert dead == {name for name, _ in network.named_parameters()} - trained(network)


@pytest.mark.parametrize("adapt", ADAPTATIONS)
def test_two_steps_work_under_ddp_without_looking_for_unused_parameters(adapt, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        network = DistributedDataParallel(tiny(adapt=adapt, gradient_checkpointing=True).train())
        for _ in range(2):
            network(torch.randn(1, 1, 16, 16)).square().mean().backward()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("adapt", ADAPTATIONS)
def test_merged_outputs_are_equal_and_the_state_dict_is_as_before(adapt):
    network, image = tiny(adapt=adapt), torch.randn(2, 1, 32, 32)
    before, plain = {key: value.clone() for key, value in network.state_dict().items()}, network(image)
    network.merge()
    assert close(network(image), plain)
    after = network.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in a wrapper"])
def test_the_next_fold_loads_into_a_merged_network(wrapped):
    network, second = tiny(), tiny(seed=2)
    image = torch.randn(2, 1, 32, 32)
    network.merge()
    if wrapped:
        outer = nn.Sequential(network)
        outer.load_state_dict({f"0.{key}": value for key, value in second.state_dict().items()})
    else:
        network.load_state_dict(second.state_dict())
    assert close(network(image), second(image))
    assert network.encoder.blocks[0].attn.qkv.merged is not None


def test_training_goes_on_after_merging():
    network, image = tiny(), torch.randn(1, 1, 32, 32)
    network.merge()
    network.train()(image).mean().backward()
    lora = [p for name, p in network.named_parameters() if ".lora." in name]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora)
    with torch.no_grad():
        lora[1].add_(1.0)
    assert not close(network.eval()(image), tiny()(image))


def test_gradient_checkpointing_changes_no_gradient():
    image = torch.randn(1, 1, 40, 24)
    gradients = []
    for checkpointing in (False, True):
        network = tiny(gradient_checkpointing=checkpointing).train()
        network(image).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


# ---- arithmetic


@pytest.mark.parametrize("merged", [False, True], ids=["apart", "merged"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["CPU", "GPU"])
def test_autocast_stays_finite_on_strong_inputs_in_training_and_prediction(reference, form, dtype, merged):
    """Thirty standard deviations: metal in a CT; attention in the form that each kind of device computes."""
    network, case = published(reference, "samed", "lora")
    for name, parameter in network.named_parameters():
        if form == "GPU" and "rel_pos" in name:
            parameter.requires_grad = True  # the plain form alone gives these gradients
    if merged:
        network.merge()
    else:
        network.train()
    with torch.autocast("cpu", dtype=dtype):
        logits = network(case["x"] * 30)
    assert logits.dtype == dtype and logits.isfinite().all()
    if not merged:
        F.cross_entropy(logits.float(), case["target"]).backward()
        assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_bf16_autocast_is_near_float32(reference):
    network, case = published(reference, "samed", "lora")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = network(case["x"]).float()
    assert (logits - case["masks"]).abs().mean() <= 0.05 * case["masks"].std()


def test_it_compiles_as_one_graph_with_the_same_result_and_gradients():
    """Only the tracing of torch.compile: its code generation takes minutes."""
    network = tiny(gradient_checkpointing=False).train()
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=False)
    image = torch.randn(1, 1, 30, 40)
    gradients = []
    for result in (network(image), compiled(image)):
        network.zero_grad()
        result.square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


# ---- what nnU-Net expects


def test_deep_supervision_changes_the_container_and_neither_parameters_nor_logits():
    network = tiny(deep_supervision=True)
    image = torch.randn(1, 1, 16, 16)
    (listed,) = network(image)
    network.decoder.deep_supervision = False  # as nnU-Net's trainers do before validation
    assert torch.equal(network(image), listed)
    assert network.state_dict().keys() == tiny().state_dict().keys()


def test_only_seg_layers_depend_on_the_number_of_classes():
    three, seven = tiny(classes=3).state_dict(), tiny(classes=7).state_dict()
    shared_names = {key for key in three if ".seg_layers." not in key}
    assert shared_names == {key for key in seven if ".seg_layers." not in key}
    assert all(three[key].shape == seven[key].shape for key in shared_names)


def test_output_layers_are_the_last_of_each_class():
    layers = tiny(classes=3).output_layers
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(16, 2)] * 3


def test_the_network_has_no_initialize_that_nnunet_would_apply_to_it():
    assert not hasattr(tiny(), "initialize")


def test_training_without_weights_is_refused_unless_asked_for():
    network, image = SAMed(1, 2, architecture=TINY), torch.zeros(1, 1, 16, 16)
    network.eval()(image)
    with pytest.raises(SamnnError, match="none were loaded"):
        network.train()(image)
    weights = SAMed(1, 2, architecture=TINY).state_dict()
    nn.Sequential(network).load_state_dict({f"0.{key}": value for key, value in weights.items()})
    network(image)
    SAMed(1, 2, architecture=TINY, scratch=True).train()(image)


@pytest.mark.slow
def test_it_learns_to_mark_a_bright_square():
    torch.manual_seed(0)
    network = SAMed(1, 2, architecture=TINY, image_size=32, adapt="full", scratch=True).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(100):
        target = torch.zeros(4, 32, 32, dtype=torch.long)
        for picture, (row, column) in enumerate(torch.randint(0, 20, (4, 2)).tolist()):
            target[picture, row : row + 12, column : column + 12] = 1
        image = target[:, None] * 2.0 + 0.5 * torch.randn(4, 1, 32, 32)
        loss = F.cross_entropy(network(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    marked = network(image).argmax(1) == 1
    overlap = 2 * (marked & (target == 1)).sum() / (marked.sum() + (target == 1).sum())
    assert overlap > 0.8
