"""Two MLflow servers that record events in one audit trail at the same time."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from mlflow import MlflowClient
from sqlalchemy import delete

from mlflow_deploy_plugin.core.store.audit import write_event
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.tables import AuditRow
from tests.support.commands import done, told
from tests.support.moves import judged_model, moves_while_restarting
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.postgresql import postgresql_server, running_postgresql
from tests.support.stores import own_store
from tests.support.tracking import tracking_at

MODEL = "shared"
CHANGES = 20
pytestmark = pytest.mark.long


def trusting_keys(folder):
    """Return the key files of two servers, each with the public key of the other."""
    files = [folder / "a.pem", folder / "b.pem"]
    pems = [read_key_file(file).public_pem() for file in files]
    for file, public in zip(files, reversed(pems), strict=True):
        file.write_text(file.read_text() + public)
    return files


@pytest.fixture(
    params=["one key file", pytest.param("two key files", marks=pytest.mark.postgresql)]
)
def servers(request, new_database, tmp_path, monkeypatch, new_home):
    """Start two servers: on SQLite with the key in HOME, and on PostgreSQL with a key
    file each.
    """
    new_database(tmp_path)
    settings = [{}, {}]
    with ExitStack() as stack:
        if request.param == "two key files":
            store = stack.enter_context(postgresql_server())
            monkeypatch.setenv("ONNXSERVE_STORE_URI", store)
            files = trusting_keys(tmp_path)
            settings = [{"ONNXSERVE_AUDIT_KEY_FILE": str(file)} for file in files]
        started = [
            MlflowServer(tmp_path, app="onnxserve", variables=variables) for variables in settings
        ]
        for server in started:
            stack.callback(server.kill)
        with ThreadPoolExecutor() as pool:
            list(pool.map(MlflowServer.start, started))
        yield started


def test_two_servers_record_in_one_trail(servers):
    clients = [MlflowClient(server.url, server.url) for server in servers]
    clients[0].create_registered_model(MODEL)
    clients[0].create_model_version(MODEL, "s3://bucket/model")

    def set_alias(number):
        clients[number % 2].set_registered_model_alias(MODEL, f"alias-{number}", "1")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(set_alias, range(CHANGES)))

    with tracking_at(servers[1].url):
        state = told("audit history --verify")
        history = told(f"audit history --model {MODEL}")
    assert (state["state"], state["faults"]) == ("intact", [])
    assert state["signed"] == state["events"]
    actions = Counter(event["action"] for event in history)
    assert actions["alias"] == CHANGES


def test_server_refuses_forged_trail(new_database, tmp_path, monkeypatch, new_home):
    """All events are written again without signatures and without the seal."""
    monkeypatch.setenv("ONNXSERVE_AUDIT_KEY_FILE", str(tmp_path / "key" / "audit.pem"))
    new_database(tmp_path)
    with ExitStack() as stack:
        server = MlflowServer(tmp_path, app="onnxserve")
        stack.callback(server.kill)
        server.start()
        client = MlflowClient(server.url, server.url)
        client.create_registered_model(MODEL)
        client.create_model_version(MODEL, "s3://bucket/model")
        client.set_registered_model_alias(MODEL, "champion", "1")
        server.kill()
        with own_store() as store:
            events = [event for event in store.events() if event.action != "seal"]
            with store.transaction() as session:
                session.execute(delete(AuditRow))
                for event in events:
                    write_event(session, event)

        with pytest.raises(AssertionError, match="onnxserve audit adopt"):
            server.start()
        server.process = None  # It has ended.
        done("audit adopt --why tried")
        server.start()


@pytest.mark.postgresql
def test_moves_are_recorded_while_postgresql_restarts(tmp_path):
    with running_postgresql() as database, judged_model(tmp_path, database.url) as model:
        report = moves_while_restarting(model, database)
    assert report.is_complete, report
