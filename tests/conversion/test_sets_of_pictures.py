"""Pictures and CVAT: which pixel has which class, overlaps as regions, mirroring, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from set_samples import png

from samnn.dataset_conversion._cvat_file import Annotated, Polygon, Runs
from samnn.dataset_conversion._pixels import read_mask, read_picture
from samnn.dataset_conversion.cvat import convert as convert_cvat
from samnn.dataset_conversion.png_pairs import OCT_LABELS
from samnn.dataset_conversion.png_pairs import convert as convert_png
from samnn.errors import Problems, SamnnError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5  # 6 rows, 8 columns


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


# ---- pictures and masks


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1"])
def test_the_class_is_the_grey_value_the_index_or_the_first_channel(tmp_path, mode):
    classes = np.zeros((6, 8), np.uint8)
    classes[1:3, 2:7] = 1
    if mode == "RGB":
        path = png(tmp_path / "m.png", np.stack([classes, classes * 99, 255 - classes], -1))
    elif mode == "P":
        picture = Image.fromarray(classes, mode="P")
        picture.putpalette([200, 100, 50] * 256)
        picture.save(path := tmp_path / "m.png")
    elif mode == "1":
        Image.fromarray(classes.astype(bool)).save(path := tmp_path / "m.png")
    else:
        path = png(tmp_path / "m.png", classes)
    np.testing.assert_array_equal(read_mask(path).voxels.T, classes)


def test_colours_that_share_their_first_channel_are_no_index_mask(tmp_path):
    colours = np.zeros((6, 8, 3), np.uint8)
    colours[2, 3] = 0, 255, 0
    with pytest.raises(
        SamnnError, match=r"m\.png: its 2 colours have 1 different values in the first channel"
    ):
        read_mask(png(tmp_path / "m.png", colours))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: png(p, np.dstack([GREY] * 3 + [GREY])), "partly transparent"),
        (lambda p: p.write_bytes(b"no picture"), "cannot be read as a picture"),
        (
            lambda p: Image.fromarray(GREY).save(
                p, save_all=True, append_images=[Image.fromarray(GREY + 1)], format="PNG"
            ),
            r"2 frame\(s\)",
        ),
    ],
)
def test_pictures_that_would_lose_something_are_refused(tmp_path, make, message):
    make(tmp_path / "p.png")
    with pytest.raises(SamnnError, match=f"p.png: .*{message}"):
        read_picture(tmp_path / "p.png")


def test_sixteen_bits_stay_if_grey_and_are_refused_in_colour(tmp_path):
    deep = GREY.astype(np.uint16) * 250
    np.testing.assert_array_equal(read_picture(png(tmp_path / "a.png", deep))[0].voxels.T, deep)
    import imagecodecs

    (tmp_path / "b.png").write_bytes(imagecodecs.png_encode(np.dstack([deep, deep, deep + 1])))
    with pytest.raises(SamnnError, match=r"b\.png: is RGB of 16 bits"):
        read_picture(tmp_path / "b.png")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 33)])
def test_plain_png_is_read_as_pillow_reads_it(tmp_path, mode, size):
    values = np.random.default_rng(0).integers(0, 256, (*size[::-1], len(mode)), np.uint8)
    values[..., 0] = np.arange(size[0])  # neighbours alike, so that rows are filtered
    picture = Image.fromarray(values if mode == "RGB" else values[..., 0])
    picture.save(tmp_path / "a.png", dpi=(72, 72))
    found = np.stack([channel.voxels.T for channel in read_picture(tmp_path / "a.png")], -1)
    same = (values == values[..., :1]).all()
    assert np.array_equal(found, values[..., :1] if same or mode == "L" else values)


def test_a_png_cut_short_or_changed_anywhere_is_refused(tmp_path):
    values = np.add.outer(np.arange(20, dtype=np.uint8), np.arange(12, dtype=np.uint8)) ** 2
    whole = tmp_path / "whole.png"
    Image.fromarray(values).save(whole, dpi=(72, 72))
    content, path = whole.read_bytes(), tmp_path / "damaged.png"
    damaged = [content[:n] for n in range(len(content))]
    damaged += [content[:n] + bytes([content[n] ^ 0x41]) + content[n + 1 :] for n in range(len(content))]
    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(SamnnError, match=r"damaged\.png: cannot be read as a picture"):
            read_picture(path)


def test_a_png_that_is_to_be_shown_turned_is_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "a.png", exif=exif)
    with pytest.raises(SamnnError, match="EXIF orientation"):
        read_picture(tmp_path / "a.png")


def test_one_coloured_image_makes_all_of_them_three_channels(tmp_path):
    colours = np.dstack([GREY, GREY + 1, GREY + 2])
    png(tmp_path / "i/grey.png", GREY)
    png(tmp_path / "i/colour.png", colours)
    for name in ("grey", "colour"):
        png(tmp_path / f"m/{name}.png", (GREY > 100).astype(np.uint8))
    convert_png(5, "P", images=tmp_path / "i", masks=tmp_path / "m", output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset005_P"
    assert json.loads((dataset / "dataset.json").read_text())["channel_names"] == {
        "0": "R",
        "1": "G",
        "2": "B",
    }
    np.testing.assert_array_equal(pixels(dataset / "imagesTr/grey_0000.png"), np.dstack([GREY] * 3))
    copied = (dataset / "imagesTr/colour_0000.png").read_bytes()
    assert copied == (tmp_path / "i/colour.png").read_bytes()


def test_the_retinal_set_has_its_thirteen_names_and_patients_share_a_fold(tmp_path):
    for name in ("a_1", "a_2", "b_1"):
        png(tmp_path / f"oct/imagesgreyscale/{name}.png", GREY)
        png(tmp_path / f"oct/masks14/{name}.png", (GREY // 16).astype(np.uint8) % 14)
    convert_png(5, "OCT", tmp_path / "oct", patient="^[ab]", output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset005_OCT"
    labels = json.loads((dataset / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0} | {name: value for value, name in enumerate(OCT_LABELS, 1)}
    folds = json.loads((dataset / "splits_final.json").read_text())
    assert sorted(fold["val"] for fold in folds) == [["a_1", "a_2"], ["b_1"]]


def test_a_mask_of_another_size_is_refused(tmp_path):
    png(tmp_path / "i/a.png", GREY)
    png(tmp_path / "m/a.png", GREY[:5] // 200)
    with pytest.raises(
        Problems, match=r"m/a\.png: does not lie on the grid of a\.png: shape \(8, 6\) against \(8, 5\)"
    ):
        convert_png(5, "P", images=tmp_path / "i", masks=tmp_path / "m", output=tmp_path / "raw")


# ---- CVAT


def test_a_polygon_covers_the_pixels_whose_centres_it_holds():
    """A rectangle from corner (2, 1) to (6, 4) of the pixel edges: columns 2 to 5, rows 1 to 3."""
    mask = np.zeros((6, 8), bool)
    Polygon("a", ((2, 1), (6, 1), (6, 4), (2, 4))).paint(mask)
    expected = np.zeros((6, 8), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(mask, expected)


def test_runs_alternate_row_by_row_within_their_box_and_start_outside():
    """A box of 3 x 2 at (4, 1): one pixel without, three with, two without."""
    mask = np.zeros((6, 8), bool)
    Runs("a", (1, 3, 2), left=4, top=1, width=3, height=2).paint(mask)
    assert sorted(map(tuple, np.argwhere(mask).tolist())) == [(1, 5), (1, 6), (2, 4)]


def test_several_shapes_of_a_label_are_one_area_and_labels_are_bits():
    left, both = (
        Polygon("a", ((0, 0), (2, 0), (2, 2), (0, 2))),
        Polygon("a", ((1, 0), (4, 0), (4, 2), (1, 2))),
    )
    other = Runs("b", (0, 2), left=3, top=1, width=2, height=1)
    bits = Annotated("x", 6, 3, [left, both, other]).paint(["a", "b"])
    np.testing.assert_array_equal(bits, [[1, 1, 1, 1, 0, 0], [1, 1, 1, 3, 2, 0], [0, 0, 0, 0, 0, 0]])


def box(label: str, x: int, y: int, x_end: int, y_end: int) -> str:
    return f'<polygon label="{label}" points="{x},{y};{x_end},{y};{x_end},{y_end};{x},{y_end}"/>'


def write_cvat(folder: Path, shapes: list[list[str]], names: list[str] | None = None) -> Path:
    """Pictures of 8 x 6 pixels with these shapes."""
    parts = ["<annotations><version>1.1</version>"]
    for number, own in enumerate(shapes):
        name = names[number] if names else f"w{number}.png"
        png(folder / "images" / Path(name).name, GREY + number)
        parts.append(f'<image id="{number}" name="{name}" width="8" height="6">{"".join(own)}</image>')
    (folder / "annotations.xml").write_text("".join([*parts, "</annotations>"]))
    return folder


def test_labels_that_overlap_become_regions_and_others_stay_plain(tmp_path, capsys):
    source = write_cvat(
        tmp_path / "s",
        [
            [box("radius", 0, 0, 4, 2), box("ulna", 3, 0, 6, 2), '<box label="text" xtl="0"/>'],
            [box("radius", 0, 0, 2, 2), box("hook", 5, 4, 7, 6)],
            [],
        ],
    )
    convert_cvat(source, 7, "W", output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset007_W"
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "radius": [1, 3], "ulna": [2, 3], "hook": 4}
    assert description["regions_class_order"] == [1, 2, 4]
    row = [1, 1, 1, 3, 2, 2, 0, 0]
    np.testing.assert_array_equal(pixels(dataset / "labelsTr/w0.png"), [row, row, *np.zeros((4, 8), int)])
    said = " ".join(capsys.readouterr().out.split())
    assert "Labels overlap on 2 pixels, in 1 combination(s): written as regions" in said
    assert "Left out: 1 image(s) without a polygon or mask" in said and "Ignored, no areas: 1 x box" in said


def test_labels_that_cover_each_other_everywhere_are_refused_with_the_number_of_pixels(tmp_path):
    source = write_cvat(tmp_path / "s", [[box("a", 0, 0, 4, 2), box("b", 0, 0, 4, 2)]])
    with pytest.raises(
        SamnnError, match=r"8 pixels lie in several labels, which .* a and b cover the same pixels"
    ):
        convert_cvat(source, 7, "W", output=tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_flip_mirrors_image_and_mask_of_one_side_and_the_table_groups_patients(tmp_path):
    source = write_cvat(
        tmp_path / "s", [[box("a", 0, 0, 3, 1)], [box("a", 0, 0, 3, 1)], [box("a", 1, 1, 2, 2)]]
    )
    table = tmp_path / "dataset.csv"
    table.write_text("filestem,patient_id,laterality\nw0,1,L\nw1,1,R\nw2,2,R\n")
    convert_cvat(source, 7, "W", table=table, flip="L", output=tmp_path / "raw")
    dataset = tmp_path / "raw/Dataset007_W"
    np.testing.assert_array_equal(pixels(dataset / "imagesTr/w0_0000.png"), GREY[:, ::-1])
    np.testing.assert_array_equal(pixels(dataset / "labelsTr/w0.png")[0], [0, 0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(pixels(dataset / "imagesTr/w1_0000.png"), GREY + 1)
    np.testing.assert_array_equal(pixels(dataset / "labelsTr/w1.png")[0], [1, 1, 1, 0, 0, 0, 0, 0])
    folds = json.loads((dataset / "splits_final.json").read_text())
    assert sorted(fold["val"] for fold in folds) == [["w0", "w1"], ["w2"]]


def test_an_image_outside_of_the_folder_is_not_taken(tmp_path):
    source = write_cvat(tmp_path / "s", [[box("a", 0, 0, 3, 1)]], ["../outside.png"])
    (source / "images/outside.png").rename(source / "outside.png")
    with pytest.raises(Problems, match=r"outside\.png: no such image"):
        convert_cvat(source, 7, "W", output=tmp_path / "raw")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            '<mask label="a" rle="1,2" left="0" top="0" width="2" height="2"/>',
            "mask of 3 pixels in a box of 2 x 2",
        ),
        ('<mask label="a" rle="0,9" left="6" top="0" width="3" height="3"/>', r"3 x 3 at \(6, 0\)"),
        ('<polygon label="a" points="0,0;nan,1;1,1"/>', "polygon of points"),
        ('<polygon label="ignore" points="0,0;0,1;1,1"/>', "label 'ignore', a name nnU-Net keeps"),
        ('<box label="a"/>', "holds no polygon and no mask"),
    ],
)
def test_shapes_that_contradict_themselves_are_refused_with_the_image_named(tmp_path, broken, message):
    source = write_cvat(tmp_path / "s", [[broken]])
    with pytest.raises(SamnnError, match=f"annotations.xml: .*{message}"):
        convert_cvat(source, 7, "W", output=tmp_path / "raw")


def test_xml_that_declares_entities_is_refused_unread(tmp_path):
    source = write_cvat(tmp_path / "s", [[box("a", 0, 0, 3, 1)]])
    xml = source / "annotations.xml"
    xml.write_text('<!DOCTYPE x [<!ENTITY a "b">]>' + xml.read_text())
    with pytest.raises(SamnnError, match="declares a document type"):
        convert_cvat(source, 7, "W", output=tmp_path / "raw")
