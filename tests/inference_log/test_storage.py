"""A folder or a URI names an inference log; the message of a mistake never holds a secret."""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log import locate_log


@pytest.mark.parametrize("name", ["log", "50%25 of it", "log#1", "what?"])
def test_a_folder_is_the_one_that_was_named(tmp_path: Path, name: str) -> None:
    assert locate_log(str(tmp_path / name)).root == str(tmp_path / name)


def test_a_file_uri_is_a_folder_too() -> None:
    location = locate_log("file:///some/log%20here/")
    assert (location.root, location.is_local) == ("/some/log here", True)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://AKIA:hidden@bucket/log", "credentials stand in AWS_ACCESS_KEY_ID"),
        ("https://me:hidden@host/log", "credentials stand in AWS_ACCESS_KEY_ID"),
        ("s3://bucket/log?secret_key=hidden", "another S3 API in AWS_ENDPOINT_URL"),
        ("s3:///log", "neither a folder nor s3://BUCKET/PREFIX"),
        ("s3:///x", "ONNXSERVE_LOG_URI: .* is neither a folder nor s3://BUCKET/PREFIX"),
        ("gs://bucket/log", "ONNXSERVE_LOG_URI: .* is neither a folder nor s3://BUCKET/PREFIX"),
        ("https://host/x", "ONNXSERVE_LOG_URI: .* is neither a folder nor s3://BUCKET/PREFIX"),
    ],
)
def test_another_uri_is_refused_without_a_word_of_its_secrets(uri: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message) as refused:
        locate_log(uri)
    assert "hidden" not in str(refused.value)
