"""Tests that any MLmodel file is either read or refused with a one-line message."""

import os
from pathlib import PurePosixPath, PureWindowsPath

import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.mlmodel import MLMODEL, combine_hashes, read_mlmodel

BOMB = (
    "a: &0 [x, x]\n"
    + "".join(f"a{n}: &{n} [*{n - 1}, *{n - 1}]\n" for n in range(1, 40))
    + "model_id: *39"
)


def test_same_size_is_read_again(tmp_path):
    for value in (1, 2):
        (tmp_path / MLMODEL).write_text(f"a: {value}")
        os.utime(tmp_path / MLMODEL, ns=(1, 1))
        assert read_mlmodel(tmp_path) == {"a": value}


ODD = [
    ("flavors: 5", "flavors is 5; a mapping"),
    ("flavors: {onnxserve: 5}", "flavors.onnxserve is 5; a mapping"),
    ("flavors: {onnx: [1]}", r"flavors.onnx is \[1\]; a mapping"),
    ("flavors: {}\nmetadata: x", "metadata is 'x'; a mapping"),
    ("flavors: {onnxserve: {parity: [1]}}", r"flavors.onnxserve.parity is \[1\]; a mapping"),
    (
        "flavors: {onnxserve: {parity: {rows: many}}}",
        "flavors.onnxserve.parity.rows is 'many'; a whole number",
    ),
    (
        "flavors: {onnxserve: {parity: {outputs: [{}]}}}",
        "flavors.onnxserve.parity.outputs.name is None; a text",
    ),
    ("flavors: {onnxserve: {provenance: 3}}", "flavors.onnxserve.provenance is 3; a mapping"),
    ("flavors: {onnxserve: {outputs: [1]}}", "flavors.onnxserve.outputs is 1; a mapping"),
    (
        "flavors: {onnxserve: {outputs: [{name: y, shape: 1}]}}",
        "flavors.onnxserve.outputs.shape is 1; a list",
    ),
    (
        "flavors: {onnxserve: {prediction: [[1]]}}",
        r"flavors.onnxserve.prediction is \[1\]; a text or a number",
    ),
]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "nested more than 100 levels"),
        (b"- " * 200_000, "nested more than 100 levels"),
        (b"a: [", "cannot be read"),
        (b"a: 2001-99-99", "cannot be read"),
        (BOMB.encode(), "aliases .* expand to more than 1,000,000"),
        (b"flavors: &a [*a]", "is used inside its own anchor"),
        # YAML reads such a number to the base of 60.
        (b"model_id: 1" + b":1" * 200_000, "a number in base 60 has more than 100 colons"),
        (b"model_id: 0x1" + b"0" * 10_000, "cannot be read: .*limit"),
        (b"a: \xff", "cannot be read"),
        (b"- a", "not a mapping"),
        (b"", "not a mapping"),
        (rb'model_id: "m-1\r\nX-Evil: yes"', "model_id 'm-1.*visible ASCII"),
        (rb'model_uuid: "a\u2028b"', "model_uuid .*visible ASCII"),
        (rb'run_id: "r 1"', "run_id 'r 1'.*visible ASCII"),
        (rb'mlflow_version: "3\n"', "mlflow_version .*visible ASCII"),
        (b"model_id: " + b"m" * 257, "model_id .*at most 256"),
        *[(text.encode(), f"cannot be understood: {words}") for text, words in ODD],
    ],
)
def test_invalid_mlmodel_is_refused(tmp_path, content, words):
    (tmp_path / MLMODEL).write_bytes(content)
    with pytest.raises(InvalidArtifact, match=words) as caught:
        read_mlmodel(tmp_path)
    assert "\n" not in caught.value.message


def test_empty_entry_counts_as_missing(tmp_path):
    (tmp_path / MLMODEL).write_text(
        "flavors: {onnxserve: {parity: null, data: x}, onnx: null}\nsignature: null"
    )
    assert read_mlmodel(tmp_path) == {"flavors": {"onnxserve": {"data": "x"}}}


def test_folder_without_mlmodel_is_refused(tmp_path):
    with pytest.raises(InvalidArtifact, match="no MLmodel file"):
        read_mlmodel(tmp_path)


def test_yaml_aliases_are_expanded(tmp_path):
    (tmp_path / MLMODEL).write_text("metadata: &one {a: 1}\nagain: [*one, *one]")
    assert read_mlmodel(tmp_path)["again"] == [{"a": 1}, {"a": 1}]


def test_digest_is_the_same_on_windows():
    linux, windows = (
        combine_hashes({kind("a/x"): "1", kind("B/y"): "2"})  # type: ignore[dict-item]
        for kind in (PurePosixPath, PureWindowsPath)
    )
    assert linux == windows
