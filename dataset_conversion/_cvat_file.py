"""CVAT's XML for images, version 1.1: which shapes of which label lie on which image, and painting them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from skimage.draw import polygon as pixels_inside

from samnn.errors import SamnnError

MOST_LABELS = 63  # bits of a pixel


@dataclass(frozen=True)
class Polygon:
    """An outline, (x, y) in pixels; (0, 0) is the upper left corner of the picture, not a pixel's centre."""

    label: str
    points: tuple[tuple[float, float], ...]

    def paint(self, mask: np.ndarray) -> None:
        """Set the pixels of `mask`, (row, column), whose centres lie inside."""
        columns, rows = np.array(self.points).T - 0.5
        mask[pixels_inside(rows, columns, mask.shape)] = True


@dataclass(frozen=True)
class Runs:
    """A mask within a box: lengths of runs of pixels without and with it in turn, row by row, the first without."""

    label: str
    lengths: tuple[int, ...]
    left: int
    top: int
    width: int
    height: int

    def paint(self, mask: np.ndarray) -> None:
        """Set the pixels of `mask`, (row, column)."""
        inside = np.repeat(np.arange(len(self.lengths)) % 2 == 1, self.lengths)
        box = mask[self.top : self.top + self.height, self.left : self.left + self.width]
        box |= inside.reshape(self.height, self.width)


@dataclass
class Annotated:
    """One image and its shapes."""

    name: str
    width: int
    height: int
    shapes: list[Polygon | Runs] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # shapes that are no areas, by kind

    def paint(self, labels: Sequence[str]) -> np.ndarray:
        """Bit n of a pixel, (row, column), is set where a shape of the n-th label covers it."""
        bits = np.zeros((self.height, self.width), np.uint64)
        for number, label in enumerate(labels):
            if own := [shape for shape in self.shapes if shape.label == label]:
                mask = np.zeros(bits.shape, bool)
                for shape in own:
                    shape.paint(mask)
                bits[mask] |= np.uint64(1 << number)
        return bits


def _refuse_document_type(path: Path, content: bytes) -> None:
    """Refuse what may declare entities, in whatever encoding: they can name other files, and grow without end."""

    def refuse(*_: object) -> None:
        raise SamnnError(f"{path}: declares a document type; CVAT writes none. Export it again.")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)


def read_annotations(path: Path) -> tuple[list[str], list[Annotated]]:
    """The labels in the order of the file, those without a shape too, and every image.

    Raises:
        SamnnError: it is not CVAT for images 1.1, or a shape contradicts its image.
    """
    try:
        content = path.read_bytes()
        _refuse_document_type(path, content)
        root = ElementTree.fromstring(content)
    except OSError as error:
        raise SamnnError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ElementTree.ParseError, expat.ExpatError, LookupError, ValueError) as error:
        raise SamnnError(f"{path}: cannot be read as XML ({error}). Is it damaged or cut short?") from error
    if root.tag != "annotations" or root.findtext("version") != "1.1":
        raise SamnnError(
            f"{path}: is not version 1.1 of CVAT's XML. Export the task as «CVAT for images 1.1»."
        )
    if root.find("track") is not None:
        raise SamnnError(f"{path}: holds tracks of a video. Export the task as «CVAT for images 1.1».")
    labels = [_as_name(element.findtext("name") or "") for element in root.findall("./meta//labels/label")]
    images = [_image(path, element) for element in root.findall("image")]
    used = dict.fromkeys(shape.label for image in images for shape in image.shapes)
    labels = list(dict.fromkeys([*labels, *used]))
    if not used:
        raise SamnnError(f"{path}: holds no polygon and no mask.")
    if taken := {"background", "ignore", ""} & used.keys():
        raise SamnnError(
            f"{path}: has a label {min(taken)!r}, a name nnU-Net keeps for itself. Rename it in CVAT."
        )
    if len(labels) > MOST_LABELS:
        raise SamnnError(
            f"{path}: has {len(labels)} labels; no more than {MOST_LABELS} can be told apart here."
        )
    return labels, images


def _image(path: Path, element: ElementTree.Element) -> Annotated:
    try:
        image = Annotated(element.attrib["name"], int(element.attrib["width"]), int(element.attrib["height"]))
        if not (0 < image.width < 2**16 and 0 < image.height < 2**16):
            raise ValueError(f"size {image.width} x {image.height}")
        for child in element:
            if child.tag == "polygon":
                image.shapes.append(Polygon(_as_name(child.attrib["label"]), _points(child.attrib["points"])))
            elif child.tag == "mask":
                image.shapes.append(_runs(child, image))
            else:
                image.ignored[child.tag] += 1
    except (KeyError, ValueError, OverflowError) as error:
        where = element.attrib.get("name", "without name")
        raise SamnnError(
            f"{path}: image {where}: cannot be understood ({error}). Export it again."
        ) from error
    return image


def _as_name(label: str) -> str:
    return re.sub(r"\s+", "_", label.strip())


def _points(text: str) -> tuple[tuple[float, float], ...]:
    points = tuple(tuple(float(part) for part in pair.split(",")) for pair in text.split(";"))
    if len(points) < 3 or any(len(point) != 2 for point in points) or not np.isfinite(points).all():
        raise ValueError(f"polygon of points {text[:60]!r}")
    return points


def _runs(element: ElementTree.Element, image: Annotated) -> Runs:
    lengths = tuple(int(part) for part in element.attrib["rle"].split(","))
    left, top, width, height = (int(element.attrib[key]) for key in ("left", "top", "width", "height"))
    is_inside = left >= 0 <= top and left + width <= image.width and top + height <= image.height
    if not is_inside or min(width, height, *lengths) < 0 or sum(lengths) != width * height:
        raise ValueError(f"mask of {sum(lengths)} pixels in a box of {width} x {height} at ({left}, {top})")
    return Runs(_as_name(element.attrib["label"]), lengths, left, top, width, height)
