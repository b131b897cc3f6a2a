"""`onnxserve fetch`, as KServe's init container runs it: any runtime gets the files of
a version that was checked.
"""

import shutil
import subprocess
import sys

import mlflow.onnx
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_deploy_plugin.cli.commands import main
from tests.support.keypairs import write_key
from tests.support.models import adder
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at


@pytest.fixture(scope="module")
def store(new_database, tmp_path_factory):
    """The store with versions 1 (@champion, signed) and 2 of `flights`, and a key."""
    folder = tmp_path_factory.mktemp("store")
    keys = write_key(folder)
    with tracking_at(new_database(folder)):
        artifacts = (folder / "artifacts").as_uri()
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("e", artifacts))
        for summand in (1, 2):
            mlflow.onnx.log_model(
                adder(summand), name="m", registered_model_name="flights", pip_requirements=[]
            )
        MlflowClient().set_registered_model_alias("flights", "champion", "1")
        assert run(f"sign models:/flights/1 --key {keys.key}").exit_code == 0
        yield folder


def run(line):
    return CliRunner().invoke(main, line.split())


def refusal(line):
    result = run(f"fetch {line}")
    assert result.exit_code == 1, result.output
    (message,) = result.output.splitlines()
    return message


def adds(folder, summand):
    return (folder / "model.onnx").read_bytes() == adder(summand).SerializeToString()


def test_storage_container_replaces_the_earlier_version(store, tmp_path):
    folder = tmp_path / "models"
    for uri, version in (("models:/flights@champion", 1), ("mlflow://flights/2", 2)):
        assert mentions(run(f"fetch {uri} {folder}").output, f"version {version}", str(folder))
        assert adds(folder, version)
        assert {path.name for path in folder.iterdir()} >= {"MLmodel", "model.onnx"}
        assert not {".onnxserve", "model.sig"} & {path.name for path in folder.iterdir()}
        assert {path.stat().st_mode & 0o444 for path in folder.iterdir()} == {0o444}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("mlflow://flights@gone {new}", ["flights", "alias gone"]),
        ("models:/flights/2 {new} --require signature={key}", ["version 2", "onnxserve sign"]),
        ("models:/flights/2 {new} --require gate=passed", ["version 2", "gate=passed"]),
        ("models:/flights/2 {file}/models", ["{file}/models", "Not a directory"]),
        ("models:/flights/2 {store}", ["{store}", "empty folder"]),
        ("{store} {new}", ["{store}", "folder"]),
    ],
)
def test_storage_container_refuses_in_one_line(store, tmp_path, arguments, names):
    places = {"new": tmp_path, "key": store / "release.pub", "file": __file__, "store": store}
    message = refusal(arguments.format(**places))
    assert mentions(message, *[name.format(**places) for name in names])
    assert not list(tmp_path.iterdir())


def test_storage_container_removes_only_links(store, tmp_path):
    folder = tmp_path / "models"
    (tmp_path / "kept").mkdir()
    assert run(f"fetch models:/flights/1 {folder}").exit_code == 0
    for name in ("link", ".onnxserve"):
        (folder / name).symlink_to(tmp_path / "kept")
    assert run(f"fetch models:/flights/2 {folder}").exit_code == 0
    assert adds(folder, 2)
    assert list((tmp_path / "kept").iterdir()) == []
    assert not {"link", ".onnxserve"} & {path.name for path in folder.iterdir()}


@pytest.mark.long
def test_parallel_storage_containers_take_turns(store, tmp_path):
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "fetch", "models:/flights/1"]
    running = [subprocess.Popen([*command, tmp_path]) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert adds(tmp_path, 1)
    assert not list(tmp_path.glob(".*"))


def test_storage_container_refuses_hostile_keys(store, bucket, tmp_path):
    (files,) = [path.parent for path in store.glob("artifacts/**/model.sig")]
    # MLflow keeps its client, so both versions are in one bucket.
    for root, key, names in (
        ("m", "a/../../x", ["'m/a'", "'m'"]),
        ("n", "MLmodel/x", ["n/MLmodel", "directory"]),
    ):
        for file in files.iterdir():
            bucket.objects[f"b/root/{root}/{file.name}"] = file.read_bytes()
        bucket.objects[f"b/root/{root}/{key}"] = b""
        version = MlflowClient().create_model_version("flights", f"s3://b/root/{root}").version
        message = refusal(f"models:/flights/{version} {tmp_path / 'models'}")
        assert mentions(message, *names)
        assert str(tmp_path) not in message


def test_storage_container_keeps_files_from_its_own_name(store, tmp_path):
    assert run(f"fetch models:/flights/1 {tmp_path}").exit_code == 0
    (graph,) = [
        path
        for path in store.glob("artifacts/**/model.onnx")
        if path.read_bytes() == adder(2).SerializeToString()
    ]
    hostile = graph.parent / ".onnxserve"
    hostile.write_text("")
    try:
        assert mentions(refusal(f"models:/flights/2 {tmp_path}"), "flights/2", "'.onnxserve'")
    finally:
        hostile.unlink()
    assert adds(tmp_path, 1)


def test_storage_container_requires_unchanged_files(store, tmp_path):
    key = f"--require signature={store / 'release.pub'}"
    assert run(f"fetch models:/flights/1 {tmp_path} {key}").exit_code == 0
    graphs = store.glob("artifacts/**/model.onnx")
    (graph,) = [path for path in graphs if (path.parent / "model.sig").exists()]
    shutil.copy(graph, store / "backup")
    graph.write_bytes(adder(3).SerializeToString())
    try:
        message = refusal(f"models:/flights/1 {tmp_path} {key}")
    finally:
        shutil.copy(store / "backup", graph)
    assert mentions(message, "version 1", "model.onnx")
    assert adds(tmp_path, 1)
