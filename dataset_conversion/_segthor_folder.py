"""The folder of the SegTHOR challenge: its patients, and whatever in it would be left out in silence."""

from __future__ import annotations

import errno
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from samnn.errors import SamnnError

EXPECTED = "Expected train/Patient_XX/{Patient_XX.nii.gz, GT.nii.gz} and test/Patient_YY.nii.gz."
FILE, FOLDER, ABSENT = "is a file", "is a folder", "missing"


@dataclass(frozen=True)
class Patient:
    """The files of one patient; the challenge's test patients have no labels."""

    name: str
    image: Path
    labels: Path | None
    true_heart: Path | None
    test: bool

    @property
    def files(self) -> list[Path]:
        return [file for file in (self.image, self.labels, self.true_heart) if file is not None]


def find_patients(source: Path) -> tuple[list[Patient], list[str]]:
    """List the patients of a SegTHOR folder, and what is wrong with the files and links that should be some.

    Raises:
        SamnnError: it is no folder or cannot be read, or it holds no training patient and nothing that should be one.
    """
    try:
        if _kind(source) != FOLDER:
            raise SamnnError(f"{source}: {_kind(source)}, expected a folder. {EXPECTED}")
        train, test = source / "train", source / "test"
        patients, problems = [], []
        if _kind(train) == ABSENT:
            train = source
        else:
            problems += [
                f"{path}: lies beside train and test, so it would be left out. Move it into one of them, or away."
                for path in _visible(source)
                if path not in (train, test)
                and (_is_image(path) or (_kind(path) == FOLDER and any(map(_is_image, _visible(path)))))
            ]
        for folder, is_test in ((train, False), (test, True)):
            if _kind(folder) == FOLDER:
                for path in _visible(folder):
                    if path != test:
                        _find_patient(path, is_test, patients, problems)
            elif _kind(folder) != ABSENT:
                problems.append(f"{folder}: {_kind(folder)}, expected a folder. Restore or remove it.")
    except OSError as error:
        raise SamnnError(f"{error.filename}: cannot be looked up ({error.strerror}).") from error
    if not problems and all(patient.test for patient in patients):
        raise SamnnError(f"{source}: no training patients found. {EXPECTED}")
    return patients, problems + _duplicates(patients)


def _find_patient(path: Path, is_test: bool, patients: list[Patient], problems: list[str]) -> None:
    """Enter what lies in `train` or `test` as a patient or as a problem; other files than images are no concern."""
    kind, name = _kind(path), path.name
    if kind == FOLDER and not _is_image(path):
        image, labels, true_heart = (path / file for file in (f"{name}.nii.gz", "GT.nii.gz", "GT2.nii.gz"))
        wrong = [file for file in (image, labels) if _kind(file) != FILE]
        wrong += [true_heart] if _kind(true_heart) not in (FILE, ABSENT) else []
        if wrong:
            listed = " and ".join(f"{file.name} {_kind(file)}" for file in wrong)
            problems.append(f"{path}: {listed}. Add the file or move the folder away.")
        else:
            patients.append(
                Patient(name, image, labels, true_heart if _kind(true_heart) == FILE else None, is_test)
            )
    elif kind == FILE and is_test and name.endswith(".nii.gz"):
        patients.append(Patient(name.removesuffix(".nii.gz"), path, None, None, True))
    elif kind == FILE and is_test and name.endswith(".nii"):
        if _kind(path.with_name(f"{name}.gz")) == ABSENT:  # otherwise reading that one says more
            problems.append(f"{path}: is not compressed. Expected {name}.gz.")
    elif kind not in (FILE, FOLDER):
        problems.append(f"{path}: {kind}. Restore or remove it.")
    elif kind == FILE and is_test and _is_image(path):
        problems.append(f"{path}: its ending is not in small letters. Rename it.")
    elif _is_image(path):
        problems.append(f"{path}: {kind}. {EXPECTED} Move or rename it.")


def _kind(path: Path) -> str:
    """What lies at a path, links followed, in the words of a message."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link to nothing" if path.is_symlink() else ABSENT
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads to itself"
        raise
    return FOLDER if stat.S_ISDIR(mode) else FILE if stat.S_ISREG(mode) else "is a device or pipe"


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _duplicates(patients: Sequence[Patient]) -> list[str]:
    """Names that differ only in case, Unicode form or leading zeros, or occur in both training and test."""

    def key(patient: Patient) -> str:
        words = unicodedata.normalize("NFC", patient.name).casefold().split("_")
        return "_".join(word.lstrip("0") or "0" if word.isdigit() else word for word in words)

    counts = Counter(map(key, patients))
    return [
        f"{', '.join(str(p.image) for p in patients if key(p) == twice)}: the same patient {count} times. Keep one."
        for twice, count in counts.items()
        if count > 1
    ]
