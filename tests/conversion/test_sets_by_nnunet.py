"""Sets that nnU-Net's own code converts: it gets checked files, and what it writes is checked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import set_samples
import typer
from set_samples import acdc, amos, decathlon, real_cases
from small_thorax import command

from samnn.dataset_conversion import _nnunet
from samnn.dataset_conversion._label_names import LabelNames
from samnn.dataset_conversion._pair_files import Pair
from samnn.dataset_conversion.acdc import convert as convert_acdc
from samnn.dataset_conversion.amos import convert as convert_amos
from samnn.dataset_conversion.decathlon import convert as convert_decathlon
from samnn.errors import Problems, SamnnError
from samnn.io import read_volume


def test_decathlon_images_of_several_channels_are_split(tmp_path, shared):
    task = decathlon(tmp_path, shared).arguments[0]
    for path in task.glob("imagesTr/h*"):
        image = nibabel.load(path)
        voxels = np.stack([np.asarray(image.dataobj), np.asarray(image.dataobj)[::-1]], -1)
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    description = json.loads((task / "dataset.json").read_text()) | {"modality": {"0": "T2", "1": "ADC"}}
    (task / "dataset.json").write_text(json.dumps(description))
    convert_decathlon(task, 4, output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset004_Hippocampus"
    written = json.loads((dataset / "dataset.json").read_text())
    assert written["channel_names"] == {"0": "T2", "1": "ADC"} and written["licence"] == "CC BY-SA 4.0"
    _, image, _ = real_cases(shared, 1)[0]
    for channel, step in (("0000", 1), ("0001", -1)):
        found = read_volume(dataset / f"imagesTr/hippocampus_001_{channel}.nii.gz")
        np.testing.assert_array_equal(found.voxels, read_volume(image).voxels[::step])
        assert read_volume(image).grid.differences(found.grid) == []


def test_acdc_has_nnunets_five_folds_that_keep_patients_together(tmp_path, shared):
    acdc(tmp_path / "a", shared)
    convert_acdc(tmp_path / "a", 27, output=tmp_path / "raw")
    folds = json.loads((tmp_path / "raw/Dataset027_ACDC/splits_final.json").read_text())
    assert len(folds) == 5
    for fold in folds:
        assert not {case[:10] for case in fold["train"]} & {case[:10] for case in fold["val"]}
        assert len(fold["train"]) + len(fold["val"]) == 12


def test_amos_task_2_takes_mr_too(tmp_path, shared):
    amos(tmp_path / "a", shared)
    convert_amos(tmp_path / "a", 219, task=2, output=tmp_path / "raw")
    names = {path.name for path in (tmp_path / "raw/Dataset219_AMOS/labelsTr").iterdir()}
    assert names == {f"amos_{number:04d}.nii.gz" for number in (1, 4, 20, 507)}


def test_a_refused_case_can_be_skipped_and_the_others_are_written(tmp_path, shared, capsys):
    sample = amos(tmp_path / "a", shared)
    sample.victim.write_bytes(b"damaged")
    with pytest.raises(typer.Exit):
        convert_amos(tmp_path / "a", 218, skip_refused=True, output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset218_AMOS"
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 2
    assert list(json.loads((dataset / "conversion.json").read_text())["refused"]) == ["amos_0020"]


def test_what_nnunets_code_says_when_it_fails_is_shown(tmp_path):
    scratch = _nnunet.Scratch(tmp_path, workers=1)
    with pytest.raises(SamnnError, match=r"(?s)convert_amos_task1 failed with code 1.*No such file"):
        scratch.call(
            "Dataset218_Amos2022_task1", "convert_amos_task1", amos_base_dir=str(tmp_path / "nowhere")
        )


def test_files_that_were_not_asked_for_or_are_missing_are_found_and_nothing_appears(tmp_path, shared):
    _, image, labels = real_cases(shared, 1)[0]
    plan = _nnunet.inspect_as_it_is(Pair("a", "a", (image,), labels), 1)

    def write_another(plans: object, scratch: _nnunet.Scratch) -> None:
        stray = scratch.raw / "Dataset001_X/imagesTr/b_0000.nii.gz"
        stray.parent.mkdir(parents=True)
        stray.write_bytes(b"")

    names = LabelNames({"anterior": 1, "posterior": 2})
    dataset = _nnunet.Converted([plan], names, ["MR"], None, {}, False, {}, run=write_another)
    with pytest.raises(
        Problems, match=r"(?s)imagesTr/a_0000\.nii\.gz: missing.*b_0000\.nii\.gz: not asked for"
    ):
        dataset.write(tmp_path / "raw/Dataset001_X", workers=1, overwrite=False, skip_refused=False)
    assert list((tmp_path / "raw").iterdir()) == []


def test_nnunets_process_ends_with_ours_however_that_ends(tmp_path):
    """The child copies from a pipe that nobody writes to, so it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    code = (
        "from pathlib import Path; from samnn.dataset_conversion._nnunet import Scratch\n"
        f"Scratch(Path({str(tmp_path)!r}), 1).call('convert_MSD_dataset', 'load_json', file={str(tmp_path / 'pipe')!r})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while parent.poll() is None and not (found := children.read_text().split()):
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    child = Path(f"/proc/{found[0]}")
    deadline = time.monotonic() + 30
    while child.exists() and "(zombie)" not in (child / "status").read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert time.monotonic() < deadline


# ---- nnU-Net takes 2D sets


@pytest.mark.slow
@pytest.mark.parametrize(("converter", "reader"), [("cvat", "NaturalImage2DIO"), ("lung_ct", "SimpleITKIO")])
def test_nnunet_plans_and_preprocesses_sets_of_two_dimensions(tmp_path, shared, converter, reader):
    """PNG with overlapping labels as regions; two-dimensional NIfTI with a spacing."""
    sample = getattr(set_samples, converter)(tmp_path / "source", shared)
    env = os.environ | {f"nnUNet_{kind}": str(tmp_path / kind) for kind in ("raw", "preprocessed", "results")}
    env |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}
    options = ["--spacing", "0.75,0.5"]
    if converter == "cvat":
        options, xml = [], tmp_path / "source/annotations.xml"
        over_all = '<polygon label="larynx" points="20,10;60,10;60,40;20,40"/></image>'
        xml.write_text(xml.read_text().replace("</image>", over_all))

    def run(program: str, *arguments: object) -> str:
        path = Path(command()).with_name(program)
        done = subprocess.run([*map(str, [path, *arguments])], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("samnn", "convert", converter, *sample.arguments, *options, "-d", 12, "--name", "Flat")
    planning = ["-d", 12, "-npfp", 1, "-np", 1, "-c", "2d", "--verify_dataset_integrity"]
    assert "verify_dataset_integrity Done" in run("nnUNetv2_plan_and_preprocess", *planning)
    preprocessed = tmp_path / "preprocessed/Dataset012_Flat"
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    assert plans["image_reader_writer"] == reader
    assert "3d_fullres" not in plans["configurations"]
    assert plans["configurations"]["2d"]["spacing"] == ([0.5, 0.75] if converter == "lung_ct" else [1, 1])
    assert len(list((preprocessed / "nnUNetPlans_2d").glob("*.pkl"))) == len(sample.images)
