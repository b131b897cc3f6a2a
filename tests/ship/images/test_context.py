"""Tests that equal inputs give build contexts with equal bytes, and that a Dockerfile
receives each value unchanged.
"""

import io
import os
import tarfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import NotInstalled
from mlflow_deploy_plugin.ship.images import context as module
from mlflow_deploy_plugin.ship.images.context import PROJECT_FILES, model_context, server_context
from tests.support.models import tensor_model

ROOT = Path(__file__).parents[3]


def archived(context):
    stream = io.BytesIO()
    context.write(stream)
    return stream.getvalue()


def test_equal_models_give_equal_bytes(tmp_path):
    first, second = (tensor_model(tmp_path / name) for name in ("a", "b"))
    os.utime(second / "MLmodel", (0, 0))
    (second / "MLmodel").chmod(0o600)
    contexts = [
        model_context("onnxserve:cpu", folder, {"k": "v"}, {}) for folder in (first, second)
    ]
    assert archived(contexts[0]) == archived(contexts[1])
    assert contexts[0].digest == contexts[1].digest
    (second / "MLmodel").write_text("{}")
    assert model_context("onnxserve:cpu", second, {"k": "v"}, {}).digest != contexts[0].digest


def test_files_are_readable_by_everybody(tmp_path):
    context = model_context("base", tensor_model(tmp_path / "m"), {}, {})
    with tarfile.open(fileobj=io.BytesIO(archived(context))) as archive:
        entries = {entry.name: entry for entry in archive}
    assert list(entries) == sorted(entries)
    assert {entries[name].mode for name in entries if entries[name].isfile()} == {0o644}
    assert entries["rootfs/opt/ml/model"].isdir()
    assert entries["rootfs/opt/ml/model/MLmodel"].isfile()


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("a b", '"a b"'),
        ('say "x"', r'"say \"x\""'),
        ("$HOME", r'"\$HOME"'),
        ("two\nRUN lines", '"two RUN lines"'),
    ],
)
def test_registry_values_cannot_add_dockerfile_instructions(value, line):
    context = model_context("base", None, {"label": value}, {"ONNXSERVE_MODEL_URI": value})
    assert context.dockerfile.splitlines()[1:3] == [
        f"ENV ONNXSERVE_MODEL_URI={line}",
        f"LABEL label={line}",
    ]


def test_wheel_contains_the_files_of_server_images():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    brought = "\n".join(setup["options.data_files"].values()).split()
    assert sorted(brought) == sorted(PROJECT_FILES)
    listing = "\n".join(server_context().listing())
    for name in (*PROJECT_FILES, "mlflow_deploy_plugin/  ("):
        assert name in listing


def test_installation_without_these_files_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "site-packages" / "mlflow_deploy_plugin")
    monkeypatch.setattr(
        module, "distribution", lambda name: type("Distribution", (), {"files": []})
    )
    with pytest.raises(NotInstalled, match=r"lacks docker/Dockerfile.*--server-image"):
        server_context()
