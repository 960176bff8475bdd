"""Published checkpoints load in every layout, go back in SAMed's, and others are refused by what they are."""

import json

import pytest
import torch

from samnn.errors import SamnnError
from samnn.nn.samed import SAMed


@pytest.fixture(scope="module")
def reference(shared):
    """A function from a file's stem to its tensors, and the sizes."""
    folder = shared / "reference"
    sizes = json.loads((folder / "config.json").read_text())

    def tensors(stem):
        path = next(folder.glob(f"{stem}.pt*"))
        return torch.load(path, weights_only=True)

    return tensors, sizes


def network_of(sizes, name="samed", *, classes=None, channels=3, **options):
    size = sizes[name]
    classes = classes or size.get("num_foreground", 0) + 1
    torch.manual_seed(0)
    return SAMed(
        channels, classes, **{"architecture": sizes["sam"], "image_size": size["image_size"], "lora_rank": size["rank"], **options}
    ).eval()  # fmt: skip


def in_hugging_faces_layout(meta):
    """Meta's names → those of transformers' SamModel, by its published table."""
    parts = [
        ("image_encoder", "vision_encoder"), ("blocks", "layers"), (".norm", ".layer_norm"),
        ("patch_embed.proj", "patch_embed.projection"), ("neck.0", "neck.conv1"), ("neck.1", "neck.layer_norm1"),
        ("neck.2", "neck.conv2"), ("neck.3", "neck.layer_norm2"), ("point_embeddings", "point_embed"),
        ("mask_downscaling.0", "mask_embed.conv1"), ("mask_downscaling.1", "mask_embed.layer_norm1"),
        ("mask_downscaling.3", "mask_embed.conv2"), ("mask_downscaling.4", "mask_embed.layer_norm2"),
        ("mask_downscaling.6", "mask_embed.conv3"), ("output_upscaling.0", "upscale_conv1"),
        ("output_upscaling.1", "upscale_layer_norm"), ("output_upscaling.3", "upscale_conv2"),
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "prompt_encoder.shared_embedding.positional_embedding"),
    ]  # fmt: skip
    renamed = {}
    for key, value in meta.items():
        for ours, theirs in parts:
            key = key.replace(ours, theirs)
        if "hypernetworks_mlps" in key or "iou_prediction_head" in key:
            key = (
                key.replace("layers.0", "proj_in")
                .replace("layers.1", "layers.0")
                .replace("layers.2", "proj_out")
            )
        renamed[key] = value
    renamed["shared_image_embedding.positional_embedding"] = renamed[
        "prompt_encoder.shared_embedding.positional_embedding"
    ]
    return renamed


def in_timms_layout(meta):
    prefix = "image_encoder."
    return {
        key.removeprefix(prefix).replace("mlp.lin", "mlp.fc"): value
        for key, value in meta.items()
        if key.startswith(prefix)
    }


# ---- SAM


def test_meta_and_hugging_face_give_the_same_network(reference):
    tensors, sizes = reference
    base = tensors("sam_tiny_base")
    for given in (in_hugging_faces_layout(base), {f"module.sam.{key}": value for key, value in base.items()}):
        ours, theirs = network_of(sizes), network_of(sizes)
        theirs.load_sam(base)
        ours.load_sam(given)
        assert all(torch.equal(value, ours.state_dict()[key]) for key, value in theirs.state_dict().items())


def test_timms_layout_gives_the_encoder_and_leaves_the_decoder(reference):
    tensors, sizes = reference
    base = tensors("sam_tiny_base")
    ours, whole = network_of(sizes), network_of(sizes)
    whole.load_sam(base)
    before = {key: value.clone() for key, value in ours.decoder.state_dict().items()}
    report = ours.load_sam(in_timms_layout(base))
    assert report.layout == "timm"
    assert all(
        torch.equal(value, ours.encoder.state_dict()[key])
        for key, value in whole.encoder.state_dict().items()
    )
    assert all(torch.equal(value, before[key]) for key, value in ours.decoder.state_dict().items())
    assert {f"decoder.{key}" for key in before} <= set(report.new)


def test_report_says_what_became_of_every_tensor(reference):
    tensors, sizes = reference
    base = tensors("sam_tiny_base")
    network = network_of(sizes)
    report = network.load_sam(base)
    own = network.state_dict()
    assert sorted([*report.loaded, *report.new]) == sorted(own)
    assert len(report.loaded) + len(report.unused) == len(base)
    n_global = len(sizes["sam"]["global_attn_indexes"])
    assert len(report.resized) == 1 + 2 * n_global and "encoder.pos_embed" in report.resized
    assert all(".lora." in name or ".seg_layers." in name for name in report.new)
    assert "iou_prediction_head.layers.0.weight" in " ".join(report.unused)
    assert f"{len(report.loaded)} tensors loaded" in str(report)


def test_one_channel_gets_the_sum_of_three(reference):
    tensors, sizes = reference
    base = tensors("sam_tiny_base")
    network = SAMed(1, 5, architecture=sizes["sam"], image_size=256)
    report = network.load_sam(base)
    assert report.resized == ["encoder.patch_embed.proj.weight"]
    summed = base["image_encoder.patch_embed.proj.weight"].sum(1, keepdim=True)
    assert torch.equal(network.encoder.patch_embed.proj.weight, summed)


def unchanged(network, load, match):
    """The refusal names what is wrong, and nothing was loaded."""
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(SamnnError, match=match):
        load()
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_another_variant_is_refused_by_what_was_found_and_expected(reference):
    tensors, sizes = reference
    network = SAMed(3, 5, architecture={**sizes["sam"], "embed_dim": 96, "depth": 2})
    found = f"embed_dim {sizes['sam']['embed_dim']}, depth {sizes['sam']['depth']}"
    unchanged(network, lambda: network.load_sam(tensors("sam_tiny_base")), f"{found}.*embed_dim 96, depth 2")


def test_a_published_variant_is_named():
    from samnn.nn.sam_layouts import encoder_sizes
    from samnn.nn.samed import ARCHITECTURES

    with torch.device("meta"):
        large = SAMed(3, 2, backbone="sam_vit_l", adapt="frozen")
    network = SAMed(3, 2, architecture={**ARCHITECTURES["sam_vit_b"], "depth": 1})
    state = large.encoder.state_dict()
    assert encoder_sizes({f"image_encoder.{key}": value for key, value in state.items()})["num_heads"] == 16
    with pytest.raises(SamnnError, match=r"are of sam_vit_l \(embed_dim 1024, depth 24"):
        network.load_sam(state)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda base: {}, "not SAM's: found nothing"),
        (lambda base: {"model": base}, "not SAM's: found model"),
        (lambda base: {k: v for k, v in base.items() if "blocks.1.norm1.weight" not in k}, "missing: encoder.blocks.1.norm1.weight"),
        (lambda base: {k: v for k, v in base.items() if "iou_token" not in k}, "missing: decoder.iou_token"),
        (lambda base: {**base, "image_encoder.neck.0.weight": torch.zeros(1, 1, 1, 1)}, "another shape: encoder.neck.0.weight"),
    ],
    ids=["empty", "nested", "half an encoder", "half a decoder", "another shape"],
)  # fmt: skip
def test_what_is_no_whole_sam_is_refused(reference, spoil, match):
    tensors, sizes = reference
    network = network_of(sizes)
    unchanged(network, lambda: network.load_sam(spoil(tensors("sam_tiny_base"))), match)


# ---- SAMed


@pytest.mark.parametrize(("name", "adapt"), [("samed", "lora"), ("samed_s", "lora_decoder")])
def test_samed_files_come_out_as_they_went_in(reference, name, adapt, tmp_path):
    tensors, sizes = reference
    base, file = tensors("sam_tiny_base"), tensors(f"{name}_lora")
    network = network_of(sizes, name, adapt=adapt)
    network.load_sam(base)
    network.load_samed(file)
    for given, target in ((base, "meta.pth"), (in_hugging_faces_layout(base), "hugging_face.pth")):
        network.save_samed(tmp_path / target, given)
        written = torch.load(tmp_path / target, weights_only=True)
        assert {key: value.shape for key, value in written.items()} == {k: v.shape for k, v in file.items()}
        ours = [key for key in file if "iou_prediction_head" not in key]
        assert all(torch.equal(written[key], file[key]) for key in ours)
    again = network_of(sizes, name, adapt=adapt)
    again.load_sam(base)
    again.load_samed(written)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())


def test_an_adapter_without_its_base_is_refused(reference):
    tensors, sizes = reference
    network = network_of(sizes)
    unchanged(network, lambda: network.load_samed(tensors("samed_lora")), "load SAM's weights before")


@pytest.mark.parametrize(
    ("file", "options", "match"),
    [
        ("samed", {"lora_rank": 7}, "lora_rank=3; this network has adapt='lora', lora_rank=7"),
        (
            "samed",
            {"adapt": "lora_decoder"},
            "adapt='lora', lora_rank=3; this network has adapt='lora_decoder'",
        ),
        ("samed_s", {}, "adapt='lora_decoder', lora_rank=3; this network has adapt='lora'"),
        ("samed", {"adapt": "frozen"}, "adapt='lora', lora_rank=3; this network has adapt='frozen'"),
        ("samed", {"classes": 4}, "num_classes=5"),
    ],
    ids=["rank", "LoRA in the decoder wanted", "LoRA in the decoder found", "no LoRA", "classes"],
)
def test_an_adapter_of_another_network_is_refused(reference, file, options, match):
    tensors, sizes = reference
    match = match.replace("lora_rank=3", f"lora_rank={sizes[file]['rank']}")
    network = network_of(sizes, **options)
    network.load_sam(tensors("sam_tiny_base"))
    unchanged(network, lambda: network.load_samed(tensors(f"{file}_lora")), match)


def ai4mi_network(sizes, **options):
    size = sizes["ai4mi_samed_fast"]
    return network_of(
        sizes, "ai4mi_samed_fast", classes=size["num_classes"], **{"adapt": "lora_decoder", **options}
    )


def test_ai4mis_silent_token_is_part_of_the_network_afterwards(reference):
    tensors, sizes = reference
    network = ai4mi_network(sizes)
    network.load_samed(tensors("ai4mi_samed_fast_full"))
    again = ai4mi_network(sizes, silent_token=True)
    again.load_state_dict(network.state_dict())
    image = tensors("ai4mi_samed_fast_io")["x"]
    assert torch.equal(again(image), network(image))


@pytest.mark.parametrize("more", [-1, 1])
def test_an_ai4mi_file_of_other_classes_is_refused(reference, more):
    """It has one token more than classes; as many as a network with a class more has."""
    tensors, sizes = reference
    classes = sizes["ai4mi_samed_fast"]["num_classes"]
    network = ai4mi_network(
        sizes | {"ai4mi_samed_fast": sizes["ai4mi_samed_fast"] | {"num_classes": classes + more}}
    )
    file = tensors("ai4mi_samed_fast_full")
    unchanged(network, lambda: network.load_samed(file), f"build it with num_classes={classes}")


def test_what_files_of_samed_do_not_hold_is_reported_as_newly_made(reference):
    tensors, sizes = reference
    network = ai4mi_network(sizes, channels=2)
    report = network.load_samed(tensors("ai4mi_samed_fast_full"))
    assert report.new == ["project.weight", "project.bias"]
    silent = ai4mi_network(sizes, silent_token=True)
    assert "decoder.silent_token" in silent.load_sam(tensors("sam_tiny_base")).new


def test_an_ai4mi_file_that_does_not_fit_leaves_no_token(reference):
    tensors, sizes = reference
    network = ai4mi_network(sizes)
    file = tensors("ai4mi_samed_fast_full")
    del file["sam.mask_decoder.iou_token.weight"]
    unchanged(network, lambda: network.load_samed(file), "missing: decoder.iou_token")


@pytest.mark.parametrize(
    "key",
    [
        "prompt_encoder.not_a_point_embed.weight",
        "mask_decoder.iou_prediction_head.layers.2.bias",
        "mask_decoder.transformer.norm_final_attn.weight",
    ],
)
def test_no_samed_file_is_written_on_an_incomplete_base(reference, tmp_path, key):
    tensors, sizes = reference
    base = tensors("sam_tiny_base")
    network = network_of(sizes)
    network.load_sam(base)
    del base[key]
    with pytest.raises(SamnnError, match=f"incomplete(.|\n)*{key.split('.', 2)[2]}"):
        network.save_samed(tmp_path / "file.pth", base)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "match"),
    [({"adapt": "frozen"}, "this network is another"), ({"silent_token": True}, "another")],
)
def test_a_network_without_a_place_in_samed_s_layout_is_not_written(reference, tmp_path, options, match):
    tensors, sizes = reference
    network = network_of(sizes, **options)
    with pytest.raises(SamnnError, match=match):
        network.save_samed(tmp_path / "file.pth", tensors("sam_tiny_base"))
    assert not (tmp_path / "file.pth").exists()
