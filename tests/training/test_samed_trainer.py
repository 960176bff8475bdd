"""nnUNetTrainerSAMed under nnU-Net's own commands, with a tiny SAM: what it trains, what it writes, what it needs."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from samnn import hardware
from samnn.doctor import OK, PROBLEM
from samnn.doctor_job import Job, examine_job
from samnn.errors import SamnnError
from samnn.io import read_labels
from samnn.nn.samed import SAMed
from samnn.plugins import trainer_samed
from samnn.plugins.trainer_samed import nnUNetTrainerSAMed
from samnn.training.export import export
from samnn.training.pretrained import RECORD, PretrainedPart, lean_state_dict
from samnn.weights.registry import REGISTRY

NAME = "nnUNetTrainerSAMed_rank3_lean_4epochs_5iters_seed1"
FINAL = "checkpoint_final.pth"
CPU = ("-device", "cpu")
PREDICT = ("-f", 0, "-npp", 1, "-nps", 1, "--save_probabilities", "--disable_progress_bar", *CPU)


def model_in(results: Path, name: str = NAME) -> Path:
    return results / "Dataset501_Tiny" / f"{name}__tinyPlans__2d_samed"


def read(checkpoint: Path) -> dict:
    return torch.load(checkpoint, map_location="cpu", weights_only=False)


def frozen(network: torch.nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if not parameter.requires_grad}


@pytest.fixture(scope="module")
def trained(nnunet: SimpleNamespace, samed_plans: str, command: Callable) -> Path:
    """The results of a whole training of fold 0."""
    command("nnUNetv2_train", 501, "2d_samed", 0, "-p", samed_plans, "-tr", NAME, *CPU)
    return nnunet.results


@pytest.fixture(scope="module")
def predicted(
    trained: Path, nnunet: SimpleNamespace, command: Callable, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """Labels and probabilities of the test cases, by nnU-Net's command."""
    out = tmp_path_factory.mktemp("predicted")
    images = nnunet.raw / "Dataset501_Tiny" / "imagesTs"
    options = ("-d", 501, "-p", "tinyPlans", "-c", "2d_samed", "-tr", NAME)
    command("nnUNetv2_predict", "-i", images, "-o", out, *options, *PREDICT)
    return arrays(out)


def arrays(folder: Path) -> dict[str, np.ndarray]:
    labels = {path.name: read_labels(path).voxels for path in folder.glob("*.nii.gz")}
    return labels | {path.name: np.load(path)["probabilities"] for path in folder.glob("*.npz")}


# ---- what is written


def test_finished_checkpoints_leave_out_frozen_weights_and_the_optimizer(trained: Path) -> None:
    fold = model_in(trained) / "fold_0"
    assert {path.name for path in fold.glob("*.pth")} == {FINAL, "checkpoint_best.pth"}
    for path in fold.glob("*.pth"):
        checkpoint = read(path)
        weights = checkpoint["network_weights"]
        network = SAMed(1, 3, architecture=json.loads((model_in(trained) / "plans.json").read_text())[
            "configurations"]["2d_samed"]["architecture"]["arch_kwargs"]["architecture"], lora_rank=3)  # fmt: skip
        assert network.state_dict().keys() - weights.keys() == frozen(network)
        assert set(weights.pop(RECORD)["tensors"]) == frozen(network)
        assert not checkpoint["optimizer_state"]["state"]


def test_log_and_settings_name_the_sources(trained: Path, own_weights: Path) -> None:
    fold = model_in(trained) / "fold_0"
    settings = json.loads((fold / "settings.json").read_text())["settings"]
    plans, recipe = "plans tinyPlans, configuration 2d_samed", "default of nnUNetTrainerSAMed"
    assert settings["lora_rank"] == {"value": 3, "source": "suffix _rank3"}
    assert settings["adapt"] == {"value": "lora", "source": recipe}
    assert settings["architecture"]["source"] == plans
    assert settings["weights"]["value"] == str(own_weights)
    assert settings["weights"]["source"] == plans
    assert len(settings["weights"]["sha256"]) == 64
    assert settings["loss_weights"] == {"value": {"ce": 0.2, "dice": 0.8}, "source": recipe}
    log = next(fold.glob("training_log*.txt")).read_text()
    assert f"Loaded {own_weights} (sha256 {settings['weights']['sha256']})" in log
    assert "lora_rank: 3  (suffix _rank3)" in log


def test_c_after_the_end_says_that_there_is_nothing_to_continue(
    trained: Path, samed_plans: str, make_trainer: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    final = model_in(trained) / "fold_0" / FINAL
    trainer = make_trainer(NAME, configuration="2d_samed", plans=samed_plans)
    trainer.output_folder = str(tmp_path)
    trainer.load_checkpoint(str(final))
    trainer.run_training()
    assert "checkpoint_final.pth holds no optimizer state" in capsys.readouterr().out
    before, after = (read(path)["network_weights"] for path in (final, tmp_path / FINAL))
    assert after.keys() == before.keys()
    assert after[RECORD] == before[RECORD]
    assert all(torch.equal(after[key], before[key]) for key in before if key != RECORD)


def test_checkpoint_best_alone_cannot_be_continued(
    trained: Path, samed_plans: str, make_trainer: Callable
) -> None:
    trainer = make_trainer(NAME, configuration="2d_samed", plans=samed_plans)
    trainer.load_checkpoint(str(model_in(trained) / "fold_0" / "checkpoint_best.pth"))
    trainer.current_epoch = 2
    with pytest.raises(SamnnError, match=r"no checkpoint_latest\.pth.*Start it again without --c"):
        trainer.run_training()


@pytest.mark.slow
def test_killed_after_two_epochs_and_continued_equals_four_in_one_go(
    trained: Path, command: Callable, tmp_path: Path
) -> None:
    script = f"""
import os, sys
from samnn.training.base import SamnnTrainer
SamnnTrainer.minutes_between_checkpoints = 0.0
start = SamnnTrainer.on_epoch_start
def killed(self):
    if self.current_epoch == 2:
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    start(self)
SamnnTrainer.on_epoch_start = killed
from nnunetv2.run.run_training import run_training_entry
sys.argv = "nnUNetv2_train 501 2d_samed 0 -p tinyPlans -tr {NAME} -device cpu".split()
run_training_entry()
"""
    results = {"nnUNet_results": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | results, capture_output=True, timeout=600
    )
    assert done.returncode == -signal.SIGKILL
    latest = read(model_in(tmp_path) / "fold_0" / "checkpoint_latest.pth")
    assert latest["current_epoch"] == 2
    assert latest["optimizer_state"]["state"]
    command("nnUNetv2_train", 501, "2d_samed", 0, "-p", "tinyPlans", "-tr", NAME, "--c", *CPU, **results)
    whole, continued = (read(model_in(folder) / "fold_0" / FINAL) for folder in (trained, tmp_path))
    for key in ("train_losses", "val_losses", "lrs", "mean_fg_dice"):
        assert continued["logging"][key] == whole["logging"][key], key
    for key, value in whole["network_weights"].items():
        assert key == RECORD or torch.equal(value, continued["network_weights"][key]), key


# ---- prediction and export


def test_an_export_predicts_the_same_without_weights_and_without_our_trainers(
    trained: Path,
    predicted: dict,
    nnunet: SimpleNamespace,
    command: Callable,
    own_weights: Path,
    tmp_path: Path,
) -> None:
    command("samnn", "export", model_in(trained), tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain.zip") as archive:  # as nnUNetv2_install_pretrained_model_from_zip
        archive.extractall(tmp_path / "results")
    images, out = nnunet.raw / "Dataset501_Tiny" / "imagesTs", tmp_path / "out"
    options = ("-d", 501, "-p", f"{NAME}_tinyPlans", "-c", "2d_samed")
    bare = {
        "nnUNet_extTrainer": "",
        "SAMNN_WEIGHTS": str(tmp_path),
        "nnUNet_results": str(tmp_path / "results"),
    }
    with hidden(own_weights):
        command("nnUNetv2_predict", "-i", images, "-o", out, *options, *PREDICT, **bare)
    found = arrays(out)
    assert found.keys() == predicted.keys()
    assert all(np.array_equal(found[name], predicted[name]) for name in predicted)


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_holds_every_tensor_and_merged_no_lora(trained: Path, tmp_path: Path, merge: bool) -> None:
    done = export(model_in(trained), tmp_path / "out", merge=merge)
    weights = torch.load(done.model / "fold_0" / FINAL, weights_only=True)["network_weights"]
    assert any(".lora." in name for name in weights) != merge
    stock, ours = predictor(done.model), predictor(model_in(trained))
    assert stock.trainer_name == "nnUNetTrainer"
    assert stock.network.state_dict().keys() == weights.keys()
    case = torch.randn(1, 3, 50, 60)
    assert torch.equal(
        stock.predict_logits_from_preprocessed_data(case), ours.predict_logits_from_preprocessed_data(case)
    )
    assert {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.*")} == {
        Path(name) for name in zipfile.ZipFile(done.archive).namelist()
    }
    with pytest.raises(SamnnError, match=r"exists already\. Add --overwrite"):
        export(model_in(trained), tmp_path / "out")


def test_what_has_no_lora_is_not_merged(
    trained: Path, samed_plans: str, make_trainer: Callable, tmp_path: Path
) -> None:
    name = "nnUNetTrainerSAMed_frozen_1epochs_1iters_seed1"
    trainer = make_trainer(name, configuration="2d_samed", plans=samed_plans)
    trainer.run_training()
    with pytest.raises(SamnnError, match=r"has no LoRA to merge\. Leave --merge out"):
        export(Path(trainer.output_folder_base), tmp_path / "out", merge=True)
    assert export(Path(trainer.output_folder_base), tmp_path / "out").folds == ["0"]


def test_with_a_crf_checkpoints_stay_lean_and_exports_are_refused(
    samed_plans: str, make_trainer: Callable, tmp_path: Path
) -> None:
    name = "nnUNetTrainerSAMed_lean_CRF_1epochs_1iters_seed1"
    trainer = make_trainer(name, configuration="2d_samed", plans=samed_plans)
    trainer.run_training()
    model = Path(trainer.output_folder_base)
    weights = read(model / "fold_0" / FINAL)["network_weights"]
    assert any(key.startswith("crf.") for key in weights)
    loaded = predictor(model).network.state_dict()
    assert loaded.keys() - weights.keys() == set(weights[RECORD]["tensors"])
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(loaded[key], value), key
    with pytest.raises(SamnnError, match="builds another network than its plans can name"):
        export(model, tmp_path / "out")


def predictor(model: Path) -> nnUNetPredictor:
    """Stock prediction's, with a model loaded."""
    made = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    made.initialize_from_trained_model_folder(str(model), (0,))
    return made


@contextmanager
def hidden(path: Path) -> Iterator[None]:
    """The file is elsewhere for the block."""
    moved = path.rename(path.with_name("elsewhere.pth"))
    try:
        yield
    finally:
        moved.rename(path)


def test_missing_frozen_weights_name_the_two_ways_out(trained: Path, own_weights: Path) -> None:
    with (
        hidden(own_weights),
        pytest.raises(
            SamnnError, match=r"leaves out \d+ frozen tensors(.|\n)*no such file(.|\n)*samnn export MODEL"
        ),
    ):
        predictor(model_in(trained))


@pytest.mark.slow
def test_nnunets_zip_of_a_lean_checkpoint_predicts_where_the_weights_are_and_says_what_to_do_where_not(
    trained: Path,
    predicted: dict[str, np.ndarray],
    own_weights: Path,
    nnunet: SimpleNamespace,
    command: Callable,
    tmp_path: Path,
) -> None:
    archive, elsewhere, out = tmp_path / "model.zip", tmp_path / "results", tmp_path / "out"
    elsewhere.mkdir()
    which = ("-d", 501, "-c", "2d_samed", "-p", "tinyPlans", "-tr", NAME, "-f", 0)
    command("nnUNetv2_export_model_to_zip", "-o", archive, *which)
    assert archive.stat().st_size < own_weights.stat().st_size
    command("nnUNetv2_install_pretrained_model_from_zip", archive, nnUNet_results=str(elsewhere))
    images = nnunet.raw / "Dataset501_Tiny" / "imagesTs"
    predict = (
        "nnUNetv2_predict_from_modelfolder", "-i", images, "-o", out, "-m", model_in(elsewhere), *PREDICT
    )  # fmt: skip
    with hidden(own_weights):
        failed = command(*predict, ok=False)
        assert "samnn export MODEL" in failed.stdout + failed.stderr
    command(*predict)
    found = arrays(out)
    assert found.keys() == predicted.keys()
    assert all(np.array_equal(found[name], predicted[name]) for name in found)


def test_weights_of_another_hash_do_not_fill_a_checkpoint(trained: Path, own_weights: Path) -> None:
    weights = read(model_in(trained) / "fold_0" / FINAL)["network_weights"]
    weights[RECORD] = weights[RECORD] | {"sha256": "0" * 64}
    network = built(own_weights, trained, load=False)
    with pytest.raises(SamnnError, match="has another sha256 here"):
        network.load_state_dict(weights)


# ---- lean state dicts


def built(own_weights: Path, results: Path, *, load: bool = True, **arguments: object) -> SAMed:
    """The trained network, pretrained, for experiments in this process."""
    plans = json.loads((model_in(results) / "plans.json").read_text())
    sizes = plans["configurations"]["2d_samed"]["architecture"]["arch_kwargs"]["architecture"]
    network = SAMed(1, 3, architecture=sizes, lora_rank=3, **arguments)
    part = PretrainedPart(network, nnUNetTrainerSAMed.load_weights)
    if load:
        part.load(network, str(own_weights))
    return network


class Wrapped(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.inside = network
        self.weight = torch.nn.Parameter(torch.rand(3))


@pytest.mark.parametrize("wrapper", [Wrapped, torch.compile, "DDP", lambda n: torch.compile(Wrapped(n))])
def test_lean_state_dicts_load_into_wrapped_networks(
    own_weights: Path, trained: Path, wrapper: Callable, tmp_path: Path
) -> None:
    if wrapper == "DDP":
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/r", rank=0, world_size=1)
        wrapper = torch.nn.parallel.DistributedDataParallel
    try:
        one, other = (wrapper(built(own_weights, trained, load=load)) for load in (True, False))
        complete, lean = one.state_dict(), lean_state_dict(one, own_files=True)
        assert len(lean) < len(complete)
        other.load_state_dict(lean)
        for key, value in other.state_dict().items():
            assert torch.equal(value, complete[key]), key
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_the_file_is_read_once_for_all_folds_and_cases(
    own_weights: Path, trained: Path, tmp_path: Path
) -> None:
    copy = shutil.copy(own_weights, tmp_path / "weights.pth")
    folds = [lean_state_dict(built(copy, trained), own_files=True) for _ in range(2)]  # LoRA drawn anew
    network = built(copy, trained, load=False)
    network.load_state_dict(folds[0])
    copy.unlink()
    for fold in (folds[1], folds[0]):
        network.load_state_dict(fold)
        assert all(torch.equal(network.state_dict()[key], fold[key]) for key in fold if key != RECORD)


def test_only_frozen_weights_of_a_public_file_are_left_out(own_weights: Path, trained: Path) -> None:
    network = built(own_weights, trained)
    assert lean_state_dict(network).keys() == network.state_dict().keys()  # the user's own file
    full = built(own_weights, trained, adapt="full")
    assert not lean_state_dict(full, own_files=True).keys() ^ {*full.state_dict(), RECORD}
    network.load_state_dict(network.state_dict())  # complete weights may come from anywhere
    assert RECORD not in lean_state_dict(network, own_files=True)


def test_a_public_file_is_left_out_and_filled_in_and_its_command_named_where_it_is_missing(
    own_weights: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an entry of its own in the registry, as no real one can be had here."""
    file = Path(shutil.copy(own_weights, tmp_path / "tiny.pth"))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    like = REGISTRY["sam_vit_b"]
    known = dataclasses.replace(like, name="sam_tiny", file=file.name, sha256=sha256, shapes={}, absent=())
    monkeypatch.setitem(REGISTRY, "sam_tiny", known)
    monkeypatch.setenv("SAMNN_WEIGHTS", str(tmp_path))
    network = built(own_weights, trained, load=False)
    network.pretrained_part.load(network, "sam_tiny")
    lean = lean_state_dict(network)  # as by default, without _lean
    assert network.state_dict().keys() - lean.keys() == frozen(network)
    again = built(own_weights, trained, load=False)
    again.load_state_dict(dict(lean))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
    file.unlink()
    with pytest.raises(SamnnError, match=r"samnn weights get sam_tiny(.|\n)*samnn export MODEL_FOLDER"):
        built(own_weights, trained, load=False).load_state_dict(dict(lean))


def test_a_file_of_another_variant_is_named_with_what_to_do(
    own_weights: Path, nnunet: SimpleNamespace, samed_plans: str, shared: Path
) -> None:
    """By training and by `samnn doctor` before it."""
    plans = json.loads((nnunet.preprocessed / "Dataset501_Tiny" / f"{samed_plans}.json").read_text())
    sizes = plans["configurations"]["2d_samed"]["architecture"]["arch_kwargs"]["architecture"]
    sizes |= {"depth": sizes["depth"] + 1}
    plans["plans_name"] = "deeperPlans"
    (nnunet.preprocessed / "Dataset501_Tiny" / "deeperPlans.json").write_text(json.dumps(plans))
    said = rf"{own_weights.name}: cannot be what this network starts from\. These weights are of another encoder(.|\n)*Name"
    with pytest.raises(SamnnError, match=said):
        nnUNetTrainerSAMed.try_weights(PlansManager(plans), "2d_samed")
    for name, status in (("deeperPlans", PROBLEM), (samed_plans, OK)):
        found = {f.subject: f for f in examine_job(Job("501", "2d_samed", "nnUNetTrainerSAMed", name))}
        assert found["pretrained weights"].status == status, found["pretrained weights"].found


def test_a_vit_b_of_rank_4_without_its_frozen_weights_is_below_25_mb(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = SAMed(1, 5, backbone="sam_vit_b", lora_rank=4)
    kept = {name: value for name, value in network.state_dict().items() if name not in frozen(network)}
    n_bytes = sum(value.numel() * value.element_size() for value in kept.values())
    assert 10e6 < n_bytes < 24e6
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert n_bytes + 2 * 4 * trainable < 59e6  # and two moments


# ---- what is needed, and refused


def test_without_weights_training_stops_with_the_command_that_gets_them(
    nnunet: SimpleNamespace, make_trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMNN_WEIGHTS", str(tmp_path))
    trainer = make_trainer("nnUNetTrainerSAMed_medsam_1epochs_1iters")
    with pytest.raises(SamnnError, match="samnn weights get medsam_vit_b"):
        trainer.run_training()


def test_a_stock_trainer_on_our_configuration_stops_at_its_first_step(
    samed_plans: str, make_trainer: Callable
) -> None:
    trainer = make_trainer("nnUNetTrainerNoDeepSupervision", configuration="2d_samed", plans=samed_plans)
    with pytest.raises(SamnnError, match="was to be trained from SAM's weights, but none were loaded"):
        trainer.run_training()


def test_scratch_trains_without_weights_and_writes_everything(
    samed_plans: str, make_trainer: Callable, tmp_path: Path
) -> None:
    """Regions and the ignore label, too."""
    name = "nnUNetTrainerSAMed_full_scratch_2epochs_4iters_seed1"
    trainer = make_trainer(name, dataset="502", configuration="2d_samed", plans=samed_plans)
    trainer.output_folder = str(tmp_path)
    trainer.run_training()
    losses = trainer.logger.get_value("train_losses", step=None)
    assert np.isfinite(losses).all()
    assert read(tmp_path / FINAL)["network_weights"].keys() == trainer.network.state_dict().keys()
    settings = json.loads((tmp_path / "settings.json").read_text())["settings"]
    assert settings["weights"] == {"value": None, "source": "suffix _scratch", "sha256": None}


@pytest.mark.parametrize(
    ("suffixes", "message"),
    [
        ("vitl_vith", "exclude each other"),
        ("medsam_vitl", "suffixes have one order|exclude each other"),
        ("frozen_full", "exclude each other"),
        ("rank8_frozen", "there is no LoRA with adapt frozen. Leave _rank8 out"),
        ("medsam_scratch", "_scratch trains from random weights"),
        ("scratch_lean", "_scratch trains from random weights"),
    ],
)
def test_suffixes_that_contradict_each_other_are_refused(
    nnunet: SimpleNamespace, suffixes: str, message: str
) -> None:
    with pytest.raises(SamnnError, match=message):
        getattr(trainer_samed, f"nnUNetTrainerSAMed_{suffixes}").check(stock_plans(nnunet), "2d")


@pytest.mark.parametrize(
    ("fixed", "suffix", "message"),
    [
        ({"backbone": "sam_vit_b"}, "vitl", "plans fix backbone sam_vit_b .* _vitl says backbone sam_vit_l"),
        ({"lora_rank": 4}, "rank8", "plans fix lora_rank 4 .* _rank8 says lora_rank 8"),
        ({"adapt": "lora"}, "full", "plans fix adapt lora .* _full says adapt full"),
        ({"architecture": {"depth": 2}}, "vith", "plans fix an architecture of its own"),
        ({"backbone": "sam_vit_l"}, "medsam", "MedSAM's is sam_vit_b. Leave _medsam out"),
        ({"adapt": "frozen"}, "rank8", "there is no LoRA with adapt frozen"),
        ({"architecture": {"depth": 2}}, "rank8", "no public weights. Name a file of yours in the plans"),
        ({"scratch": True}, "medsam", "starts from random weights .* no suffix can say which are loaded"),
        ({"scratch": True}, "lean", "starts from random weights .* no suffix can say which are loaded"),
    ],
)
def test_suffixes_that_contradict_the_plans_are_refused(
    nnunet: SimpleNamespace, fixed: dict, suffix: str, message: str
) -> None:
    plans = stock_plans(nnunet, fixed)
    with pytest.raises(SamnnError, match=message):
        getattr(trainer_samed, f"nnUNetTrainerSAMed_{suffix}").check(plans, "2d")


def test_suffixes_choose_network_and_weights_where_plans_leave_them_open(nnunet: SimpleNamespace) -> None:
    plans = stock_plans(nnunet)
    configuration = plans.get_configuration("2d")
    for suffixes, weights, arguments in [
        ("seed0", "sam_vit_b", {"backbone": "sam_vit_b", "lora_rank": 4, "adapt": "lora"}),
        ("vitl_rank16", "sam_vit_l", {"backbone": "sam_vit_l", "lora_rank": 16, "adapt": "lora"}),
        ("vith_frozen", "sam_vit_h", {"backbone": "sam_vit_h", "lora_rank": 4, "adapt": "frozen"}),
        ("medsam_decoderLoRA", "medsam_vit_b", {"backbone": "sam_vit_b", "adapt": "lora_decoder"}),
        ("full_scratch", None, {"scratch": True, "adapt": "full"}),
    ]:
        trainer = getattr(trainer_samed, f"nnUNetTrainerSAMed_{suffixes}")
        trainer.check(plans, "2d")
        assert trainer.needed_weights(plans, "2d") == weights
        assert arguments.items() <= trainer.architecture(configuration)["arch_kwargs"].items()
    same = trainer_samed.nnUNetTrainerSAMed_vitl
    fixed = stock_plans(nnunet, {"backbone": "sam_vit_l", "image_size": 448})
    same.check(fixed, "2d")  # a suffix that says what the plans say
    assert same.architecture(fixed.get_configuration("2d"))["arch_kwargs"]["image_size"] == 448
    assert nnUNetTrainerSAMed.needed_weights(fixed, "2d") == "sam_vit_l"


def stock_plans(nnunet: SimpleNamespace, fixed: dict | None = None) -> PlansManager:
    """Stock plans; with `fixed`, the arguments of SAMed that their 2d configuration names."""
    plans = json.loads((nnunet.preprocessed / "Dataset501_Tiny" / "nnUNetPlans.json").read_text())
    if fixed is not None:
        plans["configurations"]["2d"]["architecture"] = {
            "network_class_name": "samnn.nn.samed.SAMed",
            "arch_kwargs": fixed,
            "_kw_requires_import": [],
        }
    return PlansManager(plans)


# ---- the recipe


def test_the_recipe_is_the_published_one(samed_plans: str, make_trainer: Callable) -> None:
    name = "nnUNetTrainerSAMed_10epochs_500iters"
    trainer = make_trainer(name, configuration="2d_samed", plans=samed_plans)
    trainer.initialize()
    assert type(trainer.optimizer) is torch.optim.AdamW
    (group,) = trainer.optimizer.param_groups
    assert (group["weight_decay"], group["betas"]) == (0.1, (0.9, 0.999))
    trainable = [p for p in trainer.network.parameters() if p.requires_grad]
    assert [id(p) for p in group["params"]] == [id(p) for p in trainable]
    lr = trainer.lr_scheduler.lr
    assert lr(0) == pytest.approx(5e-3 / 250)
    assert lr(249) == lr(250) == pytest.approx(5e-3)
    assert lr(2750) == pytest.approx(5e-3 * 0.5**0.9)  # 2500 of 5000 after the warm-up
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 1, 8, 8)).float()
    cross_entropy = torch.nn.functional.cross_entropy(logits, target[:, 0].long())
    expected = 0.2 * cross_entropy + 0.8 * trainer.loss.dc(logits, target)
    assert trainer.loss(logits, target) == pytest.approx(float(expected), rel=1e-6)


def test_a_split_batch_gives_the_whole_batchs_loss_and_gradient(
    samed_plans: str, make_trainer: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of the size that little free memory asks for."""
    trainer = make_trainer("nnUNetTrainerSAMed_lean_fp32_seed0", configuration="2d_samed", plans=samed_plans)
    trainer.on_train_start()
    assert trainer.effective_micro_batch is None
    batch, found = next(trainer.dataloader_train), []
    for free in (None, 0):
        if free is not None:
            monkeypatch.setattr(hardware, "free_memory_bytes", lambda device: 0)
            trainer.effective_micro_batch = trainer.choose_micro_batch()
        trainer.optimizer.zero_grad()
        loss = trainer.backward(batch["data"], batch["target"])
        gradients = [p.grad.flatten() for p in trainer.network.parameters() if p.grad is not None]
        found.append((float(loss.detach()), torch.cat(gradients)))
    assert trainer.effective_micro_batch == 1 and len(batch["data"]) == 3
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert (found[1][1] - found[0][1]).norm() < 1e-4 * found[0][1].norm()


def test_prediction_uses_merged_lora_and_training_does_not(samed_plans: str, make_trainer: Callable) -> None:
    trainer = make_trainer("nnUNetTrainerSAMed", configuration="2d_samed", plans=samed_plans)
    built = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3)
    trainer.initialize()
    merged = [
        [m.merged is not None for m in n.modules() if hasattr(m, "merged")] for n in (built, trainer.network)
    ]
    assert merged == [[True] * 6, [False] * 6]
    assert trainer.network.training


# ---- the real size


def plans_of_real_size(nnunet: SimpleNamespace, encoder: str, folder: Path) -> None:
    """The stock 2d configuration but for the batch size, and a random encoder in timm's layout to start from."""
    weights = timm.create_model(encoder, pretrained=False, num_classes=0).state_dict()
    torch.save(weights, folder / "encoder.pth")
    plans_folder = nnunet.preprocessed / "Dataset501_Tiny"
    plans = json.loads((plans_folder / "nnUNetPlans.json").read_text()) | {"plans_name": "realSize"}
    plans["configurations"]["2d"] |= {"batch_size": 2, "pretrained_weights": str(folder / "encoder.pth")}
    (plans_folder / "realSize.json").write_text(json.dumps(plans))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "encoder", "blocks"),
    [
        ("decoderLoRA", "samvit_base_patch16", 12),
        ("vitl", "samvit_large_patch16", 24),
        ("vith", "samvit_huge_patch16", 32),
    ],
)
def test_a_variant_of_real_size_trains_a_step(
    variant: str,
    encoder: str,
    blocks: int,
    nnunet: SimpleNamespace,
    make_trainer: Callable,
    tmp_path: Path,
) -> None:
    plans_of_real_size(nnunet, encoder, tmp_path)
    trainer = make_trainer(f"nnUNetTrainerSAMed_{variant}_lean_1epochs_1iters_seed1", plans="realSize")
    trainer.run_training()
    assert len(trainer.network.encoder.blocks) == blocks
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    b = [value for name, value in trainer.network.named_parameters() if name.endswith(".b")]
    assert len(b) >= 2 * blocks  # LoRA of query and value, which started at zero
    assert all(value.any() for value in b)
    assert (Path(trainer.output_folder) / FINAL).stat().st_size < 45e6


@pytest.mark.slow
def test_a_vit_b_trains_a_step_on_stock_plans_and_predicts_a_case(
    nnunet: SimpleNamespace, make_trainer: Callable, command: Callable, tmp_path: Path
) -> None:
    plans_of_real_size(nnunet, "samvit_base_patch16", tmp_path)
    name = "nnUNetTrainerSAMed_lean_1epochs_1iters_seed1"
    trainer = make_trainer(name, plans="realSize")
    began = time.perf_counter()
    trainer.run_training()
    print(f"ViT-B, one training and one validation step: {time.perf_counter() - began:.1f} s")
    fold = Path(trainer.output_folder)
    trainer.save_checkpoint(str(fold / "at_the_end.pth"))
    trainer._save_latest()
    sizes = {path.name: path.stat().st_size / 1e6 for path in fold.glob("*.pth")}
    print(f"MB: {sizes}")
    assert sizes["checkpoint_latest.pth"] < 60
    assert sizes.keys() > {FINAL, "checkpoint_best.pth"}
    assert all(size < 25 for file, size in sizes.items() if file != "checkpoint_latest.pth")
    (tmp_path / "images").mkdir()
    shutil.copy(nnunet.raw / "Dataset501_Tiny" / "imagesTs" / "case_6_0000.nii.gz", tmp_path / "images")
    began = time.perf_counter()
    command(
        "nnUNetv2_predict", "-i", tmp_path / "images", "-o", tmp_path / "out", "-d", 501, "-p", "realSize",
        "-c", "2d", "-tr", name, "-step_size", 1, "--disable_tta", *PREDICT,
    )  # fmt: skip
    predicted = read_labels(tmp_path / "out" / "case_6.nii.gz")
    print(f"ViT-B, one case of {predicted.grid.shape} voxels: {time.perf_counter() - began:.1f} s")
    assert set(np.unique(predicted.voxels)) <= {0, 1, 2}
