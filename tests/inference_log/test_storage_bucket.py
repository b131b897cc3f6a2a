"""A log behind an S3 API: whole objects, encrypted as asked, in parts where they are large, tried again."""

import os
from collections.abc import Iterator

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log import locate_log
from mlflow_deploy_plugin.inference_log.storage import PART_BYTES, write_file
from tests.support.services.s3 import Bucket, s3_server

KEY_ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with s3_server() as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
        yield bucket


def test_what_is_written_is_read_back(bucket: Bucket) -> None:
    location = locate_log("s3://b/some/log")
    write_file(location, "endpoint=e/f.parquet", b"content")
    assert bucket.objects == {"b/some/log/endpoint=e/f.parquet": b"content"}
    with location.filesystem.open_input_stream("b/some/log/endpoint=e/f.parquet") as stream:
        assert stream.read() == b"content"


@pytest.mark.parametrize(
    ("setting", "algorithm", "key"),
    [
        ("", None, None),
        ("AES256", "AES256", None),
        ("aws:kms", "aws:kms", None),
        (f"aws:kms:{KEY_ARN}", "aws:kms", KEY_ARN),
    ],
)
def test_objects_are_encrypted_as_asked_whole_and_in_parts(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, setting: str, algorithm: str | None, key: str | None
) -> None:
    monkeypatch.setenv("ONNXSERVE_LOG_SSE", setting)
    large = os.urandom(2 * PART_BYTES + 5)
    location = locate_log("s3://b/log")
    write_file(location, "small", b"x")
    write_file(location, "large", large)
    assert bucket.objects["b/log/large"] == large
    sse = "x-amz-server-side-encryption"
    asked = [*bucket.headers_of("PUT", "small"), *bucket.headers_of("POST", "uploads")]
    assert [(h.get(sse), h.get(sse + "-aws-kms-key-id")) for h in asked] == [(algorithm, key)] * 2


def test_an_encryption_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSERVE_LOG_SSE", "AES128")
    with pytest.raises(InvalidConfig, match="ONNXSERVE_LOG_SSE"):
        write_file(locate_log("s3://b/log"), "f", b"x")


def test_an_api_that_does_not_encrypt_is_an_error_that_names_the_setting(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXSERVE_LOG_SSE", "AES256")
    bucket.refusals = [501]  # as OpenStack Swift does
    with pytest.raises(OSError, match=r"s3://b/log/f: .*NotImplemented.*; ONNXSERVE_LOG_SSE asks for AES256$"):
        write_file(locate_log("s3://b/log"), "f", b"x")
    assert (len(bucket.asked), bucket.objects) == (1, {})


@pytest.mark.parametrize("status", [503, 500, 0])
def test_what_is_refused_for_the_moment_is_tried_again(bucket: Bucket, status: int) -> None:
    bucket.refusals = [status, status]
    write_file(locate_log("s3://b/log"), "f", b"x")
    assert bucket.objects == {"b/log/f": b"x"}


def test_a_bucket_that_refuses_is_an_error_that_says_so(bucket: Bucket) -> None:
    bucket.refusals = [403]
    with pytest.raises(OSError, match=r"s3://b/log/f: .*AccessDenied"):
        write_file(locate_log("s3://b/log"), "f", b"x")


def test_half_an_upload_leaves_nothing(bucket: Bucket) -> None:
    location = locate_log("s3://b/log")
    write_file(location, "f", b"before")
    bucket.refusals = [403] * 3
    with pytest.raises(OSError, match="AccessDenied"):
        write_file(location, "f", bytes(2 * PART_BYTES))
    assert (bucket.objects, bucket.uploads) == ({"b/log/f": b"before"}, {})
