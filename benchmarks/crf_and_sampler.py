"""What the CRF and the adaptive sampler change: the same network with and without them, equal iterations, per seed.

    python benchmarks/crf_and_sampler.py DATA WORK --dataset 904 --dataset 901 --epochs 20 --iters 50
    python benchmarks/crf_and_sampler.py DATA WORK --dataset 904 --dataset 901 --iters 100 --device cuda --jobs 8

DATA holds raw nnU-Net datasets with labelled test cases (imagesTs, labelsTs); WORK takes everything that is made. The
cases are those of validation in fold 0 and the test cases. The same command goes on after a stop; a finished training is
not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pandas as pd

VARIANTS = ("", "_CRF", "_AdaptiveSampler", "_CRF_AdaptiveSampler")
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


COMMANDS = {
    "nnUNetv2_plan_and_preprocess": "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints:plan_and_preprocess_entry",
    "nnUNetv2_train": "nnunetv2.run.run_training:run_training_entry",
    "nnUNetv2_predict": "nnunetv2.inference.predict_from_raw_data:predict_entry_point",
    "samnn": "samnn.cli:main",
}


def run(environment: dict[str, str], name: str, *args: object) -> None:
    """One of nnU-Net's or our commands, by this Python; its output is shown only where it fails."""
    module, function = COMMANDS[name].split(":")
    start = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; {function}()"
    command = [sys.executable, "-c", start, *map(str, args)]
    away = environment["nnUNet_raw"]  # a clone as the working directory would hide the installed package
    done = subprocess.run(command, env=environment, cwd=away, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def prepare(
    source: Path, work: Path, n_training: int | None, configuration: str, changes: dict[str, int | list[int]]
) -> dict[str, str]:
    """Link the first training cases and all test cases, plan and preprocess; → the environment of all that follows."""
    plugins = Path(__file__).resolve().parents[1] / "plugins"
    folders = {name: str(work / name) for name in FOLDERS}
    environment = os.environ | folders | {"nnUNet_extTrainer": str(plugins), "nnUNet_def_n_proc": "1"}
    raw = work / "nnUNet_raw" / source.name
    raw.mkdir(parents=True, exist_ok=True)
    if (work / "nnUNet_preprocessed" / source.name / "prepared").exists():
        return environment
    content = json.loads((source / "dataset.json").read_text())
    for split, n in (("Tr", n_training), ("Ts", None)):
        ending = content["file_ending"]
        names = sorted(
            path.name.removesuffix(ending) for path in (source / f"labels{split}").glob(f"*{ending}")
        )[:n]
        for kind in ("images", "labels"):
            (raw / f"{kind}{split}").mkdir(parents=True, exist_ok=True)
            for name in names:
                for path in (source / f"{kind}{split}").glob(f"{name}{'_????' * (kind == 'images')}{ending}"):
                    link = raw / f"{kind}{split}" / path.name
                    link.unlink(missing_ok=True)
                    link.symlink_to(path.resolve())
        if split == "Tr":
            content["numTraining"] = len(names)
    (raw / "dataset.json").write_text(json.dumps(content))
    number = source.name[7:10]
    run(environment, "nnUNetv2_plan_and_preprocess", "-d", number, "-c", configuration, "-np", 1, "-npfp", 1)
    preprocessed = work / "nnUNet_preprocessed" / source.name
    if changes:
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
        plans["configurations"][configuration] |= changes
        (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans, indent=4))
    (preprocessed / "prepared").touch()
    return environment


def dice(
    source: Path, work: Path, environment: dict[str, str], trainer: str, configuration: str, device: str
) -> pd.DataFrame:
    """Train fold 0, predict the test cases and evaluate these and those of validation; → Dice by case and class."""
    number, out = source.name[7:10], work / "evaluation" / source.name / trainer
    results = work / "nnUNet_results" / source.name / f"{trainer}__nnUNetPlans__{configuration}" / "fold_0"
    which = ("-c", configuration, "-f", 0, "-tr", trainer)
    if not (out / "validation" / "metrics.csv").is_file():
        if not (results / "validation" / "summary.json").is_file():
            loaders = environment | {"nnUNet_n_proc_DA": "0" if device == "cpu" else "1"}
            run(loaders, "nnUNetv2_train", number, configuration, 0, "-tr", trainer, "--c", "-device", device)
        raw = work / "nnUNet_raw" / source.name
        run(environment, "nnUNetv2_predict", "-i", raw / "imagesTs", "-o", out / "predicted", "-d", number, *which,
            "-npp", 0, "-nps", 0, "-device", device)  # fmt: skip
        run(environment, "samnn", "evaluate", raw / "labelsTs", out / "predicted", "-o", out / "test")
        run(environment, "samnn", "evaluate", results, "-o", out / "validation")
    metrics = pd.concat(pd.read_csv(out / cases / "metrics.csv") for cases in ("validation", "test"))
    return metrics[metrics.metric == "dice"].pivot(index="case", columns="class", values="value")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument(
        "--dataset", action="append", required=True, help="number of a dataset in DATA; repeatable"
    )
    parser.add_argument("--network", default="UNet")
    parser.add_argument("--configuration", default="2d")
    parser.add_argument("--variants", nargs="*", default=VARIANTS, help="suffixes; '' is the stock network")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iters", type=int, default=50, help="per epoch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--training-cases", type=int, help="the first so many; default: all")
    parser.add_argument("--batch-size", type=int, help="instead of that of nnU-Net's plans")
    parser.add_argument("--patch-size", type=int, nargs="+", help="instead of that of nnU-Net's plans")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    asked = parser.parse_args()
    asked.work = asked.work.resolve()
    changes = {"batch_size": asked.batch_size, "patch_size": asked.patch_size}
    changes = {name: value for name, value in changes.items() if value is not None}
    sources = [next(asked.data.glob(f"Dataset{number}_*")) for number in asked.dataset]
    for source in sources:
        prepare(source, asked.work, asked.training_cases, asked.configuration, changes)

    def one(experiment: tuple[Path, int, str]) -> pd.DataFrame:
        source, seed, variant = experiment
        trainer = f"nnUNetTrainer{asked.network}{variant}_{asked.epochs}epochs_{asked.iters}iters_seed{seed}"
        environment = prepare(source, asked.work, asked.training_cases, asked.configuration, changes)
        found = dice(source, asked.work, environment, trainer, asked.configuration, asked.device)
        found = found.assign(mean=found.mean(axis=1))
        print(f"{source.name} {trainer}: {found.mean().round(4).to_dict()}", flush=True)
        return found

    experiments = list(product(sources, asked.seeds, asked.variants))
    with ThreadPoolExecutor(asked.jobs) as pool:
        found = dict(zip(experiments, pool.map(one, experiments), strict=True))
    for source in sources:
        dices = {
            (variant or "stock", seed): found[source, seed, variant]
            for seed, variant in product(asked.seeds, asked.variants)
        }
        show(source, asked, dices)


def show(source: Path, asked: argparse.Namespace, dices: dict[tuple[str, int], pd.DataFrame]) -> None:
    """Print mean Dice by class, and the differences from the first variant, paired by case and seed."""
    table = pd.DataFrame({which: found.mean() for which, found in dices.items()}).T
    n_cases, first = len(next(iter(dices.values()))), next(iter(dices))[0]
    batch = f" of {asked.batch_size}" if asked.batch_size else ""
    batch += f" of {'x'.join(map(str, asked.patch_size))}" if asked.patch_size else ""
    run = f"{asked.network}, {asked.configuration}, {asked.epochs * asked.iters} iterations{batch}"
    print(f"\n{source.name}, {run}, {n_cases} cases: Dice")
    print(table.rename_axis(["variant", "seed"]).round(4).to_string())
    print(f"\nminus {first}, mean over classes: of all cases and seeds, of each seed, cases that gain")
    for variant in dict.fromkeys(variant for variant, _ in dices):
        gains = pd.DataFrame(
            {seed: dices[variant, seed]["mean"] - dices[first, seed]["mean"] for seed in asked.seeds}
        )
        by_seed = ", ".join(f"{gain:+.4f}" for gain in gains.mean())
        share = (gains > 0).to_numpy().mean()
        print(f"{variant:24} {gains.to_numpy().mean():+.4f}   {by_seed}   {share:.0%}")


if __name__ == "__main__":
    main()
