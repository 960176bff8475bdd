"""The predictor's numbers: nnU-Net's algorithm in float32, whatever the hardware made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_models import REGIONS, exact_logits, write_fold, write_model

from samnn.errors import SamnnError
from samnn.inference import BatchedPredictor, cpu
from samnn.inference.canvas import Canvas
from samnn.inference.precision import chosen, is_emulated
from samnn.inference.predictor import mirrored_mean

CPU = torch.device("cpu")
KINDS = {
    "2d": {"configuration": "2d"},
    "2d_two_folds": {"configuration": "2d", "folds": (0, 1)},
    "3d": {"configuration": "3d_fullres"},
    "3d_regions": {"configuration": "3d_fullres", "labels": REGIONS},
    "cascade": {"configuration": "3d_fullres", "previous_stage": "3d_lowres"},
    "one_mirror": {"configuration": "2d", "mirrored": (1,)},
}


def predictor(
    folder: Path, folds: tuple[int, ...] = (0,), *, precision: str = "fp32", **options: object
) -> BatchedPredictor:
    ours = BatchedPredictor(device=CPU, allow_tqdm=False, precision=precision, **options)
    ours.initialize_from_trained_model_folder(str(folder), folds)
    return ours


def image(dims: int = 2, channels: int = 1) -> torch.Tensor:
    """Noise of several patches along each of the axes of the patch."""
    shape = (4, 41, 35) if dims == 2 else (18, 25, 22)
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(0))


def dims(kind: str) -> int:
    return 2 if KINDS[kind]["configuration"] == "2d" else 3


@pytest.mark.parametrize("kind", ["2d_two_folds", "3d_regions", "cascade", "one_mirror"])
def test_logits_are_those_of_an_exact_float32_prediction(kind: str, tmp_path: Path) -> None:
    folds = KINDS[kind].get("folds", (0,))
    folder = write_model(tmp_path / "model", **KINDS[kind])
    given = image(dims(kind), 3 if kind == "cascade" else 1)
    expected = exact_logits(folder, given, folds)
    found = predictor(folder, folds).predict_logits_from_preprocessed_data(given)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_voxels_differ_from_the_stock_predictor_only_where_its_rounding_decides(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = write_model(tmp_path / "model", **KINDS[kind])
    given = image(dims(kind))
    stock = nnUNetPredictor(device=CPU, allow_tqdm=False, perform_everything_on_device=False)
    stock.initialize_from_trained_model_folder(str(folder), (0,))
    theirs = stock.predict_logits_from_preprocessed_data(given).float()
    ours = predictor(folder).predict_logits_from_preprocessed_data(given)
    error = (theirs - exact_logits(folder, given)).abs().amax(0)
    first, second = ours.topk(2, dim=0).values
    differing = ours.argmax(0) != theirs.argmax(0)
    with capsys.disabled():
        print(
            f"\n{kind}: {int(differing.sum())} of {differing.numel()} voxels differ from the stock predictor's"
        )
    assert differing.float().mean() < 0.02
    assert ((first - second)[differing] <= 2 * error[differing] + 1e-6).all()


def test_an_image_smaller_than_the_patch_is_padded_as_by_the_stock_predictor(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "3d_fullres")
    given = image(3)[:, :9, :12]
    stock = nnUNetPredictor(device=CPU, allow_tqdm=False, perform_everything_on_device=False)
    stock.initialize_from_trained_model_folder(str(folder), (0,))
    theirs = stock.predict_logits_from_preprocessed_data(given).float()
    ours = predictor(folder).predict_logits_from_preprocessed_data(given)
    assert ours.shape == theirs.shape == (3, 9, 12, 22)
    assert (ours - theirs).abs().median() < 1e-3 * ours.std()


def test_tiles_side_by_side_and_mirrors_in_batches_change_no_number_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model")
    alone = predictor(folder)
    monkeypatch.setattr(cpu, "workers", lambda n, size: 1)
    expected = alone.predict_logits_from_preprocessed_data(image())
    monkeypatch.setattr(cpu, "workers", lambda n, size: 3)
    assert torch.equal(predictor(folder).predict_logits_from_preprocessed_data(image()), expected)
    batched = predictor(folder)
    monkeypatch.setattr(batched, "_side_by_side", batched._in_batches)  # as on a GPU
    found = batched.predict_logits_from_preprocessed_data(image())
    assert (found - expected).abs().max() < 1e-5 * expected.std()


def test_threads_are_as_before_after_a_prediction(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    list(cpu.side_by_side(lambda x: torch.get_num_threads(), range(5), 2))
    assert torch.get_num_threads() == before
    assert list(cpu.side_by_side(lambda x: x * x, range(20), 3)) == [x * x for x in range(20)]


def test_logits_averaged_before_they_are_enlarged_are_the_same() -> None:
    from samnn.nn.samed import SAMed

    sizes = {
        "embed_dim": 32, "depth": 2, "num_heads": 2, "global_attn_indexes": [1], "window_size": 4, "patch_size": 8,
        "mlp_ratio": 2, "prompt_dim": 32, "decoder_heads": 2, "decoder_mlp_dim": 32, "base_image_size": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    network = SAMed(1, 3, architecture=sizes, image_size=64, scratch=True).eval()
    picture, mirrors = torch.randn(2, 1, 50, 70), [(), (2,), (3,), (2, 3)]
    with torch.inference_mode():
        expected = sum(network(picture.flip(m)).flip(m) for m in mirrors) / 4
        for at_once in (1, 3, 4):
            found = mirrored_mean(network, picture, mirrors, at_once=at_once)
            assert (found - expected).abs().max() < 1e-4 * expected.std()
        network.register_forward_hook(lambda module, given, logits: logits.abs())  # as a CRF: not linear
        expected = sum(network(picture.flip(m)).flip(m) for m in mirrors) / 4
        found = mirrored_mean(network, picture, mirrors)
        assert (found - expected).abs().max() < 1e-4 * expected.std()


def test_a_voxel_of_overlapping_tiles_is_their_weighted_mean() -> None:
    """Three columns, tiles of two with weights 1 and 3: column 1 lies in both, (3 a + 1 b) / 4."""
    tiles = [(slice(None), slice(0, 1), slice(0, 2)), (slice(None), slice(0, 1), slice(1, 3))]
    canvas = Canvas(1, (1, 3), tiles, torch.tensor([[1.0, 3.0]]), CPU)
    canvas.add(torch.tensor([[[[2.0, 8.0]]], [[[4.0, 6.0]]]]))
    assert canvas.finished().tolist() == [[[2.0, 7.0, 6.0]]]


def test_bf16_says_how_many_voxels_it_changes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_model(tmp_path / "model")
    exact = predictor(folder, precision="fp32").predict_logits_from_preprocessed_data(image())
    low = predictor(folder, precision="bf16").predict_logits_from_preprocessed_data(image())
    share = (exact.argmax(0) != low.argmax(0)).float().mean()
    with capsys.disabled():
        print(f"\nbf16: {share:.2%} of the voxels differ")
    assert low.dtype == torch.float32 and not torch.equal(low, exact) and share < 0.05


def test_precision_is_asked_of_the_hardware_and_not_assumed() -> None:
    assert chosen("fp32", CPU) is None and chosen("fp16", torch.device("cuda")) is torch.float16
    assert chosen("auto", torch.device("cuda")) is torch.float16
    assert not is_emulated(chosen("auto", CPU), CPU)
    with pytest.raises(SamnnError, match="there are auto, fp32, bf16, fp16"):
        chosen("int4", CPU)


def test_logits_that_are_not_finite_stop_the_prediction(tmp_path: Path) -> None:
    with pytest.raises(SamnnError, match="not finite in float32"):
        predictor(write_model(tmp_path / "model")).predict_logits_from_preprocessed_data(
            image() * float("inf")
        )


class Harmless:
    """Stands for code in a checkpoint."""


def test_checkpoints_with_foreign_objects_are_read_only_when_trusted(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    write_fold(folder, 0, "2d", "nnUNetTrainer", (0, 1), extra=Harmless())
    with pytest.raises(SamnnError, match=r"holds .*Harmless besides tensors and numbers.*--trust"):
        predictor(folder)
    assert predictor(folder, trust=True).trainer_name == "nnUNetTrainer"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "plans.json").unlink(), "plans.json: not found"),
        (lambda folder: (folder / "dataset.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "fold_0" / "checkpoint_final.pth").unlink(), "has no checkpoint_final.pth"),
        (lambda folder: (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"PK12"), "Is it whole"),
        (lambda folder: write_fold(folder, 0, "2d", "nnUNetTrainer", (0, 1), trainer_name="nnUNetTrainerMine"),
         "nnUNetTrainerMine, which is not installed"),
        (lambda folder: write_fold(folder, 0, "2d", "nnUNetTrainer", (0, 1), network_weights={}), "Is the folder a mixture"),
        (lambda folder: torch.save({"a": 1}, folder / "fold_0" / "checkpoint_final.pth"), "is no checkpoint of nnU-Net's"),
    ],
    ids=["plans", "dataset", "no_fold", "damaged", "trainer", "weights", "other_file"],
)  # fmt: skip
def test_a_model_folder_that_is_none_is_refused_with_the_reason(damage, message: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    damage(folder)
    with pytest.raises(SamnnError, match=message):
        predictor(folder)


def test_folds_are_found_and_named_where_one_is_missing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", folds=(0, 3))
    assert len(predictor(folder, None).list_of_parameters) == 2
    with pytest.raises(SamnnError, match=r"in fold_1; folds that have one: 0, 3"):
        predictor(folder, (0, 1))


def test_a_checkpoint_of_before_mirroring_was_recorded_is_predicted_without(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    path = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    del content["inference_allowed_mirroring_axes"]
    torch.save(content, path)
    assert predictor(folder)._mirrors() == [()]
    assert json.loads((folder / "plans.json").read_text())
