"""A trainer's name is its experiment."""

import re

import pytest

from samnn.errors import SamnnError
from samnn.plugins import trainer_enet, trainer_unet
from samnn.training import options
from samnn.training.variants import OPTIONS


def test_suffixes_set_attributes_and_mix_in_hooks() -> None:
    trainer = trainer_unet.nnUNetTrainerUNet_AdamW_CosineWarmup_GDL_fp32_100epochs_50iters_seed7
    assert (trainer.epochs, trainer.iterations_per_epoch, trainer.seed) == (100, 50, 7)
    assert trainer.__name__ == "nnUNetTrainerUNet_AdamW_CosineWarmup_GDL_fp32_100epochs_50iters_seed7"
    for mixin in (options.AdamW, options.CosineWarmup, options.GDL, options.fp32):
        assert issubclass(trainer, mixin)
    assert trainer_enet.nnUNetTrainerENet_seed0.seed == 0


def test_an_option_of_the_name_wins_over_the_architecture() -> None:
    trainer = trainer_enet.nnUNetTrainerENet_CosineWarmup
    assert trainer.build_schedule is options.PolyWarmup.build_schedule
    assert trainer.schedule_class is options.CosineWarmup.schedule_class
    assert trainer_unet.nnUNetTrainerUNet_AdamW.build_optimizer is options.AdamW.build_optimizer


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nnUNetTrainerUNet_Adam",
            "unknown suffix _Adam. nnUNetTrainerUNet takes, in this order: _AdamW, _PolyWarmup",
        ),
        ("nnUNetTrainerUNet_", "unknown suffix _."),
        ("nnUNetTrainerUNet_100epochs_GDL", "Use nnUNetTrainerUNet_GDL_100epochs"),
        ("nnUNetTrainerUNet_seed1_100epochs_AdamW", "Use nnUNetTrainerUNet_AdamW_100epochs_seed1"),
        ("nnUNetTrainerUNet_PolyWarmup_CosineWarmup", "exclude each other"),
        ("nnUNetTrainerUNet_5epochs_6epochs", "exclude each other"),
        ("nnUNetTrainerUNet_GDL_GDL", "exclude each other"),
        ("nnUNetTrainerUNet_010epochs", "_010epochs: _<N>epochs takes a number from 1"),
        ("nnUNetTrainerUNet_0epochs", "_0epochs: _<N>epochs takes a number from 1"),
        ("nnUNetTrainerUNet_seed" + "1" * 5000, "_seed<N> takes a number from 0"),
        ("nnUNetTrainerUNet_epochs", "unknown suffix _epochs"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_one(name: str, message: str) -> None:
    with pytest.raises(SamnnError, match=re.escape(message)):
        getattr(trainer_unet, name)


def test_what_an_architecture_already_is_is_no_option() -> None:
    with pytest.raises(SamnnError, match=r"nnUNetTrainerENet is already _AdamW"):
        _ = trainer_enet.nnUNetTrainerENet_AdamW


def test_a_foreign_name_is_left_to_nnunet() -> None:
    for name in ("nnUNetTrainerDA5", "nnUNetTrainerUNetPlus", "__path__", "nnUNetTrainerSegLossOnly"):
        assert not hasattr(trainer_unet, name)


def test_the_table_lists_each_suffix_once() -> None:
    assert len({option.suffix for option in OPTIONS}) == len(OPTIONS)
    for option in OPTIONS:
        assert (option.mixin is None) != (option.attribute is None)
        assert option.what


def test_nnunets_own_lookup_finds_variants_and_shows_our_error() -> None:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find

    assert find("nnUNetTrainerENet_3epochs").epochs == 3
    assert find("nnUNetTrainerUNet_seed5").seed == 5
    with pytest.raises(SamnnError, match="unknown suffix _3epoch"):
        find("nnUNetTrainerENet_3epoch")
