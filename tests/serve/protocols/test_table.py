"""Protocols of other distributions that cannot be served are named."""

import subprocess
import sys

import pytest

from tests.support.refusals import mentions

TOY = """
from mlflow_deploy_plugin.serve.protocols.protocol import Description, Protocol
def one(*paths, **more):
    return Protocol("toy", None, paths=paths, **more)
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Return a function that adds a distribution with a protocol to the path."""

    def install(name, code, target="PROTOCOL"):
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[onnxserve.protocols]\ntoy={name}:{target}\n")
        (tmp_path / f"{name}.py").write_text(f"{TOY}\nPROTOCOL = {code}\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return install


def refusal():
    """Return the error of a server that cannot import its routes."""
    command = [sys.executable, "-c", "import mlflow_deploy_plugin.serve.http.routes"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    return run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("no_such_name", ("no_such_name", "uninstall")),
        ("exit()", ("cannot be loaded",)),
        ("None", ("not a Protocol",)),
        ("one('/a b')", ("/a b",)),
        ("one('/endpoints/x/y')", ("/endpoints/x/y",)),
        ("one('/predict')", ("/predict", "onnxserve")),
        ("one('/endpoints/{endpoint}/jobs/list')", ("/endpoints/{endpoint}/jobs/list",)),
        ("one('/v1/models/{endpoint}:predict')", ("tfserving", "mlflow-onnxserve")),
        ("one(descriptions=(Description('/metrics', dict, '', {}),))", ("/metrics",)),
    ],
)
def test_unusable_protocol_is_named(installed, code, words):
    installed("unusable", code)
    assert mentions(refusal(), "toy = unusable:PROTOCOL", "unusable 1.0", *words)


def test_path_of_two_distributions_is_refused(installed):
    for name in ("first", "second"):
        installed(name, "one('/toy/path', '/endpoints/{endpoint}/toy')")
    assert mentions(refusal(), "/toy/path", "first 1.0", "second 1.0")


def test_server_with_unusable_protocol_ends(installed, serve, model_folders):
    installed("unusable", "one('/predict')")
    running = serve(str(model_folders["single"]))
    assert running.process.wait(60) == 1
    assert mentions(running.log.read_text(), "/predict", "toy = unusable:PROTOCOL")
