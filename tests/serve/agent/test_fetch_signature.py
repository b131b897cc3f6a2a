"""Tests of the agent's fetch of versions that a key must have signed, from an artifact
store that other people change.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import mlflow.onnx
import pytest

from mlflow_deploy_plugin.core.errors import SignatureRefused
from mlflow_deploy_plugin.core.registry.model_files import version_digest
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.signatures import BUNDLE
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from tests.support.clocks import Clock
from tests.support.commands import done, onnxserve
from tests.support.keypairs import KeyFiles, write_key
from tests.support.models import adder
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

MODEL = "signed-adder"


@dataclass(frozen=True)
class Signed:
    """Versions 1 and 2 with their folders in the artifact store, and their key."""

    folders: dict[str, Path]
    keys: KeyFiles


@pytest.fixture(scope="module")
def signed(new_database, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    keys = write_key(tmp_path_factory.mktemp("keys"))
    folders = {}
    with tracking_at(new_database(store)):
        artifacts = (store / "artifacts").as_uri()
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("e", artifacts))
        for version in ("1", "2"):
            info = mlflow.onnx.log_model(
                adder(float(version)),
                name="model",
                registered_model_name=MODEL,
                pip_requirements=[],
            )
            done(f"sign models:/{MODEL}/{version} --key {keys.key}")
            (folders[version],) = store.glob(f"artifacts/models/{info.model_id}/artifacts")
        yield Signed(folders, keys)


@pytest.fixture
def folder(signed, tmp_path):
    """The folder of version 1, which is restored after the test."""
    folder = signed.folders["1"]
    shutil.copytree(folder, tmp_path / "backup")
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)


def agent(folder, clock=None):
    """Return the registry of an agent with the cache in `folder`."""
    return MlflowRegistry(ModelCache(folder / "cache", folder / "state"), clock or Clock(0.0))


def refusal(registry, trusted):
    with pytest.raises(SignatureRefused) as refused:
        registry.fetch(resolve(f"models:/{MODEL}/1"), str(trusted))
    return refused.value.message


def test_signature_is_not_part_of_the_digest(signed, folder):
    digest = version_digest(f"models:/{MODEL}/1")
    line = done(f"verify models:/{MODEL}/1 --key {signed.keys.public}")
    files = len(list(folder.iterdir())) - 1  # Without the signature.
    assert mentions(line, f"models:/{MODEL}/1", f"{files} files are signed", digest)
    (folder / BUNDLE).unlink()
    assert version_digest(f"models:/{MODEL}/1") == digest


def change_a_byte(folder, _):
    file = folder / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"!")


def take_all_files(folder, other):
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (change_a_byte, "model.onnx"),
        (take_all_files, "MLflow has registered"),
        (lambda folder, _: (folder / BUNDLE).unlink(), "onnxserve sign"),
        (lambda folder, other: shutil.copy(other / BUNDLE, folder), "model.onnx"),
        (lambda folder, _: (folder / "conda.yaml").unlink(), "conda.yaml"),
    ],
)
def test_tampered_version_is_refused_until_restored(signed, folder, tmp_path, tamper, reason):
    clock = Clock(0.0)
    registry = agent(tmp_path, clock)
    tamper(folder, signed.folders["2"])
    assert reason in refusal(registry, signed.keys.public)

    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    clock.now = 60.0
    fetched = registry.fetch(resolve(f"models:/{MODEL}/1"), str(signed.keys.public))
    assert fetched.digest == version_digest(f"models:/{MODEL}/1")
    assert not (fetched.folder / BUNDLE).exists()


def test_cached_version_needs_the_signature(signed, folder, tmp_path):
    registry = agent(tmp_path)
    assert registry.fetch(resolve(f"models:/{MODEL}/1")).version == "1"
    other = write_key(tmp_path, "other")
    message = refusal(registry, other.public)
    assert mentions(message, BUNDLE, str(other.public), "Key mismatch")
    done(f"sign models:/{MODEL}/1 --key {other.key}")
    fetched = registry.fetch(resolve(f"models:/{MODEL}/1"), str(other.public))
    assert fetched.version == "1"
    assert mentions(refusal(registry, tmp_path / "gone.pub"), "gone.pub", "No such file")


def test_signed_folder_is_copied_to_the_cache(signed, folder, tmp_path):
    registry = agent(tmp_path)
    resolved = resolve(str(folder))
    fetched = registry.fetch(resolved, str(signed.keys.public))
    assert fetched.folder.is_relative_to(tmp_path / "cache")
    assert fetched.folder.name == fetched.digest == version_digest(str(folder))
    assert fetched.signed_as == f"models:/{MODEL}/1"
    (folder / "added.py").touch()
    with pytest.raises(SignatureRefused, match=r"added\.py"):
        registry.fetch(resolved, str(signed.keys.public))


def test_verify_refuses_in_one_line(signed, folder):
    (folder / BUNDLE).write_text("{}")
    command = f"verify models:/{MODEL}/1 --key {signed.keys.public}"
    result = onnxserve(command)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert mentions(result.stderr, BUNDLE, str(signed.keys.public))
