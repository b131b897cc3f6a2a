"""Tests that any MLmodel file is either read or refused with a one-line message."""

import os
from dataclasses import replace

import pytest
import yaml

from mlflow_deploy_plugin.core.errors import InvalidArtifact
from mlflow_deploy_plugin.core.mlmodel import MLMODEL
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from tests.support.classifiers import write_classifier
from tests.support.models import write_model

SUM = (
    "g (float[N,2] X) => (float[N] y) <int64[1] axis = {1}> { y = ReduceSum<keepdims=0>(X, axis) }"
)


BROKEN = {
    "no yaml": ("a: [", "cannot be read"),
    "no mapping": ("5", "not a mapping"),
    "another flavor": ("flavors: {sklearn: {}}", "flavors sklearn"),
    "no data": ("flavors: {onnx: {}}", "KeyError: 'data'"),
    "a file that is not there": (
        "flavors: {onnx: {data: other.onnx}}",
        "file 'other.onnx' is missing",
    ),
    "a file outside": ("flavors: {onnx: {data: ../model.onnx}}", "outside"),
    "an absolute file": ("flavors: {onnx: {data: /etc/hostname}}", "outside"),
    "a signature that is no JSON": (
        "flavors: {onnx: {data: model.onnx}}\nsignature: {inputs: '['}",
        "JSONDecodeError",
    ),
    "a signature of brackets": (
        f"flavors: {{onnx: {{data: model.onnx}}}}\nsignature: {{inputs: '{'[' * 100_000}'}}",
        "RecursionError",
    ),
    "a name that no file can have": (
        f"flavors: {{onnx: {{data: {'x' * 500}}}}}",
        "the model's file 'xxx",
    ),
    "flavors that are a list": ("flavors: [onnx]", "flavors is .* a mapping is expected"),
    "parity that is a text": (
        "flavors: {onnxserve: {data: model.onnx, parity: proven}}",
        "cannot be understood",
    ),
    "categories that are lists": (
        "flavors: {onnxserve: {data: model.onnx, refused: {categories: {a: [[1]]}}}}",
        "cannot be understood",
    ),
    "a column of a type that ONNX lacks": (
        (
            'flavors: {onnx: {data: model.onnx}}\nsignature: {inputs: \'[{"name": "t", '
            '"type": "datetime"}]\'}'
        ),
        "'t' has the type 'datetime'",
    ),
}


FIELDS = [
    ({"type": "double", "name": None}, "a name has the type NoneType; a text is expected"),
    ({"type": "double", "name": "\ud800"}, "surrogates not allowed"),
    (
        {"type": "tensor", "name": "\ud800", "tensor-spec": {"dtype": "int8", "shape": [1]}},
        "surrogates not allowed",
    ),
    (
        {"type": "tensor", "tensor-spec": {"dtype": "V100000000", "shape": [-1]}},
        "'' has the dtype 'V100000000'",
    ),
    (
        {"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": [-1, -5]}},
        r"'' has the shape \(-1, -5\)",
    ),
    ({"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": [10**30]}}, "'' has the shape"),
    (
        {"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": [True, 1.5]}},
        r"'' has the shape \(True, 1.5\)",
    ),
]


@pytest.mark.parametrize(("field", "words"), FIELDS, ids=[words for _, words in FIELDS])
def test_unusable_signature_field_is_refused(tmp_path, field, words):
    with pytest.raises(InvalidArtifact, match=words):
        read_artifact(write_model(tmp_path, signature=[field]))


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_mlmodel_is_refused_in_one_line(tmp_path, text, words):
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(InvalidArtifact, match=words) as caught:
        read_artifact(tmp_path)
    assert "\n" not in caught.value.message


def test_link_out_of_the_folder_is_refused(tmp_path):
    folder = write_model(tmp_path / "model", SUM)
    os.rename(folder / "model.onnx", tmp_path / "elsewhere.onnx")
    os.symlink(tmp_path / "elsewhere.onnx", folder / "model.onnx")
    with pytest.raises(InvalidArtifact, match="outside"):
        read_artifact(folder)


@pytest.mark.parametrize(
    ("reference", "words"), [("../rows.parquet", "is outside"), ("gone.parquet", "is missing")]
)
def test_reference_is_a_file_in_the_folder(tmp_path, reference, words):
    (tmp_path / "rows.parquet").touch()
    artifact = read_artifact(write_model(tmp_path / "model"))
    assert artifact.reference_file is None
    with pytest.raises(InvalidArtifact, match=words):
        _ = replace(artifact, reference=reference).reference_file
    assert replace(artifact, reference=MLMODEL).reference_file == tmp_path / "model" / MLMODEL


def test_folder_without_model_is_refused(tmp_path):
    with pytest.raises(InvalidArtifact, match="no MLmodel file"):
        read_artifact(tmp_path / "nothing")


def test_graph_with_inputs_needs_a_signature(tmp_path):
    folder = write_classifier(tmp_path)
    document = yaml.safe_load((folder / MLMODEL).read_text())
    del document["signature"]
    (folder / MLMODEL).write_text(yaml.safe_dump(document))
    with pytest.raises(InvalidArtifact, match="no inputs"):
        OnnxModel.load(folder)
