"""Folders of tiny models, a Redis, a certificate, and servers within this process."""

import itertools
import subprocess
from contextlib import ExitStack

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from tests.support.models import guarded_model, mixed_model, tensor_model
from tests.support.servers import opened, single_model, stock_model
from tests.support.services.redis_server import redis_server

MAKERS = {
    "mixed": mixed_model,
    "single": single_model,
    "tensor": tensor_model,
    "stock": stock_model,
    "guarded": guarded_model,
}


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory):
    """Return the folder of each model by its kind."""
    root = tmp_path_factory.mktemp("models")
    return {kind: make(root / kind) for kind, make in MAKERS.items()}


@pytest.fixture(scope="session")
def bias_folders(tmp_path_factory):
    """Return versions 1 to 4 of the single model; version v adds 1000 · v."""
    root = tmp_path_factory.mktemp("versions")
    return {
        str(version): single_model(root / str(version), 1000.0 * version) for version in range(1, 5)
    }


@pytest.fixture(scope="session")
def pyfunc_folders(tmp_path_factory):
    """See `save_pyfuncs`."""
    # The module imports MLflow, which takes a second.
    from tests.support.pyfuncs import save_pyfuncs

    return save_pyfuncs(tmp_path_factory.mktemp("pyfuncs"))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield f"{url}?socket_timeout=20"  # Ours is shorter than a pause of a busy machine.


@pytest.fixture
def serve_here(tmp_path):
    """Open servers in this process for endpoint → variant → fields, and wait until they
    are ready.

    `server` contains fields of the spec's server.
    """
    numbers = itertools.count()
    with ExitStack() as servers:

        def serve(endpoints, server=None, **capture):
            spec = ServerSpec.model_validate(server or {})
            return servers.enter_context(
                opened(tmp_path / f"state-{next(numbers)}", endpoints, spec, **capture)
            )

        yield serve


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Return a self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert = folder / "cert.pem"
    key = folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    command += f" -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(command.split(), check=True, capture_output=True)
    return cert, key
