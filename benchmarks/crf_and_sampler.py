"""What the CRF and the adaptive sampler change: the same network with and without them, equal iterations, per seed.

    python benchmarks/crf_and_sampler.py DATA WORK --dataset 904 --dataset 901 --epochs 20 --iters 50

DATA holds raw nnU-Net datasets with labelled test cases (imagesTs, labelsTs); WORK takes everything that is made. The
same command goes on after a stop; a finished training is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

VARIANTS = ("", "_CRF", "_AdaptiveSampler", "_CRF_AdaptiveSampler")
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def run(environment: dict[str, str], name: str, *args: object) -> None:
    """One of nnU-Net's or our commands; its output is shown only where it fails."""
    command = [str(Path(sys.executable).parent / name), *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")


def prepare(source: Path, work: Path, n_training: int | None, configuration: str) -> dict[str, str]:
    """Link the first training cases and all test cases, plan and preprocess; → the environment of all that follows."""
    plugins = Path(__file__).resolve().parents[1] / "plugins"
    folders = {name: str(work / name) for name in FOLDERS}
    environment = os.environ | folders | {"nnUNet_extTrainer": str(plugins), "nnUNet_def_n_proc": "1"}
    raw = work / "nnUNet_raw" / source.name
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
    (work / "nnUNet_preprocessed" / source.name / "prepared").touch()
    return environment


def dice(
    source: Path, work: Path, environment: dict[str, str], trainer: str, configuration: str
) -> pd.Series:
    """Train fold 0, predict the test cases and evaluate them; → mean Dice of each class."""
    number, out = source.name[7:10], work / "evaluation" / source.name / trainer
    results = work / "nnUNet_results" / source.name / f"{trainer}__nnUNetPlans__{configuration}" / "fold_0"
    which = ("-c", configuration, "-f", 0, "-tr", trainer)
    if not (out / "metrics.csv").is_file():
        if not (results / "checkpoint_final.pth").is_file():
            quick = environment | {"nnUNet_n_proc_DA": "0"}
            run(quick, "nnUNetv2_train", number, configuration, 0, "-tr", trainer, "--c", "-device", "cpu")
        raw = work / "nnUNet_raw" / source.name
        run(environment, "nnUNetv2_predict", "-i", raw / "imagesTs", "-o", out / "predicted", "-d", number, *which,
            "-npp", 0, "-nps", 0, "-device", "cpu")  # fmt: skip
        run(environment, "samnn", "evaluate", raw / "labelsTs", out / "predicted", "-o", out)
    metrics = pd.read_csv(out / "metrics.csv")
    return metrics[metrics.metric == "dice"].groupby("class").value.mean()


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
    asked = parser.parse_args()
    for number in asked.dataset:
        source = next(asked.data.glob(f"Dataset{number}_*"))
        environment = prepare(source, asked.work, asked.training_cases, asked.configuration)
        rows = {}
        for seed in asked.seeds:
            for variant in asked.variants:
                trainer = f"nnUNetTrainer{asked.network}{variant}_{asked.epochs}epochs_{asked.iters}iters_seed{seed}"
                found = dice(source, asked.work, environment, trainer, asked.configuration)
                rows[variant or "stock", seed] = pd.concat([found, pd.Series({"mean": found.mean()})])
                print(
                    f"{source.name} {trainer}: {rows[variant or 'stock', seed].round(4).to_dict()}",
                    flush=True,
                )
        table = pd.DataFrame(rows).T.rename_axis(["variant", "seed"])
        print(f"\n{source.name}, {asked.configuration}, {asked.epochs * asked.iters} iterations: Dice")
        print(table.round(4).to_string())
        print("\nmean over seeds minus stock:")
        means = table.groupby("variant", sort=False).mean()
        print((means - means.iloc[0]).round(4).to_string())


if __name__ == "__main__":
    main()
