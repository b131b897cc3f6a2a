"""A folder or a URI locates an inference log; error messages never contain a secret."""

import os
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.inference_log.storage import (
    PART_BYTES,
    endpoint_folder,
    iter_hours,
    list_endpoints,
    locate_log,
    write_file,
)
from tests.support.disk import files_of_at_most


@pytest.mark.parametrize("name", ["log", "50%25 of it", "log#1", "what?"])
def test_folder_names_are_literal(tmp_path, name):
    assert locate_log(str(tmp_path / name)).root == str(tmp_path / name)


def test_file_uri_is_a_folder():
    location = locate_log("file:///some/log%20here/")
    assert (location.root, location.is_local) == ("/some/log here", True)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://AKIA:hidden@bucket/log", "set credentials in AWS_ACCESS_KEY_ID"),
        ("https://me:hidden@host/log", "set credentials in AWS_ACCESS_KEY_ID"),
        ("s3://bucket/log?secret_key=hidden", "another S3 API in AWS_ENDPOINT_URL"),
        ("s3://[bucket:hidden/log", "ONNXSERVE_LOG_URI is not a URI: Invalid IPv6 URL"),
        ("s3:///x", "ONNXSERVE_LOG_URI: .* is neither a folder nor s3://BUCKET/PREFIX"),
        ("gs://bucket/log", "ONNXSERVE_LOG_URI: .* is neither a folder nor s3://BUCKET/PREFIX"),
    ],
)
def test_invalid_uri_hides_its_secrets(uri, message):
    with pytest.raises(InvalidConfig, match=message) as refused:
        locate_log(uri)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("as_text", [str, Path.as_uri])
def test_file_is_written_and_replaced_whole(tmp_path, as_text):
    location = locate_log(as_text(tmp_path / "a log"))
    for content in (b"1", b"22"):
        write_file(location, "endpoint=e/f.parquet", content)
    (file,) = (path for path in (tmp_path / "a log").rglob("*") if path.is_file())
    assert file == tmp_path / "a log/endpoint=e/f.parquet"
    assert file.read_bytes() == b"22"


@pytest.mark.parametrize("name", ["flights", "Sales Forecast", "50% off?#/=", "größe"])
def test_rows_of_any_model_name_are_found(tmp_path, name):
    location = locate_log(str(tmp_path))
    folder = f"{endpoint_folder(name)}/date=2026-06-01/hour=12"
    write_file(location, f"{folder}/f.parquet", b"")
    assert list_endpoints(location) == [name]
    assert [hour.folder for hour in iter_hours(location, name)] == [f"{location.root}/{folder}"]


def test_folders_of_long_names_are_not_taken():
    name = "x" * 201
    digest = endpoint_folder(name).removeprefix("endpoint=")
    assert endpoint_folder(digest) not in ("endpoint=" + digest, endpoint_folder("X" * 201))


def test_full_disk_leaves_no_partial_file(tmp_path):
    location = locate_log(str(tmp_path / "log"))
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_file(location, "f.parquet", bytes(1000))
    assert list((tmp_path / "log").iterdir()) == []


KEY_ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd"


def test_file_in_a_bucket_is_read_back(bucket):
    location = locate_log("s3://b/some/log")
    write_file(location, "endpoint=e/f.parquet", b"content")
    assert bucket.objects == {"b/some/log/endpoint=e/f.parquet": b"content"}
    with location.filesystem.open_input_stream("b/some/log/endpoint=e/f.parquet") as stream:
        assert stream.read() == b"content"


def test_objects_are_encrypted_as_configured(bucket, monkeypatch):
    encryptions = {
        "": (None, None),
        "AES256": ("AES256", None),
        "aws:kms": ("aws:kms", None),
        f"aws:kms:{KEY_ARN}": ("aws:kms", KEY_ARN),
    }
    large = os.urandom(PART_BYTES + 5)
    for setting in encryptions:
        monkeypatch.setenv("ONNXSERVE_LOG_SSE", setting)
        location = locate_log("s3://b/log")
        write_file(location, "small", b"x")
        write_file(location, "large", large)
        assert bucket.objects["b/log/large"] == large
    sse = "x-amz-server-side-encryption"
    for request in (("PUT", "small"), ("POST", "uploads")):
        sent = [(h.get(sse), h.get(sse + "-aws-kms-key-id")) for h in bucket.headers_of(*request)]
        assert sent == list(encryptions.values())


def test_unknown_encryption_is_refused(monkeypatch):
    monkeypatch.setenv("ONNXSERVE_LOG_SSE", "AES128")
    with pytest.raises(InvalidConfig, match="ONNXSERVE_LOG_SSE"):
        write_file(locate_log("s3://b/log"), "f", b"x")


def test_api_without_encryption_names_the_setting(bucket, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_LOG_SSE", "AES256")
    bucket.refusals = [501]  # like OpenStack Swift
    with pytest.raises(OSError, match=r"s3://b/log/f:.*NotImplemented.*ONNXSERVE_LOG_SSE.*AES256$"):
        write_file(locate_log("s3://b/log"), "f", b"x")
    assert len(bucket.asked) == 1
    assert bucket.objects == {}


@pytest.mark.parametrize("status", [503, 0])
def test_temporary_bucket_errors_are_retried(bucket, status):
    bucket.refusals = [status, status]
    write_file(locate_log("s3://b/log"), "f", b"x")
    assert bucket.objects == {"b/log/f": b"x"}


def test_dropped_connection_names_the_url(bucket, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.serve.inference_log.storage._ATTEMPTS", 1)
    bucket.refusals = [0, 0]
    with pytest.raises(OSError, match=r"^s3://b/log/f: Connection"):
        write_file(locate_log("s3://b/log"), "f", b"x")


def test_rotated_credentials_are_used(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    def write_as(key):
        (tmp_path / "credentials").write_text(
            f"[default]\naws_access_key_id={key}\naws_secret_access_key=x\n"
        )
        write_file(locate_log("s3://b/log"), "f", b"x")

    write_as("OLD")
    bucket.refusals = [403]
    with pytest.raises(OSError, match="AccessDenied"):
        write_as("NEW")
    write_as("NEW")
    used = [
        headers["authorization"].split("Credential=")[1][:3]
        for headers in bucket.headers_of("PUT", "f")
    ]
    assert used == ["OLD", "OLD", "NEW"]


def test_partial_upload_leaves_nothing(bucket):
    location = locate_log("s3://b/log")
    write_file(location, "f", b"before")
    bucket.refusals = [403] * 3
    with pytest.raises(OSError, match="AccessDenied"):
        write_file(location, "f", bytes(PART_BYTES + 1))
    assert bucket.objects == {"b/log/f": b"before"}
    assert bucket.uploads == {}
