"""Pictures: PNG, JPEG, BMP and TIFF read to the last byte without losing a bit, and PNG written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from isal import isal_zlib
from PIL import Image, UnidentifiedImageError

from samnn.atomic import whole_file
from samnn.errors import SamnnError
from samnn.geometry import Grid
from samnn.io import Volume

from ._arrays import plain, whole_numbers

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_TIFF = (".tif", ".tiff")
_ORIENTATION = 0x0112  # of EXIF; 1: as stored
_TEXTS = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}  # chunks of a PNG that may say so, under these names
_MAY_TURN = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "F", "LA", "RGB", "RGBA")  # those Pillow decodes without loss


def read_picture(path: Path, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> list[Volume]:
    """The channels of a picture, each (x, y): one if it is grey, also where it is stored in colour; else R, G, B.

    Raises:
        SamnnError: it cannot be read, is partly transparent, or would lose bits or frames.
    """
    pixels = _read(path, palette=False)
    if pixels.shape[2] in (2, 4):
        if pixels.dtype.kind == "f":
            raise SamnnError(
                f"{path}: holds {pixels.shape[2]} channels of fractional numbers; expected 1 or 3. Save them as such."
            )
        if pixels[..., -1].min() < np.iinfo(pixels.dtype).max:
            raise SamnnError(f"{path}: is partly transparent. Save it without an alpha channel.")
        pixels = pixels[..., :-1]
    if pixels.shape[2] > 1 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    return [on_plane(pixels[..., channel].T, spacing_mm) for channel in range(pixels.shape[2])]


def read_mask(path: Path, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> Volume:
    """The classes in a picture, (x, y): grey values, the indices of a palette, or the first channel of colours.

    Raises:
        SamnnError: it cannot be read, or two colours share a value in the first channel.
    """
    if path.suffix.lower() in (".jpg", ".jpeg"):
        raise SamnnError(f"{path}: JPEG changes values, which are classes here. Export the mask as PNG.")
    pixels = _read(path, palette=True)
    if pixels.shape[2] > 1:
        colours = np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)
        if len(np.unique(colours[:, 0])) < len(colours):
            raise SamnnError(
                f"{path}: its {len(colours)} colours have {len(np.unique(colours[:, 0]))} different values in the first "
                "channel, which should be the class. Export it with class numbers, grey or as a palette."
            )
    return on_plane(whole_numbers(path, pixels[..., 0]).T, spacing_mm)


def is_png_as_written(path: Path, n_channels: int) -> bool:
    """Whether a file is a PNG of so many channels as `write_png` would write it: no palette, no transparency."""
    if path.suffix.lower() != ".png":
        return False
    picture, _ = _open(path)
    modes = ("L", "I;16") if n_channels == 1 else ("RGB",)
    return picture.format == "PNG" and picture.mode in modes and "transparency" not in picture.info


def write_png(path: Path, channels: Sequence[np.ndarray], *, source: Path) -> None:
    """Write one channel as a grey PNG or three as RGB, each (x, y); 8 bits where that is enough, or 16 if grey.

    Raises:
        SamnnError: PNG has no such values; `source` is named.
    """
    low, high = min(channel.min() for channel in channels), max(channel.max() for channel in channels)
    whole = all(channel.dtype.kind in "iub" for channel in channels)
    if not whole or low < 0 or high > (255 if len(channels) > 1 else 65535):
        raise SamnnError(
            f"{source}: has values from {low:g} to {high:g}; PNG takes whole numbers from 0 to 255, or 65535 if "
            "grey. Scale it to such numbers before."
        )
    pixels = np.stack(channels, -1).astype(np.uint8 if high < 256 else np.uint16).swapaxes(0, 1)
    picture = Image.fromarray(np.ascontiguousarray(pixels if len(channels) > 1 else pixels[..., 0]))
    with whole_file(path) as part:
        picture.save(part, format="PNG", compress_level=1)


def on_plane(voxels: np.ndarray, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> Volume:
    """Pixels in (x, y) order as a volume of two dimensions."""
    return Volume(voxels, Grid(voxels.shape, spacing_mm, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0)))


def _read(path: Path, *, palette: bool) -> np.ndarray:
    """Pixels as (row, column, channel); with `palette` the indices of one (or bits), else its colours."""
    if path.suffix.lower() in _TIFF:
        try:
            pixels = np.asarray(tifffile.imread(path))
        except Exception as error:  # tifffile raises whatever its decoders do
            raise _unreadable(path, error) from error
    else:
        picture, content = _open(path)
        try:
            if (pixels := _plain_png(picture, content)) is not None:
                return pixels
            if picture.mode == "1" and not palette:
                picture = picture.convert("L")
            elif picture.mode == "P" and not palette:
                picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
            pixels = np.asarray(picture)
        except Exception as error:  # Pillow raises what its decoders do
            raise _unreadable(path, error) from error
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if (
        pixels.ndim != 3
        or pixels.size == 0
        or not 1 <= pixels.shape[2] <= 4
        or pixels.dtype.kind not in "iufb"
        or pixels.dtype.itemsize > 8
    ):
        raise SamnnError(
            f"{path}: holds {pixels.shape} values of type {pixels.dtype}; expected one picture, grey or RGB. Save its "
            "pages as files of their own."
        )
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise SamnnError(f"{path}: holds NaN or infinite pixels. Export it again, or give them a value.")
    return plain(pixels)


def _plain_png(picture: Image.Image, content: bytes) -> np.ndarray | None:
    """Pixels of a PNG with 8 bits of grey or of RGB, by a decoder several times as fast as Pillow's, or None."""
    if picture.format != "PNG" or content[24:26] not in (b"\x08\x00", b"\x08\x02"):  # bits, kind of colour
        return None
    if picture.mode not in ("L", "RGB") or "transparency" in picture.info:
        return None
    try:
        pixels = imagecodecs.spng_decode(content)
    except (imagecodecs.SpngError, ImportError):  # damaged, which Pillow says; or built without it
        return None
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    expected = (*picture.size[::-1], len(picture.mode))
    return pixels if pixels.shape == expected and pixels.dtype == np.uint8 else None


def _checked_chunks(content: bytes) -> set[bytes]:
    """The kinds of chunks in a PNG, whose checksums are compared, which decoders do not do for pixels.

    Raises:
        ValueError: one is wrong, or the last chunk is missing.
    """
    start, kind, kinds = 8, b"", set()
    while kind != b"IEND":
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        kind = content[start + 4 : start + 8]
        if not kind or end > len(content):
            raise ValueError("it ends early")
        if isal_zlib.crc32(content[start + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise ValueError(f"the checksum of {kind!r} is wrong")
        kinds.add(kind)
        start = end
    return kinds


def _open(path: Path) -> tuple[Image.Image, bytes]:
    """Open a picture that Pillow reads without losing bits or frames; and the content of its file."""
    try:
        content = path.read_bytes()
        picture = Image.open(io.BytesIO(content))
        is_png = picture.format == "PNG"
        orientation = 1  # asking a PNG decodes it
        has_texts = is_png and _checked_chunks(content) & _TEXTS
        if not is_png or (has_texts and any(name in content for name in _MAY_TURN)):
            orientation = picture.getexif().get(_ORIENTATION, 1)
    except UnidentifiedImageError as error:
        raise _unreadable(path, "it is none that Pillow knows") from error
    except Exception as error:  # Pillow raises what its decoders do
        raise _unreadable(path, error) from error
    is_deep = is_png and content[24] == 16 and content[25] != 0  # bit depth, and colour or alpha
    if picture.mode not in _MODES or is_deep or getattr(picture, "n_frames", 1) > 1:
        raise SamnnError(
            f"{path}: is {picture.mode}{' of 16 bits' if is_deep else ''}, {getattr(picture, 'n_frames', 1)} frame(s); "
            "expected one picture, grey, or RGB of 8 bits. Export it as such."
        )
    if orientation != 1:
        raise SamnnError(f"{path}: is to be shown turned (EXIF orientation). Save it as it is to be seen.")
    return picture, content


def _unreadable(path: Path, error: Exception | str) -> SamnnError:
    return SamnnError(f"{path}: cannot be read as a picture ({error}). Is it damaged or cut short?")
