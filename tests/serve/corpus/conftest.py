"""A server for the corpus, and one in this process, with low limits that are cheap to
reach.
"""

from contextlib import ExitStack

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import read_workers
from tests.serve.corpus.routes import MAX_BODY_BYTES, VERTEX, VERTEX_HEALTH
from tests.support.servers import gunicorn, opened, variant

SPEC = ServerSpec(max_body_bytes=MAX_BODY_BYTES, request_timeout_seconds=3, threads=12)
_VERTEX = {"AIP_HTTP_PORT": "8080", "AIP_PREDICT_ROUTE": VERTEX, "AIP_HEALTH_ROUTE": VERTEX_HEALTH}


@pytest.fixture(scope="session")
def endpoints(model_folders):
    """The endpoints of `routes.py`."""
    kinds = {"flights": "mixed", "tensor": "tensor", "single": "single"}
    return {name: {"v": variant(model_folders[kind])} for name, kind in kinds.items()}


@pytest.fixture(scope="session")
def server(tmp_path_factory, endpoints):
    with ExitStack() as servers:
        # Servers of later tests would also take port 8080 on every address.
        with pytest.MonkeyPatch.context() as patch:
            for name, value in _VERTEX.items():
                patch.setenv(name, value)
            server = servers.enter_context(opened(tmp_path_factory.mktemp("here"), endpoints, SPEC))
        yield server


@pytest.fixture(scope="session")
def port(tmp_path_factory, endpoints):
    """Yield the port of a server. At the end, check that the same worker still runs and
    that its log has no traceback.
    """
    state_dir = tmp_path_factory.mktemp("state")
    with gunicorn(state_dir, endpoints, SPEC) as running:
        before = {state.pid for state in read_workers(state_dir)}
        yield running.address[1]
        log = running.log.read_text()
        assert {state.pid for state in read_workers(state_dir)} == before, log
        assert "Traceback" not in log
