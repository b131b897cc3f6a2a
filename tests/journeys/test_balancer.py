"""Two MLflow servers with one store and one key, behind nginx by docs/operate.md."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.support.moves import JudgedModel
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.nginx import nginx_of_the_guide
from tests.support.services.postgresql import postgresql_server
from tests.support.waiting import wait_until

MOVES = 60
RETRIED = {502, 503}
"""The statuses after which a client asks again: nginx has no server, or its server died
during the request.
"""
pytestmark = [pytest.mark.long, pytest.mark.postgresql]


@pytest.fixture
def servers(new_database, tmp_path, new_home):
    new_database(tmp_path)
    with ExitStack() as stack:
        variables = {
            "ONNXSERVE_STORE_URI": stack.enter_context(postgresql_server()),
            "ONNXSERVE_AUDIT_KEY_FILE": str(tmp_path / "key" / "audit.pem"),
            "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:*",  # nginx passes its own address.
        }
        started = [MlflowServer(tmp_path, app="onnxserve", variables=variables) for _ in range(2)]
        for server in started:
            stack.callback(server.kill)
        with ThreadPoolExecutor() as pool:
            list(pool.map(MlflowServer.start, started))
        yield started


def test_moves_through_a_balancer_are_recorded_once(servers, tmp_path):
    """Each server is killed and comes back while two clients move versions."""
    addresses = [server.url.removeprefix("http://") for server in servers]
    attempts = []
    with nginx_of_the_guide(tmp_path, "mlflow", addresses, "/health") as url:
        balanced = MlflowServer(tmp_path, variables=servers[0].variables)
        balanced.port = int(url.rpartition(":")[2])
        model = JudgedModel(balanced)
        model.register()
        with ThreadPoolExecutor(2) as pool:
            clients = [
                pool.submit(JudgedModel(balanced).attempt_moves, place, MOVES, attempts)
                for place in ("@champion", "Production")
            ]
            for number, server in enumerate(servers, 1):
                due = number * MOVES // 2
                wait_until(lambda due=due: len(attempts) >= due, 200, f"{due} moves")
                server.kill()
                time.sleep(2)
                server.start()
            for client in clients:
                client.result()
        recorded = model.recorded()
        verified = json.loads(model.run("audit", "history", "--verify", "-o", "json").stdout)
    assert {attempt.status for attempt in attempts} <= {200, *RETRIED}
    answered = [attempt for attempt in attempts if attempt.status == 200]
    assert len(answered) > 1.8 * MOVES
    assert all(attempt.is_moved for attempt in answered)
    counted = Counter((attempt.place, attempt.version) for attempt in answered)
    died = Counter(
        (attempt.place, attempt.version) for attempt in attempts if attempt.status != 200
    )
    assert not counted - recorded
    assert not recorded - counted - died
    assert (verified["state"], verified["faults"]) == ("intact", [])
