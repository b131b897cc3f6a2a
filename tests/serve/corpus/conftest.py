"""A server, and its WSGI application in this process, with low limits that are cheap to
reach.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from mlflow_deploy_plugin.serve.assembly import open_server
from tests.serve.corpus.routes import MAX_BODY_BYTES, VERTEX, VERTEX_HEALTH
from tests.serve.corpus.wire import Wire
from tests.support.servers import gunicorn, variant, want, write_spec
from tests.support.waiting import wait_until

SERVER = {"max_body_bytes": MAX_BODY_BYTES, "request_timeout_seconds": 3, "threads": 12}
_VERTEX = {"AIP_HTTP_PORT": "8080", "AIP_PREDICT_ROUTE": VERTEX, "AIP_HEALTH_ROUTE": VERTEX_HEALTH}


@dataclass(frozen=True)
class Tried:
    """A server for the corpus."""

    running: Any
    wire: Wire

    @property
    def pids(self) -> set[int]:
        return {state.pid for state in read_workers(self.running.state_dir)}

    @property
    def log(self) -> str:
        text: str = self.running.log.read_text()
        return text


Start = Callable[..., Any]


def _write_state(folder, model_folders, server):
    """Write the state folder of a server of `routes.py`; `server` contains fields of
    its spec.
    """
    kinds = {"flights": "mixed", "tensor": "tensor", "single": "single"}
    want(folder, 1, {name: {"v": variant(model_folders[kind])} for name, kind in kinds.items()})
    write_spec(folder, "flights", ServerSpec.model_validate(server))


@pytest.fixture(scope="session")
def server(tmp_path_factory, model_folders):
    """The server of `routes.py` in this process."""
    folder = tmp_path_factory.mktemp("here")
    _write_state(folder, model_folders, SERVER)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _VERTEX.items():
            patch.setenv(name, value)
        server = open_server(folder)
    try:
        wait_until(lambda: not server.repository.not_ready_reason(), what="the server")
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def start(tmp_path_factory, model_folders):
    """Start a server with the endpoints of `routes.py`; keyword arguments are fields of
    its spec.

    `config` replaces gunicorn's configuration file.
    """

    @contextmanager
    def started(config=None, **fields):
        state_dir = tmp_path_factory.mktemp("state")
        server = {**SERVER, **fields}
        _write_state(state_dir, model_folders, server)
        with gunicorn(
            state_dir, spec=ServerSpec.model_validate(server), config=config, environment=_VERTEX
        ) as running:
            secrets = [str(state_dir).encode(), str(model_folders["mixed"].parent).encode()]
            port = int(running.url.rpartition(":")[2])
            yield Tried(running, Wire(port, secrets))

    return started


@pytest.fixture(scope="session")
def tried(start):
    """Yield a server. At the end, check that the same worker still runs and that its
    log has no traceback.
    """
    with start() as server:
        before = server.pids
        yield server
        assert server.pids == before, server.log
        assert "Traceback" not in server.log
