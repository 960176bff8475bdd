"""What a dataset.json may say about labels, and what it may not."""

from __future__ import annotations

import json

import pytest

from samnn.errors import SamnnError
from samnn.labels import LabelSet


def test_classes_keep_their_order_and_background_is_none_of_them():
    labels = LabelSet.from_mapping({"background": 0, "heart": 2, "aorta": 1})
    assert list(labels.classes.items()) == [("heart", (2,)), ("aorta", (1,))]
    assert labels.values == {0, 1, 2}


def test_regions_are_several_values_and_may_overlap():
    labels = LabelSet.from_mapping({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "necrosis": 3})
    assert labels.classes == {"whole": (1, 2, 3), "core": (2, 3), "necrosis": (3,)}


def test_the_ignore_label_is_a_value_but_no_class():
    labels = LabelSet.from_mapping({"background": 0, "heart": 1, "ignore": 2})
    assert (labels.classes, labels.ignore, labels.values) == ({"heart": (1,)}, 2, {0, 1, 2})


@pytest.mark.parametrize(
    "dataset", ["Dataset901_OpenKBPHN", "Dataset904_Hippocampus", "Dataset907_TSThoraxCTA"]
)
def test_real_dataset_json_files_are_read(shared, dataset):
    path = shared / "data" / dataset / "dataset.json"
    written = json.loads(path.read_text())["labels"]
    labels = LabelSet.from_dataset_json(path)
    assert {name: values[0] for name, values in labels.classes.items()} | {"background": 0} == written


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (None, 'no "labels" mapping'),
        ({}, 'no "labels" mapping'),
        (["heart"], 'no "labels" mapping'),
        ({"0": "background", "1": "heart"}, "'0' has value 'background'"),
        ({"background": 0, "heart": "1"}, "'heart' has value '1'"),
        ({"background": 0, "heart": 1.0}, "'heart' has value 1.0"),
        ({"background": 0, "heart": True}, "'heart' has value True"),
        ({"background": 0, "heart": -1}, "'heart' has value -1"),
        ({"background": 0, "heart": 65536}, "'heart' has value 65536"),
        ({"background": 0, "heart": []}, "'heart' has value"),
        ({"background": 0, "heart": [1, 1]}, "'heart' has value"),
        ({"background": 0, "heart": 0}, "0 is for 'background'"),
        ({"background": 0, "heart": [0, 1]}, "0 is for 'background'"),
        ({"background": 1, "heart": 2}, "0 is for 'background'"),
        ({"background": 0, "ignore": 0, "heart": 1}, "0 is for 'background'"),
        ({"background": 0, "heart": 1, "aorta": 1}, "'heart' and 'aorta' have the same value 1"),
        ({"background": 0, "heart": [1, 2], "aorta": [2, 1]}, "'heart' and 'aorta' have the same value"),
        ({"background": 0, "heart": 1, "ignore": [2, 3]}, "'ignore' has value"),
        ({"background": 0, "heart": [1, 2], "ignore": 2}, "ignore value 2 is also the value of a class"),
        ({"background": 0}, "no class besides"),
        ({"background": 0, "ignore": 1}, "no class besides"),
    ],
)
def test_contradictory_labels_are_refused_naming_their_file(tmp_path, labels, fault):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": labels}))
    with pytest.raises(SamnnError) as error:
        LabelSet.from_dataset_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert fault in str(error.value)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b"1" * 10_000, "not valid JSON"),
        (b'{"labels": {"background": 0, "x\\ud800": 1}}', "half a character"),
        (None, "not found"),
    ],
)
def test_an_unreadable_dataset_json_is_named(tmp_path, content, fault):
    path = tmp_path / "dataset.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SamnnError, match=fault) as error:
        LabelSet.from_dataset_json(path)
    assert str(path) in str(error.value)


def test_a_byte_order_mark_is_no_part_of_the_content(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_bytes(b'\xef\xbb\xbf{"labels": {"background": 0, "heart": 1}}')
    assert LabelSet.from_dataset_json(path).classes == {"heart": (1,)}


def test_a_folder_in_place_of_a_dataset_json_is_named(tmp_path):
    with pytest.raises(SamnnError, match="cannot be read"):
        LabelSet.from_dataset_json(tmp_path)
