"""nnU-Net takes what was converted: its own check, planning, preprocessing, and the folds it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pair_sources import save, save_itk
from small_thorax import command

from samnn.io import read_labels, read_volume

SPLIT = """
import sys, json, torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
folder = sys.argv[1]
plans, dataset = (json.load(open(f"{folder}/{name}")) for name in ("nnUNetPlans.json", "dataset.json"))
trainer = nnUNetTrainer(plans | {"continue_training": False}, "2d", 1, dataset, torch.device("cpu"))
trainer.preprocessed_dataset_folder = f"{folder}/nnUNetPlans_2d"
print("SPLIT", json.dumps([sorted(map(str, part)) for part in trainer.do_split()]))
"""


@pytest.mark.slow
def test_nnunet_verifies_plans_and_preprocesses_it_and_trains_the_folds_of_patients(tmp_path, shared):
    """With regions; two cases a patient."""
    data = shared / "data/Dataset904_Hippocampus"
    cases = sorted(path.name[:-7] for path in (data / "labelsTr").iterdir())[:6]
    for number, case in enumerate(cases):
        name = f"P{number // 2}_scan{number % 2}"
        save(tmp_path / f"images/{name}.nii.gz", read_volume(data / f"imagesTr/{case}_0000.nii.gz"))
        save_itk(
            tmp_path / f"masks/{name}.nrrd", read_labels(data / f"labelsTr/{case}.nii.gz"), (2, 0, 1), "y"
        )
    env = os.environ | {f"nnUNet_{kind}": str(tmp_path / kind) for kind in ("raw", "preprocessed", "results")}
    env |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}

    def run(*arguments: object) -> str:
        done = subprocess.run(list(map(str, arguments)), env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    options = ["--labels", "anterior=1,posterior=2", "--region", "whole=1+2", "--region", "back=posterior"]
    folders = ["--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    run(command(), "convert", "pairs", *folders, "-d", 12, "--name", "Own", *options, "--patient", "^P[0-9]+")
    preprocessed = tmp_path / "preprocessed/Dataset012_Own"
    written = (preprocessed / "splits_final.json").read_bytes()
    plan = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    said = run(plan, "-d", 12, "-npfp", 1, "-np", 1, "-c", "2d", "--verify_dataset_integrity")
    assert "verify_dataset_integrity Done" in said and "WARNING" not in said
    assert (preprocessed / "splits_final.json").read_bytes() == written
    training, validation = json.loads(run(sys.executable, "-c", SPLIT, preprocessed).partition("SPLIT ")[2])
    assert len(validation) == 2 and len({case[:2] for case in validation}) == 1
    assert len(training) == 4 and validation[0][:2] not in {case[:2] for case in training}
