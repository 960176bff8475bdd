"""How fast SAMed (ViT-B) predicts a volume with mirroring, and how exactly: beside nnU-Net's own predictor, in one run.

Weights and pictures are random, nothing is downloaded. On a CPU both predictors take turns on six slices at a time, on a
GPU on the whole volume, until --seconds are over:

    python benchmarks/predict_speed.py                                        # all cores, 24 slices of 512 x 512
    python benchmarks/predict_speed.py --image-size 448 512 672 --seconds 60  # sizes inside the network
    python benchmarks/predict_speed.py --device cuda                          # also: share of the encoder's own rate

The encoder's own rate is that of its forward passes alone, on pictures that are on the device already, in the best of
several batch sizes. The error is that of the logits of the first slices against float32 sums of float32 forward passes
of the whole network, one mirror image at a time, as a share of the spread (standard deviation) of those.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import statistics
import time
from collections.abc import Callable

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from samnn.inference import BatchedPredictor
from samnn.inference.precision import autocast, chosen, exact_products, is_emulated
from samnn.nn.samed import SAMed

CLASSES = 14
MIRRORS = (0, 1)
AT_A_TIME = 6  # slices of a turn on a CPU


def picture(slices: int, side: int) -> Tensor:
    """(1, slices, side, side): noise with structure at all scales."""
    random = torch.Generator().manual_seed(0)
    volume = torch.zeros(1, slices, side, side)
    for step in (1, 4, 16, 64):
        noise = torch.randn(1, slices, -(-side // step), -(-side // step), generator=random)
        volume += torch.nn.functional.interpolate(noise, (side, side), mode="bilinear")
    return volume / volume.std()


def prepared(predictor: nnUNetPredictor, network: SAMed, side: int) -> nnUNetPredictor:
    """The predictor with the network and a 2D configuration whose patch is the whole slice."""
    plans = PlansManager(
        {
            "dataset_name": "Dataset001_Random",
            "plans_name": "nnUNetPlans",
            "configurations": {"2d": {"patch_size": [side, side], "spacing": [1, 1], "architecture": {}}},
        }
    )
    labels = {"background": 0} | {f"class {i}": i for i in range(1, CLASSES)}
    dataset = {"channel_names": {"0": "noise"}, "labels": labels, "file_ending": ".nii.gz"}
    predictor.manual_initialization(
        network,
        plans,
        plans.get_configuration("2d"),
        [network.state_dict()],
        dataset,
        "nnUNetTrainer",
        MIRRORS,
    )
    return predictor


def ways(network: SAMed, side: int, device: torch.device) -> dict[str, nnUNetPredictor]:
    """The predictors to compare, nnU-Net's first."""
    quiet = {"device": device, "allow_tqdm": False}
    on_device = device.type == "cuda"
    found = {
        f"nnU-Net's, {'fp16' if on_device else 'fp32'}": nnUNetPredictor(
            perform_everything_on_device=on_device, **quiet
        )
    }
    for precision in ("fp32", "bf16", "fp16"):
        if not is_emulated(chosen(precision, device), device):
            found[f"samnn, {precision}"] = BatchedPredictor(precision=precision, **quiet)
    # each has a network of its own: ours merges LoRA, nnU-Net's does not know of it
    return {name: prepared(predictor, copy.deepcopy(network), side) for name, predictor in found.items()}


@torch.inference_mode()
def exact(network: SAMed, volume: Tensor, device: torch.device) -> Tensor:
    """Logits of a volume, (classes, slices, side, side): float32 forward passes of single pictures, float64 sums."""
    axes = [axis for n in range(3) for axis in itertools.combinations((2, 3), n)]
    slices = []
    with exact_products(None, device):
        for image in volume[0]:
            image = image[None, None].to(device)
            mean = sum(network(image.flip(axis)).flip(axis).double() for axis in axes) / len(axes)
            slices.append(mean[0].float().cpu())
    return torch.stack(slices, dim=1)


@torch.inference_mode()
def encoder_rate(network: SAMed, side: int, device: torch.device, dtype: torch.dtype | None) -> float:
    """Pictures a second of the encoder alone, the best of several batch sizes."""
    size = network.image_size or network.square((side, side))
    best = 0.0
    for batch in (4, 8, 16, 32) if device.type == "cuda" else (1,):
        images = torch.randn(batch, 1, *size, device=device)
        with autocast(dtype, device), exact_products(dtype, device):
            network.encoder(images)
            taken = []
            for _ in range(5 if device.type == "cuda" else 2):
                taken.append(seconds_of(lambda images=images: network.encoder(images), device))
        best = max(best, batch / min(taken))
    return best


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(image_size: int, asked: argparse.Namespace) -> None:
    """Let the predictors take turns, and print a table."""
    device = torch.device(asked.device)
    torch.manual_seed(0)
    network = SAMed(1, CLASSES, image_size=image_size, scratch=True).to(device).eval()
    volume = picture(asked.slices, asked.side)
    predictors = ways(network, asked.side, device)
    reference = exact(network, volume[:, :2], device)
    network.merge()  # for its own rate
    errors = {}
    for name, predictor in predictors.items():  # also warms them up
        logits = predictor.predict_logits_from_preprocessed_data(volume[:, :2]).float()
        worst = (logits - reference).abs().amax()
        best_two = reference.topk(2, dim=0).values
        differing = logits.argmax(0) != reference.argmax(0)
        unexplained = differing & (best_two[0] - best_two[1] > 2 * worst)
        errors[name] = (
            float(worst / reference.std()),
            float(differing.float().mean()),
            int(unexplained.sum()),
        )
    at_a_time = asked.slices if device.type == "cuda" else min(AT_A_TIME, asked.slices)
    parts = list(volume.split(at_a_time, dim=1))
    rates: dict[str, list[float]] = {name: [] for name in predictors}  # slices a second
    start = time.perf_counter()
    for turn in itertools.count():
        part = parts[turn % len(parts)]
        for name, predictor in predictors.items():
            taken = seconds_of(lambda p=predictor, x=part: p.predict_logits_from_preprocessed_data(x), device)
            rates[name].append(part.shape[1] / taken)
        elapsed = time.perf_counter() - start
        if elapsed * (turn + 2) / (turn + 1) > asked.seconds and turn > 0:
            break
    print(
        f"\nimage_size {image_size}: {asked.slices} slices of {asked.side} x {asked.side}, {len(MIRRORS) ** 2} mirror images, "
        f"{CLASSES} classes; medians of {turn + 1} turns of {at_a_time} slices (lowest to highest)"
    )
    print(
        "| predictor | seconds a volume | slices a second | times nnU-Net's | of the encoder's rate | largest error / spread | differing voxels, unexplained |"
    )
    print("|---|---|---|---|---|---|---|")
    first = next(iter(rates.values()))
    for name, found in rates.items():
        rate = statistics.median(found)
        ratios = [ours / theirs for ours, theirs in zip(found, first, strict=True)]
        dtype = chosen(name.rpartition(" ")[2], device)
        share = rate * len(MIRRORS) ** 2 / encoder_rate(network, asked.side, device, dtype)
        error, differing, unexplained = errors[name]
        print(
            f"| {name} | {asked.slices / rate:.3g} | {rate:.3g} ({min(found):.3g} to {max(found):.3g}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {share:.0%} | {error:.1e} "
            f"| {differing:.2%}, {unexplained} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--image-size", type=int, nargs="+", default=[512], help="inside the network")
    parser.add_argument("--side", type=int, default=512, help="of the slices, in pixels")
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=90, help="for the turns of each image size")
    asked = parser.parse_args()
    if asked.device == "cuda":
        print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
        native = not is_emulated(torch.bfloat16, torch.device("cpu"))
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} cores, bf16 {'native' if native else 'emulated, left out'}"
        )
    for image_size in asked.image_size:
        compare(image_size, asked)


if __name__ == "__main__":
    main()
