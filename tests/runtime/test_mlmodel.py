"""The MLmodel file as a document, whatever stands in it."""

import os
from pathlib import Path

import pytest

from mlflow_deploy_plugin.errors import InvalidArtifact
from mlflow_deploy_plugin.runtime import MLMODEL, read_mlmodel


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


def test_a_folder_without_the_file_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidArtifact, match="no MLmodel file"):
        read_mlmodel(tmp_path)
