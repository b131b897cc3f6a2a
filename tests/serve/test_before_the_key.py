"""Work before the key: what a stranger costs at each route and port, and how long a
caller waits beside strangers.

A route of the table is in the tests without a line here.
"""

import gzip
import time
import tracemalloc

import pytest

from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.models import KeyEntry
from mlflow_deploy_plugin.serve.http.routes import list_routes
from tests.support.handling import ROW, ask
from tests.support.keys import write_keys
from tests.support.servers import one_endpoint, opened

MOST_SECONDS = 0.001
MOST_BYTES = 64_000
TARGETS = {
    (route.method, route.path.format(endpoint="e", version="1", label="v", job="j"))
    for route in list_routes()
}
WAYS = {
    "no key": ({}, ROW),
    "wrong key": ({"authorization": "Bearer wrong"}, ROW),
    "gzip": ({"content-encoding": "gzip"}, gzip.compress(bytes(16_000_000))),
    "unknown encoding": ({"content-encoding": "odd"}, ROW),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory, bias_folders):
    spec = ServerSpec(api_keys=True, model_control_mode="explicit")
    folder = tmp_path_factory.mktemp("keyed")
    with opened(folder, one_endpoint(bias_folders["1"]), spec) as server:
        write_keys(folder, {"infer": KeyEntry(name="infer", scopes=("infer",))})
        yield server


@pytest.mark.parametrize("way", WAYS)
def test_work_before_the_key_is_bounded(server, way):
    headers, body = WAYS[way]

    def refuse():
        began = time.thread_time()
        status = ask(server, path, method, body, host="localhost", **headers).status
        assert status in (200, 401), path
        return time.thread_time() - began

    for method, path in TARGETS:
        seconds = min(refuse() for _ in range(3))
        tracemalloc.start()
        refuse()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (seconds < MOST_SECONDS, peak < MOST_BYTES) == (True, True), (path, seconds, peak)


def test_caller_learns_of_unknown_encodings(server):
    key = {"authorization": "Bearer infer", "content-encoding": "odd"}
    assert ask(server, **key).status == 415
