"""Real cases written in the form of every data set that can be converted: a function here a converter, of its name."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import tifffile
from PIL import Image
from small_thorax import save, thorax

from samnn.io import Volume, read_labels, read_volume, write_volume

SPACING_MM = (1.0, 1.0, 1.5)


@dataclass
class Sample:
    """What to convert, and what must come out of it."""

    arguments: list[object]  # of the command, after the name of the converter
    victim: Path  # a source that will be cut short
    lonely: Path  # a source that will be removed: its counterpart stays
    images: dict[str, np.ndarray] = field(default_factory=dict)  # by path in the dataset
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    spacing_mm: tuple[float, ...] | None = None  # None: that of the source, which was copied or has none


def real_cases(shared: Path, n: int) -> list[tuple[str, Path, Path]]:
    """Name, image and label map of small MR volumes with integer labels."""
    data = shared / "data/Dataset904_Hippocampus"
    names = ("001", "004", "006", "007", "008", "011")[:n]
    return [
        (
            name,
            data / f"imagesTr/hippocampus_{name}_0000.nii.gz",
            data / f"labelsTr/hippocampus_{name}.nii.gz",
        )
        for name in names
    ]


def real_slices(shared: Path, n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Slices of a head-neck CT in HU (x, y) and their labels, those with most classes."""
    data = shared / "data/Dataset901_OpenKBPHN"
    image = read_volume(data / "imagesTr/okbp_100_0000.nii.gz").voxels
    labels = read_labels(data / "labelsTr/okbp_100.nii.gz").voxels
    order = np.argsort([-len(np.unique(labels[..., z])) for z in range(labels.shape[2])], kind="stable")
    return [(image[..., z], labels[..., z]) for z in sorted(order[:n])]


def eight_bits(image: np.ndarray) -> np.ndarray:
    return np.clip((image.astype(float) + 1000) / 8, 0, 255).astype(np.uint8)


def both(image: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    return read_volume(image).voxels, read_labels(labels).voxels


def copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))


def png(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    """Save pixels in (row, column) order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    (picture if mode is None else picture.convert(mode)).save(path)
    return path


# ---- one function a converter


def segthor(folder: Path, shared: Path) -> Sample:
    victim = folder / "train/Patient_02/Patient_02.nii.gz"
    sample = Sample([folder], victim, victim)
    for name, heart_z in (("Patient_01", 25), ("Patient_02", 24)):
        image, labels = thorax(heart_z)
        save(folder / "train" / name / f"{name}.nii.gz", image)
        save(folder / "train" / name / "GT.nii.gz", labels)
        sample.images[f"imagesTr/{name}_0000.nii.gz"] = image
        sample.labels[f"labelsTr/{name}.nii.gz"] = labels
    return sample


def pairs(folder: Path, shared: Path) -> Sample:
    sample = Sample(
        ["--images", folder / "i", "--masks", folder / "m"],
        folder / "i/case_004.nii.gz",
        folder / "i/case_004.nii.gz",
    )
    for name, image, labels in real_cases(shared, 3):
        copy(image, folder / f"i/case_{name}.nii.gz")
        copy(labels, folder / f"m/case_{name}.nii.gz")
        voxels = both(image, labels)
        sample.images[f"imagesTr/case_{name}_0000.nii.gz"] = voxels[0]
        sample.labels[f"labelsTr/case_{name}.nii.gz"] = voxels[1]
    return sample


def png_pairs(folder: Path, shared: Path) -> Sample:
    """Grey images, one with a palette and one stored in colour; masks grey, with a palette, and in colour."""
    sample = Sample(
        ["--images", folder / "i", "--masks", folder / "m"], folder / "i/s1.png", folder / "i/s1.png"
    )
    classes = set()
    slices = real_slices(shared, 4)
    for number, (image, labels) in enumerate(slices):
        grey, mask = eight_bits(image).T, labels.T.astype(np.uint8)
        png(folder / f"i/s{number}.png", grey, {2: "RGB", 3: "P"}.get(number))
        if number == 1:
            palette = Image.fromarray(np.ascontiguousarray(mask), mode="P")
            palette.putpalette([value * 37 % 256 for value in range(768)])
            (folder / "m").mkdir(exist_ok=True)
            palette.save(folder / f"m/s{number}.png")
        else:
            png(folder / f"m/s{number}.png", mask, "RGB" if number == 2 else None)
        sample.images[f"imagesTr/s{number}_0000.png"] = grey
        classes |= set(np.unique(mask).tolist())
        sample.labels[f"labelsTr/s{number}.png"] = mask
    new = {old: new for new, old in enumerate(sorted(classes))}
    for name, mask in sample.labels.items():
        sample.labels[name] = np.vectorize(new.get)(mask)
    return sample


def runs(mask: np.ndarray) -> str:
    """Run lengths of a mask, row by row, the first those of pixels outside."""
    flat = np.concatenate([[False], mask.ravel(), [False]])
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    lengths = np.diff(np.concatenate([[0], edges, [mask.size]]))
    return ", ".join(map(str, lengths.tolist() if lengths[-1] else lengths.tolist()[:-1]))


def cvat(folder: Path, shared: Path) -> Sample:
    """Real labels as masks; a box around the first class as a polygon of a further label over them."""
    names = {3: "larynx", 4: "brainstem", 5: "mandible", 6: "parotid left"}
    sample = Sample([folder], folder / "images/w1.png", folder / "images/w1.png")
    xml = ["<annotations><version>1.1</version><meta><task><labels>"]
    xml += [f"<label><name>{name}</name></label>" for name in names.values()]
    xml += ["</labels></task></meta>"]
    covered = np.zeros(0, int)
    painted = []
    for number, (image, labels) in enumerate(real_slices(shared, 4)):
        grey, mask = eight_bits(image).T, labels.T
        png(folder / f"images/w{number}.png", grey)
        height, width = grey.shape
        xml.append(f'<image id="{number}" name="w{number}.png" width="{width}" height="{height}">')
        for value, name in names.items():
            rows, columns = np.nonzero(mask == value)
            if rows.size == 0:
                continue
            top, left = rows.min(), columns.min()
            box = (mask == value)[top : rows.max() + 1, left : columns.max() + 1]
            xml.append(
                f'<mask label="{name}" occluded="0" rle="{runs(box)}" left="{left}" top="{top}" '
                f'width="{box.shape[1]}" height="{box.shape[0]}" z_order="0"/>'
            )
        xml.append("</image>")
        sample.images[f"imagesTr/w{number}_0000.png"] = grey
        kept = np.where(np.isin(mask, list(names)), mask, 0)
        painted.append(kept)
        covered = np.union1d(covered, np.unique(kept))
    (folder / "annotations.xml").write_text("\n".join([*xml, "</annotations>"]))
    for number, kept in enumerate(painted):
        sample.labels[f"labelsTr/w{number}.png"] = np.searchsorted(covered, kept)
    return sample


def medsam_npz(folder: Path, shared: Path) -> Sample:
    folder.mkdir(parents=True)
    sample = Sample([folder], folder / "CT_004.npz", folder / "CT_004.npz", spacing_mm=SPACING_MM)
    for name, image, labels in real_cases(shared, 4):
        voxels, classes = both(image, labels)
        np.savez_compressed(
            folder / f"CT_{name}.npz",
            imgs=voxels.T,
            gts=classes.T,
            spacing=np.array(SPACING_MM),
            boxes=np.array([[3, 4, 5, 20, 21, 22]]),
        )
        sample.images[f"imagesTr/CT_{name}_0000.nii.gz"] = voxels
        sample.labels[f"labelsTr/CT_{name}.nii.gz"] = classes
    return sample


def slices(folder: Path, shared: Path) -> Sample:
    sample = Sample(
        [folder, "--spacing", ",".join(map(str, SPACING_MM))],
        folder / "train/img/Patient_004_0003.png",
        folder / "train/img/Patient_004_0003.png",
        spacing_mm=SPACING_MM,
    )
    for (name, image, labels), part in zip(
        real_cases(shared, 4), ("train", "train", "val", "test"), strict=True
    ):
        voxels, classes = both(image, labels)
        grey = np.clip(voxels, 0, 255).astype(np.uint8)
        for z in range(grey.shape[2]):  # as slice_segthor.py: rows are x
            png(folder / part / f"img/Patient_{name}_{z:04d}.png", grey[..., z])
            gt = classes[..., z] * (0 if part == "test" else 63)
            png(folder / part / f"gt/Patient_{name}_{z:04d}.png", gt.astype(np.uint8))
        kind = "Ts" if part == "test" else "Tr"
        sample.images[f"images{kind}/Patient_{name}_0000.nii.gz"] = grey
        if part != "test":
            sample.labels[f"labelsTr/Patient_{name}.nii.gz"] = classes
    return sample


def lung_ct(folder: Path, shared: Path) -> Sample:
    """One bone stands for the lungs."""
    sample = Sample(
        [folder],
        folder / "2d_images/ID_0001_Z_0101.tif",
        folder / "2d_images/ID_0001_Z_0101.tif",
        spacing_mm=(1.0, 1.0),
    )
    for number, (image, labels) in enumerate(real_slices(shared, 4)):
        stem = f"ID_{number // 2:04d}_Z_{100 + number % 2:04d}" if number else "ID_0000_Z_0100"
        mask = np.where(labels > 0, 255, 0).astype(np.uint8)
        for kind, pixels in (("images", image.astype(np.int32)), ("masks", mask)):
            (folder / f"2d_{kind}").mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / f"2d_{kind}/{stem}.tif", np.ascontiguousarray(pixels.T))
        sample.images[f"imagesTr/{stem}_0000.nii.gz"] = image
        sample.labels[f"labelsTr/{stem}.nii.gz"] = mask // 255
    return sample


def synapse(folder: Path, shared: Path) -> Sample:
    """SAMed's preprocessed form: slices to train, a volume to test."""
    sample = Sample(
        [folder, "--spacing", ",".join(map(str, SPACING_MM))],
        folder / "test_vol_h5/case0008.npy.h5",
        folder / "train_npz/case0001_slice003.npz",
        spacing_mm=SPACING_MM,
    )
    for number, (_, image, labels) in enumerate(real_cases(shared, 3)):
        voxels, classes = both(image, labels)
        scaled = (voxels / max(1, voxels.max())).astype(np.float32)
        case = f"case{8 if number == 2 else number + 1:04d}"
        part = "Ts" if number == 2 else "Tr"
        if part == "Ts":
            (folder / "test_vol_h5").mkdir()
            with h5py.File(folder / f"test_vol_h5/{case}.npy.h5", "w") as file:
                file["image"], file["label"] = scaled.T, classes.T.astype(np.float32)
        else:
            (folder / "train_npz").mkdir(parents=True, exist_ok=True)
            for z in range(scaled.shape[2]):
                np.savez(
                    folder / f"train_npz/{case}_slice{z:03d}.npz",
                    image=scaled[..., z].T,
                    label=classes[..., z].T.astype(np.float32),
                )
        sample.images[f"images{part}/{case}_0000.nii.gz"] = scaled
        sample.labels[f"labels{part}/{case}.nii.gz"] = classes
    return sample


def decathlon(folder: Path, shared: Path) -> Sample:
    task = folder / "Task04_Hippocampus"
    sample = Sample(
        [task, "--workers", 1],
        task / "imagesTr/hippocampus_004.nii.gz",
        task / "imagesTr/hippocampus_004.nii.gz",
    )
    for name, image, labels in real_cases(shared, 3):
        copy(image, task / f"imagesTr/hippocampus_{name}.nii.gz")
        copy(labels, task / f"labelsTr/hippocampus_{name}.nii.gz")
        voxels = both(image, labels)
        sample.images[f"imagesTr/hippocampus_{name}_0000.nii.gz"] = voxels[0]
        sample.labels[f"labelsTr/hippocampus_{name}.nii.gz"] = voxels[1]
    (task / "imagesTr/._hippocampus_001.nii.gz").write_bytes(b"a file of the Finder")
    description = {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}, "modality": {"0": "MRI"}}
    (task / "dataset.json").write_text(json.dumps(description | {"training": [], "test": []}))
    return sample


def acdc(folder: Path, shared: Path) -> Sample:
    """Six patients; the second phase of each is the first one mirrored."""
    victim = folder / "training/patient002/patient002_frame01.nii.gz"
    sample = Sample([folder], victim, victim.with_name("patient002_frame01_gt.nii.gz"))
    for number, (_, image, labels) in enumerate(real_cases(shared, 6), 1):
        for phase, reverse in (("frame01", 1), ("frame12", -1)):
            stem = f"patient{number:03d}_{phase}"
            voxels, classes = (array[::reverse] for array in both(image, labels))
            for suffix, array, like in (("", voxels, image), ("_gt", classes, labels)):
                path = folder / f"training/patient{number:03d}/{stem}{suffix}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_nifti_like(path, array, like)
            sample.images[f"imagesTr/{stem}_0000.nii.gz"] = voxels
            sample.labels[f"labelsTr/{stem}.nii.gz"] = classes
        (folder / f"training/patient{number:03d}/patient{number:03d}_4d.nii.gz").write_bytes(b"left out")
    return sample


def amos(folder: Path, shared: Path) -> Sample:
    """Two training cases, one for validation, a test case; 0507 is MR and not of task 1."""
    sample = Sample([folder], folder / "imagesVa/amos_0020.nii.gz", folder / "labelsTr/amos_0004.nii.gz")
    listed: dict[str, list] = {"training": [], "validation": [], "test": []}
    placed = [("training", "Tr", 1), ("training", "Tr", 4), ("validation", "Va", 20), ("test", "Ts", 500)]
    placed.append(("training", "Tr", 507))
    for (_, image, labels), (part, ending, number) in zip(real_cases(shared, 5), placed, strict=True):
        name = f"amos_{number:04d}"
        copy(image, folder / f"images{ending}/{name}.nii.gz")
        listed[part].append({"image": f"./images{ending}/{name}.nii.gz"})
        voxels, classes = both(image, labels)
        if part != "test":
            copy(labels, folder / f"labels{ending}/{name}.nii.gz")
        if number != 507:
            sample.images[f"images{'Ts' if part == 'test' else 'Tr'}/{name}_0000.nii.gz"] = voxels
            if part != "test":
                sample.labels[f"labelsTr/{name}.nii.gz"] = classes
    labels = {"0": "background", "1": "spleen", "2": "right kidney"}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels} | listed))
    return sample


def write_nifti_like(path: Path, voxels: np.ndarray, like: Path) -> None:
    write_volume(path, Volume(voxels, read_volume(like).grid))
