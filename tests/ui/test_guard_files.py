"""Tests of the files of judged versions that an editor replaces by bytes of the same
size with the same time: in a folder, in S3, and behind MLflow's artifact proxy.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow.server import handlers

from mlflow_deploy_plugin.core.errors import RegistryUnavailable
from mlflow_deploy_plugin.ui import approved_files
from mlflow_deploy_plugin.ui.approved_files import ChangedFilesSearch
from mlflow_deploy_plugin.ui.audit_trail import AuditTrail
from mlflow_deploy_plugin.ui.guard import mlflow_stores
from tests.support.refusals import mentions
from tests.support.services.s3 import NEEDS_S3, own_bucket

WEIGHTS = "data/weights.bin"


class Place:
    """The address of the files of a version, and a function that replaces a file."""

    def __init__(self, uri, folder, bucket=None):
        self.uri = uri
        self.folder = folder
        self.bucket = bucket

    def put(self, name, content):
        if self.bucket is not None:
            self.bucket.put_object(Key=f"files/{name}", Body=content)
            return
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))


@pytest.fixture(params=["folder", "proxy", pytest.param("s3", marks=NEEDS_S3)])
def place(request, tmp_path, monkeypatch):
    if request.param == "s3":
        with own_bucket() as bucket:
            yield Place(f"s3://{bucket.name}/files", None, bucket)
        return
    uri = str(tmp_path / "files")
    if request.param == "proxy":
        monkeypatch.setattr(handlers, "_artifact_repo", None)
        monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(tmp_path))
        uri = "mlflow-artifacts:/files"
    yield Place(uri, tmp_path / "files")


@pytest.fixture
def model(mlflow_app, place, tmp_path):
    """A model whose version at the place has passed the gate."""
    model = mlflow_app.model(versions=0)
    copy = Place("", tmp_path / "copy")
    for each in (place, copy):
        each.put("MLmodel", b"model_id: m")
        each.put(WEIGHTS, b"judged")
    mlflow_app.registry.create_model_version(model, place.uri)
    mlflow_app.stands(model, "1", "passed", "all 5 checks passed", copy.folder)
    return model


def test_same_size_before_the_move_is_refused(model, place):
    assert model.enter("1") == 200
    place.put(WEIGHTS, b"forged")
    assert model.enter("1", "Archived") == 200
    for to in ("Production", "@champion"):
        assert mentions(model.refusal("1", to), "differ")
    place.put(WEIGHTS, b"judged")
    assert model.enter("1") == 200


def test_same_size_while_served_is_found(model, place, monkeypatch):
    monkeypatch.setattr(approved_files, "_PAUSE_SECONDS", 0)
    search = ChangedFilesSearch(AuditTrail())

    def changed():
        with model.mlflow.app.test_request_context():
            return [entry for entry in search.find() if entry.model == model]

    assert model.enter("1") == 200
    assert changed() == []
    place.put(WEIGHTS, b"forged")
    (found,) = changed()
    assert (found.version, found.place) == ("1", "Production")
    assert found.now not in ("", found.recorded)


def test_slow_files_are_503_with_their_size(mlflow_app, monkeypatch):
    model = mlflow_app.model()
    model.passed("1")
    with (model.files("1") / "weights.bin").open("wb") as sparse:
        sparse.truncate(2**40)
    monkeypatch.setenv("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "1")
    answer = model.ask("1")
    assert answer.status_code == 503
    size = 2**40 + (model.files("1") / "MLmodel").stat().st_size
    named = (f"{size:,} bytes", "1 seconds", "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT")
    assert mentions(answer.json["message"], *named)
    (model.files("1") / "weights.bin").unlink()
    assert model.enter("1") == 200


def test_many_small_files_are_503_after_the_deadline(mlflow_app, monkeypatch):
    model = mlflow_app.model()
    model.passed("1")
    monkeypatch.setattr(mlflow_stores, "_READING_SECONDS", -1)
    assert model.ask("1").status_code == 503
    monkeypatch.undo()
    assert model.enter("1") == 200


def test_large_files_of_a_model_leave_readers_to_others(mlflow_app, monkeypatch):
    large = mlflow_app.model()
    other = mlflow_app.model()
    other.passed("1")
    with (large.files("1") / "weights.bin").open("wb") as sparse:
        sparse.truncate(2**40)
    monkeypatch.setenv("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "1")

    def read():
        with mlflow_app.app.test_request_context(), pytest.raises(RegistryUnavailable):
            mlflow_stores.files_digest(large, "1")

    with ThreadPoolExecutor(2 * mlflow_stores._READERS) as threads:
        reads = [threads.submit(read) for _ in range(2 * mlflow_stores._READERS)]
        assert other.enter("1") == 200
        for each in reads:
            each.result()


def test_pipe_between_the_files_is_refused(mlflow_app):
    model = mlflow_app.model()
    model.passed("1")
    os.mkfifo(model.files("1") / "weights.bin")
    assert mentions(model.refusal("1"), "cannot be read")
