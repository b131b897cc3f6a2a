"""Tests that any MLmodel file is either read or refused with a one-line message."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mlflow_deploy_plugin.errors import InvalidArtifact
from mlflow_deploy_plugin.runtime.artifact import MLMODEL, read_artifact, read_mlmodel
from mlflow_deploy_plugin.runtime.model import OnnxModel
from tests.support.classifiers import write_classifier
from tests.support.models import write_model

BOMB = "a: &0 [x, x]\n" + "".join(f"a{n}: &{n} [*{n - 1}, *{n - 1}]\n" for n in range(1, 40)) + "model_id: *39"
SUM = "g (float[N,2] X) => (float[N] y) <int64[1] axis = {1}> { y = ReduceSum<keepdims=0>(X, axis) }"


BROKEN: list[tuple[str, str, str]] = [
    ("no yaml", "a: [", "cannot be read"),
    ("no mapping", "5", "not a mapping"),
    ("no flavors", "flavors: {}", "flavors none"),
    ("another flavor", "flavors: {sklearn: {}}", "flavors sklearn"),
    ("no data", "flavors: {onnx: {}}", "KeyError: 'data'"),
    ("a file that is not there", "flavors: {onnx: {data: other.onnx}}", "file 'other.onnx' is missing"),
    ("a file outside", "flavors: {onnx: {data: ../model.onnx}}", "outside"),
    ("an absolute file", "flavors: {onnx: {data: /etc/hostname}}", "outside"),
    ("a signature that is no JSON", "flavors: {onnx: {data: model.onnx}}\nsignature: {inputs: '['}", "JSONDecodeError"),
    (
        "a signature of brackets",
        f"flavors: {{onnx: {{data: model.onnx}}}}\nsignature: {{inputs: '{'[' * 100_000}'}}",
        "RecursionError",
    ),
    ("a name that no file can have", f"flavors: {{onnx: {{data: {'x' * 500}}}}}", "the model's file 'xxx"),
    ("flavors that are a list", "flavors: [onnx]", "flavors is .* a mapping is expected"),
    ("a signature that is a text", "flavors: {onnx: {data: model.onnx}}\nsignature: x", "cannot be understood"),
    ("parity that is a text", "flavors: {onnxserve: {data: model.onnx, parity: proven}}", "cannot be understood"),
    (
        "categories that are lists",
        "flavors: {onnxserve: {data: model.onnx, refused: {categories: {a: [[1]]}}}}",
        "cannot be understood",
    ),
    ("a reference that is a text", "flavors: {onnxserve: {data: model.onnx, reference: x}}", "cannot be understood"),
    (
        "a column of a type that ONNX lacks",
        'flavors: {onnx: {data: model.onnx}}\nsignature: {inputs: \'[{"name": "t", "type": "datetime"}]\'}',
        "'t' has the type 'datetime'",
    ),
]


FIELDS: list[tuple[dict[str, object], str]] = [
    ({"type": "double", "name": None}, "a name has the type NoneType; a text is expected"),
    ({"type": "double", "name": "\ud800"}, "surrogates not allowed"),
    ({"type": "tensor", "name": "\ud800", "tensor-spec": {"dtype": "int8", "shape": [1]}}, "surrogates not allowed"),
    ({"type": "tensor", "tensor-spec": {"dtype": "V100000000", "shape": [-1]}}, "'' has the dtype 'V100000000'"),
    ({"type": "tensor", "tensor-spec": {"dtype": "datetime64[ns]", "shape": [-1]}}, "'' has the dtype 'datetime64"),
    ({"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": [-1, -5]}}, r"'' has the shape \(-1, -5\)"),
    ({"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": [10**30]}}, "'' has the shape"),
    ({"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": [-1] * 100}}, "'' has the shape"),
    ({"type": "tensor", "tensor-spec": {"dtype": "int8", "shape": [True, 1.5]}}, r"'' has the shape \(True, 1.5\)"),
]


@pytest.mark.parametrize(("field", "words"), FIELDS, ids=[words for _, words in FIELDS])
def test_a_field_that_no_request_could_fill_is_refused(tmp_path: Path, field: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArtifact, match=words):
        read_artifact(write_model(tmp_path, signature=[field]))


@pytest.mark.parametrize(("text", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_mlmodel_file_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "MLmodel").write_text(text)
    with pytest.raises(InvalidArtifact, match=words) as caught:
        read_artifact(tmp_path)
    assert "\n" not in caught.value.message


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", SUM)
    os.rename(folder / "model.onnx", tmp_path / "elsewhere.onnx")
    os.symlink(tmp_path / "elsewhere.onnx", folder / "model.onnx")
    with pytest.raises(InvalidArtifact, match="outside"):
        read_artifact(folder)


@pytest.mark.parametrize(("reference", "words"), [("../rows.parquet", "is outside"), ("gone.parquet", "is missing")])
def test_a_reference_is_a_file_within_the_folder(tmp_path: Path, reference: str, words: str) -> None:
    (tmp_path / "rows.parquet").touch()
    artifact = read_artifact(write_model(tmp_path / "model"))
    assert artifact.reference_file is None
    with pytest.raises(InvalidArtifact, match=words):
        _ = replace(artifact, reference=reference).reference_file
    assert replace(artifact, reference=MLMODEL).reference_file == tmp_path / "model" / MLMODEL


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact, match="no MLmodel file"):
        read_artifact(tmp_path / "nothing")


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    (tmp_path / MLMODEL).write_text("a: 1")
    assert read_mlmodel(tmp_path) == {"a": 1}
    (tmp_path / MLMODEL).write_text("a: 2")
    os.utime(tmp_path / MLMODEL, ns=(1, 1))
    assert read_mlmodel(tmp_path) == {"a": 2}


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
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / MLMODEL).write_bytes(content)
    with pytest.raises(InvalidArtifact, match=words) as caught:
        read_mlmodel(tmp_path)
    assert "\n" not in caught.value.message


ODD: list[tuple[str, str]] = [
    ("flavors: 5", "flavors is 5; a mapping"),
    ("flavors: {onnxserve: 5}", "flavors.onnxserve is 5; a mapping"),
    ("flavors: {onnx: [1]}", r"flavors.onnx is \[1\]; a mapping"),
    ("flavors: {}\nmetadata: x", "metadata is 'x'; a mapping"),
    ("flavors: {onnxserve: {parity: [1]}}", r"flavors.onnxserve.parity is \[1\]; a mapping"),
    ("flavors: {onnxserve: {parity: {rows: many}}}", "flavors.onnxserve.parity.rows is 'many'; a whole number"),
    ("flavors: {onnxserve: {parity: {outputs: [{}]}}}", "flavors.onnxserve.parity.outputs.name is None; a text"),
    ("flavors: {onnxserve: {provenance: 3}}", "flavors.onnxserve.provenance is 3; a mapping"),
    ("flavors: {onnxserve: {outputs: [1]}}", "flavors.onnxserve.outputs is 1; a mapping"),
    ("flavors: {onnxserve: {outputs: [{name: y, shape: 1}]}}", "flavors.onnxserve.outputs.shape is 1; a list"),
    ("flavors: {onnxserve: {prediction: [[1]]}}", r"flavors.onnxserve.prediction is \[1\]; a text or a number"),
]


@pytest.mark.parametrize(("text", "words"), ODD)
def test_a_section_of_another_type_is_refused_where_it_is_read(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / MLMODEL).write_text(text)
    with pytest.raises(InvalidArtifact, match=f"cannot be understood: {words}") as caught:
        read_mlmodel(tmp_path)
    assert "\n" not in caught.value.message


def test_an_empty_entry_is_like_a_missing_entry(tmp_path: Path) -> None:
    (tmp_path / MLMODEL).write_text("flavors: {onnxserve: {parity: null, data: x}, onnx: null}\nsignature: null")
    assert read_mlmodel(tmp_path) == {"flavors": {"onnxserve": {"data": "x"}}}


def test_a_graph_with_inputs_needs_a_signature(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path)
    document = yaml.safe_load((folder / MLMODEL).read_text())
    del document["signature"]
    (folder / MLMODEL).write_text(yaml.safe_dump(document))
    with pytest.raises(InvalidArtifact, match="the signature has no inputs"):
        OnnxModel.load(folder)


def test_a_folder_without_the_file_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact, match="no MLmodel file"):
        read_mlmodel(tmp_path)


def test_aliases_stand_for_what_they_name(tmp_path: Path) -> None:
    (tmp_path / MLMODEL).write_text("metadata: &one {a: 1}\nagain: [*one, *one]")
    assert read_mlmodel(tmp_path)["again"] == [{"a": 1}, {"a": 1}]
