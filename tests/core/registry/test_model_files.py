import json
import os
import re
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path

import mlflow
import mlflow.onnx
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin import load_model
from mlflow_deploy_plugin.core.errors import InvalidArtifact, InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.connection import refuse_folder
from mlflow_deploy_plugin.core.registry.model_files import (
    download,
    fetch,
    fetch_mlmodel,
    refuse_links,
    version_digest,
)
from tests.support.models import IDENTITY, parse_graph, write_model
from tests.support.refusals import refused
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("source", ["models:/tiny/2", "models:/{model_id}", "runs:/{run_id}/model"])
def test_version_files_are_copied(store, artifacts, tmp_path, source):
    folder = download(source.format(model_id=store.model_id, run_id=store.run_id), tmp_path)
    assert folder.is_relative_to(tmp_path)
    assert names(folder) == names(artifacts)
    assert (folder / "MLmodel").read_bytes() == (artifacts / "MLmodel").read_bytes()


def test_files_written_by_loading_are_ignored(artifacts, tmp_path):
    folder = Path(shutil.copytree(artifacts, tmp_path / "model"))
    before = version_digest(str(folder))
    for name in ("registered_model_meta", "code/__pycache__/module.cpython-311.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the loader")
    assert version_digest(str(folder)) == before
    assert names(download(str(folder), tmp_path / "copy")) == names(artifacts)
    for name in ("code/registered_model_meta", "model.sig/code.py", "__pycache__/code/a.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of the author")
        assert version_digest(str(folder)) != before
        before = version_digest(str(folder))


def test_missing_files_are_not_found(store, tmp_path):
    with refused(NotFound, "folder /no/such"):
        download("file:///no/such", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("step", ["..", "%2e%2E", "x/../.."])
def test_path_outside_of_run_is_refused(tmp_path, step):
    """A user who edits a model chooses the dataset of its gate, which MLflow's server
    runs with its own rights.
    """
    (tmp_path / "secret.csv").write_text("of this machine")
    with tracking_at(f"sqlite:///{tmp_path}/mlflow.db"):
        client = MlflowClient()
        run_id = client.create_run(
            client.create_experiment("x", f"{tmp_path}/artifacts")
        ).info.run_id
        client.log_text(run_id, "of the run", "held_out.csv")
        assert (
            fetch(f"runs:/{run_id}/held_out.csv", tmp_path / "copy", "it").read_text()
            == "of the run"
        )
        for location in (
            f"runs:/{run_id}/{step}/../../secret.csv",
            f"models:/m/1/{step}/../../secret.csv",
        ):
            with refused(InvalidConfig, "the dataset", "segment .."):
                fetch(location, tmp_path / "copy", "the dataset")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_are_refused(tmp_path, link):
    secret = tmp_path / "secret"
    secret.write_text("of this machine")
    model = tmp_path / "model"
    (model / "data").mkdir(parents=True)
    link(secret, model / "data" / "weights")
    with refused(InvalidArtifact, "'data/weights'", "a link"):
        refuse_links(model)
    with refused(InvalidArtifact, "'data/weights'", "a link"):
        download(str(model), tmp_path / "copy")


def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "model.onnx")
    with refused(InvalidArtifact, "neither"):
        refuse_links(tmp_path)


def test_unknown_store_scheme_is_refused(tmp_path):
    with refused(InvalidConfig, "foo:/bar", "foo:…", "s3, gs"):
        download("foo:/bar", tmp_path)
    with refused(InvalidConfig, "model:…", "'models'"):
        download("model:/flights/1", tmp_path)


@pytest.fixture(scope="module")
def logged(mlflow_server):
    """Log a model in a run, and register it as version 1 of `read`."""
    with tracking_at(mlflow_server.url), mlflow.start_run():
        return mlflow.onnx.log_model(
            parse_graph(IDENTITY), name="model", registered_model_name="read", pip_requirements=[]
        )


def test_fetched_mlmodel_leaves_no_copy(mlflow_server, logged, tmp_path, monkeypatch):
    with tracking_at(mlflow_server.url):
        sources = [
            logged.model_uri,
            "models:/read/1",
            MlflowClient().get_logged_model(logged.model_id).artifact_location,
        ]
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

        read = [fetch_mlmodel(source).model_id for source in sources]

    assert read == [logged.model_id] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["models:/read/1", "models:/{model_id}", "runs:/{run_id}/model"])
def test_folder_named_by_server_is_refused(mlflow_server, logged, tmp_path, source):
    """A user who may change the server could make its readers copy and serve any
    folder.
    """
    secret = tmp_path / "secret"
    write_model(secret)
    write_model(secret / "model")
    forged = json.dumps(str(secret)).encode()
    with proxy_to(mlflow_server.host, mlflow_server.port) as proxy, tracking_at(proxy.url):
        source = source.format(model_id=logged.model_id, run_id=logged.run_id)
        proxy.rewrite = lambda body: re.sub(
            rb'("artifact_(?:uri|location)": ?)"[^"]*"', rb"\1" + forged, body
        )
        with refused(
            InvalidConfig,
            "names the folder",
            str(secret),
            "MLFLOW_TRACKING_URI",
            "--artifacts-destination",
        ):
            download(source, tmp_path / "copy")
        with refused(InvalidConfig, "names the folder"):
            fetch_mlmodel(source)
        with refused(InvalidConfig, "names the folder"):
            load_model(source)
    assert names(tmp_path / "copy") == set()


@pytest.mark.parametrize(
    ("server", "folder", "is_read"),
    [
        ("http://127.0.0.1:9", "/work/mlruns/0/models/m-1/artifacts", True),
        ("http://localhost:9", "file:///work/mlruns/0/models/m-1/artifacts", True),
        ("http://mlflow:9", "/work/mlruns/0/models/m-1/artifacts", False),
        ("http://127.0.0.1:9", "/work/mlruns/../secret", False),
        ("http://127.0.0.1:9", "file:///work/mlruns/%2e%2e/secret", False),
        ("http://127.0.0.1:9", "/work/mlruns/%2e%2e/secret", False),
        ("http://127.0.0.1:9", "/etc", False),
        ("http://127.0.0.1:9", "FILE:/etc", False),
        ("http://127.0.0.1:9", "file:///etc", False),
        ("http://127.0.0.1:9", r"C:\Users\eva", False),
        ("http://mlflow:9", "s3://bucket/etc", True),
        ("sqlite:///mlflow.db", "/etc", True),
    ],
)
def test_only_local_server_names_mlflow_folder(server, folder, is_read):
    """The README logs a model to mlflow.db before it starts a server in the same
    folder.
    """
    with (
        tracking_at(server),
        nullcontext() if is_read else refused(InvalidConfig, "names the folder"),
    ):
        refuse_folder(folder)


@pytest.mark.parametrize(
    "address", ["file://[x/y", "http://[x/y", "file:///etc%00/mlruns", "mlruns\0/a"]
)
def test_invalid_artifact_address_is_refused(address):
    with (
        tracking_at("http://127.0.0.1:9"),
        refused(InvalidConfig, "names the invalid address", repr(address)),
    ):
        refuse_folder(address)


@pytest.mark.parametrize("server", ["http://127.0.0.1:9", "http://mlflow:9"])
@pytest.mark.parametrize(
    ("folder", "is_read"),
    [
        ("{data}/mlflow/0/models/m-1/artifacts", True),
        ("file://{data}/mlflow/0/models/m-1/artifacts", True),
        ("{data}/other", True),
        ("{data}/mlflow-secret", False),
        ("{data}", False),
        ("{data}/mlflow/../secret", False),
        ("{data}/mlflow/%2e%2e/secret", False),
        ("file://{data}/mlflow/%2e%2e/secret", False),
        ("{data}/mlflow/link", False),
    ],
)
def test_server_names_only_configured_folders(server, folder, is_read, tmp_path, monkeypatch):
    """`mlflow server --default-artifact-root FOLDER` stores artifacts in a folder that
    its clients also have.
    """
    (tmp_path / "data" / "mlflow").mkdir(parents=True)
    (tmp_path / "data" / "mlflow" / "link").symlink_to("/etc")
    (tmp_path / "nfs").symlink_to("data")
    listed = f"{tmp_path}/nfs/mlflow, {tmp_path}/data/other/,"
    monkeypatch.setenv("ONNXSERVE_ARTIFACT_FOLDERS", listed)
    data = tmp_path / "data"
    outcome = (
        nullcontext()
        if is_read
        else refused(InvalidConfig, "names the folder", "ONNXSERVE_ARTIFACT_FOLDERS")
    )
    with tracking_at(server), outcome:
        refuse_folder(folder.format(data=data))
