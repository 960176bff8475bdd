"""`samnn plan`: what it chooses and why, what it writes and leaves alone, and that what it writes trains."""

import itertools
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from typer.testing import CliRunner

from samnn.cli import app
from samnn.errors import SamnnError
from samnn.hardware import saved_activation_bytes
from samnn.nn.enet import ENet
from samnn.planning.costs import FITTED, coefficients
from samnn.planning.counting import Count, count
from samnn.planning.measure import real_step
from samnn.planning.method import GIB, Choice, Method, Wishes
from samnn.planning.planner import SamnnPlanner
from samnn.planning.slices import Slices
from samnn.plugins.trainer_enet import nnUNetTrainerENet
from samnn.plugins.trainer_sam2unet import nnUNetTrainerSAM2UNet
from samnn.plugins.trainer_samed import nnUNetTrainerSAMed

OURS = {"2d_enet", "2d_sam2unet", "2d_samed"}
TINY = "Dataset501_Tiny"
ENET = {"network_class_name": "samnn.nn.enet.ENet", "arch_kwargs": {}, "_kw_requires_import": []}


@pytest.fixture(scope="module")
def planned(nnunet: SimpleNamespace) -> Path:
    """The preprocessed folder of 501 with all of our configurations in samnnPlans."""
    plan_experiment_dataset(501, partial(SamnnPlanner, wishes=Wishes(backbones=("sam2_hiera_t",))))
    return nnunet.preprocessed / TINY


@pytest.fixture
def folder(nnunet: SimpleNamespace) -> Path:
    """The preprocessed folder of 502, of which a test may plan what it likes; it is cleared behind it."""
    folder = nnunet.preprocessed / "Dataset502_TinyRegions"
    yield folder
    for path in folder.glob("samnn*.json"):
        path.unlink()


def plan(*args: object, ok: bool = True) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, args)])
    assert (done.exception is None) == ok, done.output
    return done.output if ok else str(done.exception)


def content(path: Path) -> dict:
    return json.loads(path.read_text())


def method(trainer: type, slices: Slices, nnunet: SimpleNamespace, **wishes: object) -> Method:
    folder = nnunet.preprocessed / TINY
    plans = PlansManager(str(folder / "nnUNetPlans.json"))
    return Method(trainer, plans, content(folder / "dataset.json"), slices, Wishes(**wishes))


def slices(*sides: tuple[int, int], n: int = 100) -> Slices:
    return Slices(np.array(sides), np.full(len(sides), n))


# ---- patches and sizes


def test_a_patch_holds_the_slices_of_95_percent_of_the_cases() -> None:
    """19 cases of 500 x 300 and one of 900 x 900; then two of these: 10 % cannot be left out."""
    few, more = slices(*[(500, 300)] * 19, (900, 900)), slices(*[(500, 300)] * 18, *[(900, 900)] * 2)
    assert few.covering(32) == (512, 320)
    assert few.one_tile((512, 320)) == 0.95
    assert more.covering(32) == (928, 928)
    assert slices((512, 512)).covering(32) == (512, 512)


def test_padding_counts_small_slices_and_filled_windows(nnunet: SimpleNamespace) -> None:
    """A slice of 256 x 512 in a patch of 512²: half. SAM at 512 pixels has 32 of 42 tokens in each direction."""
    of = method(nnUNetTrainerSAMed, slices((256, 512), (512, 512)), nnunet)
    choice = Choice((512, 512), (672, 672), 2, 2)
    assert of.padding(choice) == pytest.approx(1 - 0.75)
    assert of.padding(Choice((512, 512), (512, 512), 2, 2)) == pytest.approx(1 - 0.75 * (32 / 42) ** 2)
    assert of.tokens(choice) == 42 * 42


@pytest.mark.parametrize(
    ("side", "expected"),
    [((512, 512), (672, 672)), ((448, 448), (448, 448)), ((450, 200), (672, 224)), ((50, 35), (224, 224))],
)
def test_image_size_is_the_smallest_multiple_of_224_not_below_the_patch(
    nnunet: SimpleNamespace, side: tuple, expected: tuple
) -> None:
    sizes = [image for _, image in method(nnUNetTrainerSAMed, slices(side), nnunet).sizes()]
    assert sizes[0] == expected
    assert all(math.prod(a) > math.prod(b) for a, b in itertools.pairwise(sizes))
    assert sizes[-1] == (224, 224)


def test_a_batch_is_the_recipes_but_holds_at_most_5_percent_of_the_dataset(nnunet: SimpleNamespace) -> None:
    """10 cases of 10 slices of 512²: 5 % are 5 slices. One of them: 0.5, and nnU-Net's least is 2."""
    plenty = {"gpu_memory_gib": 1000.0}
    many = method(nnUNetTrainerENet, slices(*[(512, 512)] * 10, n=100), nnunet, **plenty)
    few = method(nnUNetTrainerENet, slices(*[(512, 512)] * 10, n=10), nnunet, **plenty)
    one = method(nnUNetTrainerENet, slices((512, 512), n=10), nnunet, **plenty)
    assert [of.choose().batch for of in (many, few, one)] == [8, 5, 2]


# ---- memory


def test_less_memory_first_splits_the_batch_then_shrinks_the_patch_then_refuses(
    nnunet: SimpleNamespace,
) -> None:
    chosen = []
    for memory_gib in (64.0, 8.0, 4.0, 1.2):
        of = method(nnUNetTrainerENet, slices(*[(512, 512)] * 40), nnunet, gpu_memory_gib=memory_gib)
        chosen.append(of.choose())
        assert of.cost(chosen[-1]).peak_bytes <= of.wishes.budget_bytes
    assert chosen[0] == Choice((512, 512), None, 8, 8)
    assert (chosen[1].patch, chosen[1].batch) == ((512, 512), 8)
    assert chosen[1].micro_batch >= chosen[2].micro_batch
    assert math.prod(chosen[3].patch) < 512 * 512
    with pytest.raises(SamnnError, match=r"2d_enet: refused by the rule of memory.*Raise --gpu-memory-gb"):
        method(nnUNetTrainerENet, slices((64, 64)), nnunet, gpu_memory_gib=0.6).choose()


def test_the_model_is_what_its_docstring_says() -> None:
    """peak = 100 + 10 + 2·50·3 + 7·5·6 + 0; time = 1e12 FLOP · (3 + 1 for the second forward) · 6 + …"""
    counted = Count(100, 10, 50, 5, 10**12, 3 * 10**12, batch_norm=False)
    model = type(FITTED["enet"])(2, 7, 0, 1, 0, 0.5)
    assert model.peak_bytes(counted, 6, 3) == 100 + 10 + 300 + 210
    assert model.seconds(counted, 6, 3) == pytest.approx(24.5)
    assert model.seconds(counted, 6, 6) == pytest.approx(18.5)


def test_a_network_that_was_not_measured_gets_the_most_of_the_others() -> None:
    assert coefficients("new").saved == max(one.saved for one in FITTED.values())


@pytest.mark.parametrize("channels", [1, 4])
def test_counting_on_the_meta_device_equals_a_real_forward_pass(channels: int) -> None:
    counted = count(ENET, channels, 3, (64, 48))
    network = ENet(channels, 3).train()
    for module in network.modules():
        if hasattr(module, "dropout"):
            module.dropout = nn.Dropout(module.dropout.p)  # on CPUs ours keeps less
    real = saved_activation_bytes(network, torch.zeros(2, channels, 64, 48)) / 2
    assert counted.saved_bytes == pytest.approx(real, rel=0.01)
    assert counted.weight_bytes == sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    assert counted.state_bytes == 12 * sum(p.numel() for p in network.parameters())
    assert counted.logits_bytes == 3 * 64 * 48 * 4
    assert 2.5 < counted.step_flops / counted.forward_flops < 3.5


@pytest.mark.slow
def test_a_real_step_takes_the_memory_that_was_estimated(nnunet: SimpleNamespace) -> None:
    of = method(nnUNetTrainerENet, slices(*[(256, 256)] * 40), nnunet)
    choice = Choice((256, 256), None, 8, 8)
    plans = content(nnunet.preprocessed / TINY / "nnUNetPlans.json")
    plans["configurations"]["2d_enet"] = of.configuration(choice)
    found = real_step(nnUNetTrainerENet, plans, "2d_enet", of.dataset_json, torch.device("cpu"))
    assert found.peak_bytes == pytest.approx(of.cost(choice).peak_bytes, rel=0.3)
    assert found.seconds > 0
    assert not list(nnunet.results.glob("**/*ENet__*2d_enet"))


@pytest.mark.slow
def test_a_step_that_fails_says_why(nnunet: SimpleNamespace) -> None:
    plans = content(nnunet.preprocessed / TINY / "nnUNetPlans.json")
    with pytest.raises(SamnnError, match=r"3d_fullres: a training step on cpu failed: .*takes 2D patches"):
        real_step(
            nnUNetTrainerENet,
            plans,
            "3d_fullres",
            content(nnunet.preprocessed / TINY / "dataset.json"),
            torch.device("cpu"),
        )


# ---- what is written


def test_ours_inherit_the_preprocessed_data_and_the_base_stays(planned: Path) -> None:
    base, ours = content(planned / "nnUNetPlans.json"), PlansManager(str(planned / "samnnPlans.json"))
    assert set(base["configurations"]) == {"2d", "3d_fullres"} == set(ours.available_configurations) - OURS
    assert ours.plans["plans_name"] == "samnnPlans"
    for name in OURS:
        configuration = ours.get_configuration(name)
        for key in (
            "data_identifier",
            "preprocessor_name",
            "normalization_schemes",
            "resampling_fn_data",
            "spacing",
        ):
            assert configuration.configuration[key] == base["configurations"]["2d"][key]
        assert ours.plans["configurations"][name]["inherits_from"] == "2d"
        assert 1 <= configuration.configuration["samnn"]["micro_batch"] <= configuration.batch_size
        assert configuration.pool_op_kernel_sizes[0] == [1, 1]
    samed = ours.get_configuration("2d_samed").network_arch_init_kwargs
    assert (samed["backbone"], samed["image_size"]) == ("sam_vit_b", 224)
    assert "lora_rank" not in samed  # a suffix may choose


def test_planning_again_changes_no_byte_and_other_wishes_only_what_they_name(planned: Path) -> None:
    before, base = ((planned / f"{name}.json").read_bytes() for name in ("samnnPlans", "nnUNetPlans"))
    assert "is like that already" in " ".join(plan("-d", 501, "--backbone", "sam2_hiera_t").split())
    assert (planned / "samnnPlans.json").read_bytes() == before
    plan("-d", 501, "--only", "samed", "--rank", 8, "--image-size", 448)
    after, was = content(planned / "samnnPlans.json"), json.loads(before)
    samed = after["configurations"].pop("2d_samed")["architecture"]["arch_kwargs"]
    assert (samed["lora_rank"], samed["backbone"], samed["image_size"]) == (8, "sam_vit_b", 448)
    del was["configurations"]["2d_samed"]
    assert after["configurations"] == was["configurations"]
    plan("-d", 501, "--only", "samed")
    assert (planned / "samnnPlans.json").read_bytes() == before
    assert (planned / "nnUNetPlans.json").read_bytes() == base


def test_what_a_person_wrote_into_our_plans_stays(folder: Path) -> None:
    plan("-d", 502, "--only", "enet")
    path = folder / "samnnPlans.json"
    changed = content(path)
    changed["configurations"]["2d_enet"]["batch_size"] = 3
    changed["configurations"]["2d_mine"] = {"inherits_from": "2d", "batch_size": 5}
    path.write_text(json.dumps(changed))
    said = " ".join(plan("-d", 502, "--only", "enet").split())
    assert "2d_enet in" in said and "2d_mine in" in said and "stays as it is" in said
    assert content(path)["configurations"]["2d_enet"]["batch_size"] == 3
    assert content(path)["configurations"]["2d_mine"]["batch_size"] == 5


def test_a_dry_run_explains_and_writes_nothing(folder: Path) -> None:
    said = plan("-d", 502, "--only", "enet", "--dry-run")
    for word in ("2d_enet", "tokens", "memory", "time per step", "work on padding", "Nothing was written"):
        assert word in said
    assert not list(folder.glob("samnn*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "unet"], r"--only unet: there is no such method, there are enet, sam2unet, samed"),
        (["--only", "enet", "--backbone", "sam_vit_l"], r"--backbone sam_vit_l: not one of.*none to choose"),
        (["--backbone", "vit"], r"--backbone vit: not one of.*sam2_hiera_t.*sam_vit_b"),
        (["--backbone", "sam_vit_b", "--backbone", "sam_vit_l"], r"both of 2d_samed"),
        (["--only", "enet", "--rank", "4"], r"--rank: none of the planned methods has LoRA"),
        (["--only", "enet", "--image-size", "448"], r"--image-size: none of the planned methods"),
        (["--only", "samed", "--image-size", "450"], r"multiples of 16, such as 448"),
        (["-p", "otherPlans"], r"otherPlans\.json: does not exist; there are nnUNetPlans"),
        (["--name", "nnUNetPlans"], r"nnUNetPlans: would be overwritten"),
        (["--preprocess", "--dry-run"], r"leave one of them out"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else "",
)  # fmt: skip
def test_requests_that_cannot_be_met_are_refused_by_name(folder: Path, arguments: list, message: str) -> None:
    assert re.search(message, plan("-d", 502, *arguments, ok=False))
    assert not list(folder.glob("samnn*"))


def broken(folder: Path, name: str, change: Callable[[dict], None]) -> None:
    plans = content(folder / "nnUNetPlans.json") | {"plans_name": name}
    change(plans)
    (folder / f"{name}.json").write_text(json.dumps(plans))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["configurations"].pop("2d"), "rule of one preprocessing: it has no configuration 2d"),
        (
            lambda p: p["configurations"]["2d"].update(preprocessor_name="Mine"),
            "rule of built-in names: nnU-Net has no Mine",
        ),
        (
            lambda p: p["configurations"]["2d"].update(normalization_schemes=["MyNorm"]),
            "rule of built-in names: nnU-Net has no MyNorm",
        ),
        (lambda p: p["configurations"].update({"2d_enet": {}}), "has a configuration 2d_enet of its own"),
        (
            lambda p: p.update(samnn={"planned_from": "nnUNetPlans"}),
            "was written by samnn plan, from nnUNetPlans",
        ),
    ],
    ids=["no-2d", "preprocessor", "normaliser", "taken", "ours"],
)
def test_plans_that_cannot_serve_are_refused_by_rule(folder: Path, change: Callable, message: str) -> None:
    broken(folder, "samnnBroken", change)
    assert message in plan("-d", 502, "-p", "samnnBroken", "--only", "enet", ok=False)
    assert not (folder / "samnnPlans.json").exists()


def test_files_of_others_and_of_other_plans_are_not_replaced(folder: Path) -> None:
    broken(folder, "samnnPlans", lambda plans: None)
    before = (folder / "samnnPlans.json").read_bytes()
    assert "was not written by samnn plan" in plan("-d", 502, "--only", "enet", ok=False)
    assert (folder / "samnnPlans.json").read_bytes() == before
    plan("-d", 502, "--only", "enet", "--name", "samnnMine")
    broken(folder, "samnnOther", lambda plans: None)
    refused = plan("-d", 502, "--only", "enet", "--name", "samnnMine", "-p", "samnnOther", ok=False)
    assert "was planned from nnUNetPlans, not from samnnOther" in refused


# ---- other kinds of datasets


@pytest.mark.parametrize(
    ("number", "channels", "labels", "shape", "spacing"),
    [
        (511, {"0": "T1", "1": "T2", "2": "FLAIR", "3": "T1c"}, {"background": 0, "a": 1}, [20, 240, 200], [5, 1, 1]),
        (512, {"0": "CT"}, {"background": 0, "whole": [1, 2], "core": 2}, [240, 30, 200], [1, 6, 1]),
        (513, {"0": "R", "1": "G", "2": "B"}, {"background": 0, "road": 1}, [1, 700, 500], [999, 1, 1]),
    ],
    ids=["four-channels", "regions-anisotropic", "2D"],
)  # fmt: skip
def test_any_kind_of_dataset_gets_configurations_that_build(
    nnunet: SimpleNamespace, number: int, channels: dict, labels: dict, shape: list, spacing: list
) -> None:
    """From fingerprints written by hand; building them is part of planning."""
    name = f"Dataset{number}_Kind"
    raw, preprocessed = nnunet.raw / name, nnunet.preprocessed / name
    ending = ".png" if shape[0] == 1 else ".nii.gz"
    regions = {"regions_class_order": [1, 2]} if "whole" in labels else {}
    description = {
        "channel_names": channels,
        "labels": labels,
        "numTraining": 30,
        "file_ending": ending,
        **regions,
    }
    channel_files = [f"imagesTr/case_{i:04}" for i in range(1 if ending == ".png" else len(channels))]
    for file in (*channel_files, "labelsTr/case"):
        (raw / file).parent.mkdir(parents=True, exist_ok=True)
        (raw / f"{file}{ending}").touch()  # planning looks at their names
    preprocessed.mkdir()
    (raw / "dataset.json").write_text(json.dumps(description))
    statistics = {
        "mean": 0,
        "median": 0,
        "std": 1,
        "percentile_00_5": -1,
        "percentile_99_5": 1,
        "min": -1,
        "max": 1,
    }
    fingerprint = {
        "spacings": [spacing] * 30, "shapes_after_crop": [shape] * 30, "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": dict.fromkeys(channels, statistics),
    }  # fmt: skip
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    plans = content(nnunet.preprocessed / TINY / "nnUNetPlans.json")
    two = plans["configurations"]["2d"]
    axis = int(np.argmax(spacing))
    plans |= {
        "configurations": {"2d": two | {"normalization_schemes": ["ZScoreNormalization"] * len(channels)}},
        "transpose_forward": [axis, *(i for i in range(3) if i != axis)],
    }
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))

    methods = ("enet", "samed") if len(channels) == 4 else ("enet",)
    plan("-d", number, "--gpu-memory-gb", 40, *(word for name in methods for word in ("--only", name)))
    manager = PlansManager(str(preprocessed / "samnnPlans.json"))
    in_plane = [side for i, side in enumerate(shape) if i != axis]
    for name in methods:
        patch = manager.get_configuration(f"2d_{name}").patch_size
        assert all(side <= p < side + 32 for side, p in zip(in_plane, patch, strict=True))


# ---- training on it


@pytest.fixture(scope="module")
def small(planned: Path, shared: Path) -> str:
    """Our plans of 501 with networks of a few kilobytes that start from random weights."""
    plans = content(planned / "samnnPlans.json") | {"plans_name": "smallPlans"}
    hiera = {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 2, 1], "global_att_blocks": [2]}
    sizes = {
        "2d_samed": {"architecture": content(shared / "reference" / "config.json")["sam"], "image_size": 64},
        "2d_sam2unet": {"architecture": hiera},
    }
    for name in OURS:
        configuration = plans["configurations"][name]
        arguments = configuration["architecture"]["arch_kwargs"]
        if name in sizes:
            del arguments["backbone"]
            arguments |= sizes[name] | {"scratch": True}
        configuration["batch_size"] = 2
        configuration["samnn"]["micro_batch"] = 1
    (planned / "smallPlans.json").write_text(json.dumps(plans))
    return "smallPlans"


@pytest.mark.parametrize("configuration", sorted(OURS))
def test_a_stock_trainer_trains_and_predicts_our_configurations(
    small: str, make_trainer: Callable, configuration: str
) -> None:
    """nnUNetTrainer itself, deep supervision on: it reads strides and sets decoder.deep_supervision."""
    trainer = make_trainer("nnUNetTrainer", plans=small, configuration=configuration)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
    trainer.initialize()
    before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    trainer.run_training()
    after = trainer.network.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))

    predictor = nnUNetPredictor(
        device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    picture = np.random.default_rng(0).normal(size=(1, 2, 40, 36)).astype(np.float32)
    labels = predictor.predict_single_npy_array(picture, {"spacing": [1.0, 1.0, 1.0]})
    assert labels.shape == (2, 40, 36)


@pytest.mark.parametrize("trainer", [nnUNetTrainerENet, nnUNetTrainerSAM2UNet, nnUNetTrainerSAMed])
def test_our_trainers_take_the_planned_micro_batch_and_say_where_it_is_from(
    small: str, make_trainer: Callable, trainer: type
) -> None:
    built = make_trainer(trainer.__name__, plans=small, configuration=trainer.planned.configuration)
    built.initialize()
    built.effective_micro_batch = built.choose_micro_batch()
    assert built.settings()["micro_batch"] == {
        "value": 1,
        "source": f"plans {small}, configuration {trainer.planned.configuration}",
    }


def test_a_suffix_that_contradicts_the_planned_backbone_stops(planned: Path, make_trainer: Callable) -> None:
    with pytest.raises(SamnnError, match=r"the plans fix backbone sam_vit_b.*_vitl"):
        make_trainer("nnUNetTrainerSAMed_vitl", plans="samnnPlans", configuration="2d_samed")


def test_every_planned_name_is_one_of_a_kind() -> None:
    from samnn.environment import our_trainers

    names = [trainer.planned.name for trainer in our_trainers() if trainer.planned is not None]
    assert len(names) == len(set(names)) and {f"2d_{name}" for name in names} == OURS


def test_measured_costs_replace_estimates(nnunet: SimpleNamespace) -> None:
    """A candidate that ran out of memory is no candidate any more."""
    of = method(nnUNetTrainerENet, slices(*[(512, 512)] * 40), nnunet, gpu_memory_gib=64.0)
    first = of.choose()
    of.measured[first] = None
    assert of.choose() != first
    assert of.cost(of.choose()).peak_bytes < 64 * GIB
