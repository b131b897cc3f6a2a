"""Captured answers as outputs. The shadow monitor and back-tests compare them
(tests/watch, tests/promote/replay).
"""

import pyarrow as pa

from mlflow_deploy_plugin.serve.inference_log.tables import (
    as_array,
    captured_outputs,
    count_versions,
    describe_answers,
    with_both_names,
)
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from tests.support.classifiers import write_classifier

ROWS = pa.table(
    {
        "prediction": pa.array([0, 1, 1]),
        "output.probabilities": pa.array([[0.8, 0.2], [0.1, 0.9], [0.3, 0.7]]),
        "_model": ["m"] * 3,
        "_version": ["1", "2", "2"],
    }
)


def test_the_outputs_have_the_names_and_shapes_of_the_version(tmp_path):
    artifact = describe_answers(read_artifact(write_classifier(tmp_path / "model")), ROWS, ())
    outputs = captured_outputs(artifact, ROWS, ())
    assert outputs["label"].tolist() == [0, 1, 1]
    assert outputs["probabilities"].shape == (3, 2)
    assert list(captured_outputs(artifact, ROWS, ["output.probabilities"])) == ["label"]


def test_answers_of_a_version_without_files_are_described_by_their_types():
    artifact = describe_answers(None, ROWS, ())
    roles = {output.name: output.role for output in artifact.outputs}
    assert roles == {"prediction": "label", "probabilities": "values"}


def test_lists_of_one_length_are_an_array():
    array = as_array(pa.array([[[1.0, 2.0]], [[3.0, 4.0]]]))
    assert array is not None
    assert array.shape == (2, 1, 2)
    assert as_array(pa.array([[1.0], [1.0, 2.0]])) is None
    words = as_array(pa.array(["a", None, "a"]).dictionary_encode())
    assert words is not None
    assert words.tolist() == ["a", None, "a"]


def test_the_most_frequent_version_is_first():
    assert list(count_versions(ROWS).items()) == [(("m", "2"), 2), (("m", "1"), 1)]


def test_a_single_answer_has_two_names(tmp_path):
    artifact = read_artifact(write_classifier(tmp_path / "model"))
    assert with_both_names(["prediction", "a"], artifact) == {"prediction", "output.label", "a"}
    assert with_both_names(["a"], artifact) == {"a"}
