"""Pretrained weights, CRF and samplers in one name: what each does alone, they do together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

REST = "AdaptiveSampler_ClassBalanced_1epochs_2iters_seed1"


@pytest.fixture(scope="module")
def predictor() -> Callable[[Path], torch.nn.Module]:
    """Loads a model folder as nnU-Net's prediction does; → the network with the weights of fold 0."""

    def load(folder: Path) -> torch.nn.Module:
        loaded = nnUNetPredictor(device=torch.device("cpu"))
        loaded.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
        loaded.network.load_state_dict(loaded.list_of_parameters[0])
        return loaded.network.eval()

    return load


def test_samed_is_fine_tuned_with_a_crf_on_sampled_patches_and_found_again_at_prediction(
    samed_plans: str, make_trainer: Callable, predictor: Callable
) -> None:
    folders = []
    for name in (f"nnUNetTrainerSAMed_lean_{REST}", f"nnUNetTrainerSAMed_lean_CRFfinetune_{REST}"):
        trainer = make_trainer(name, configuration="2d_samed", plans=samed_plans)
        trainer.run_training()
        assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
        folders.append(Path(trainer.output_folder).parent)
        assert (folders[-1] / "fold_0" / "sampling.json").is_file()
    before, after = (predictor(folder).state_dict() for folder in folders)
    added = after.keys() - before.keys()
    assert added and all(name.startswith("crf.") for name in added)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("seg_layers" in name for name in changed)


@pytest.mark.parametrize("name", ["nnUNetTrainerSAMed_scratch", "nnUNetTrainerENet", "nnUNetTrainerUNet"])
def test_a_crf_trained_with_the_network_is_there_at_prediction(
    name: str, samed_plans: str, make_trainer: Callable, predictor: Callable
) -> None:
    configuration = "2d_samed" if "SAMed" in name else "2d"
    trainer = make_trainer(f"{name}_CRF_{REST}", configuration=configuration, plans=samed_plans)
    trainer.run_training()
    picture = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    network = predictor(Path(trainer.output_folder).parent)
    trained = trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        here, there = trained(picture), network(picture)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4 * float(here.std()))
    assert trainer.crf.learned()["smoothness_weight"] != 1.0
