"""The events of the audit trail that MLflow's server has signed, as a process without
keys finds them.
"""

from contextlib import closing

import pytest
import requests

from mlflow_deploy_plugin.core.registry.audit_trail import (
    newest_events,
    trusted_keys,
    unsigned_events,
)
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.audit_trail import store_of_server
from tests.support.services.mlflow_server import MlflowServer
from tests.support.tracking import tracking_at


@pytest.fixture
def store_url(tmp_path):
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture
def store(store_url, tmp_path, new_database):
    """The store of a command, with an event before MLflow's server signs."""
    with closing(open_store(store_url)) as opened, tracking_at(new_database(tmp_path)):
        opened.record("approve", actor="earlier", model="toy", version="1")
        yield opened


def actors(store):
    """Return the actors of the approvals that are not signed."""
    return {event.actor for event in unsigned_events(store, store.events(actions=["approve"]))}


def test_all_events_count_without_signing_server(store):
    assert trusted_keys(store) is None
    assert actors(store) == set()
    assert [event.actor for event in newest_events(store, "toy")] == ["earlier"]


def test_forged_events_after_seal_are_unsigned(store, store_url, tmp_path):
    with store_of_server(store_url, tmp_path) as server:
        for model in ("toy", "new"):
            server.record("approve", actor="ada", model=model, version="1")
            store.record("approve", actor="forged", model=model, version="1")
        assert actors(server) == {"forged"}
    assert actors(store) == {"forged"}
    newest = [event.actor for event in newest_events(store, "toy") if event.action == "approve"]
    assert newest == ["ada", "earlier"]
    assert [event.actor for event in newest_events(store, "new")] == ["ada"]


def test_server_keys_replace_stored_keys(store, store_url, tmp_path):
    folder = tmp_path / "mlflow"
    folder.mkdir()
    variables = {"ONNXSERVE_STORE_URI": store_url, "ONNXSERVE_HOME": str(folder)}
    server = MlflowServer(folder, app="onnxserve", variables=variables)
    server.start()
    try:
        with tracking_at(server.url):
            # The server seals the store when it opens it.
            assert requests.get(f"{server.url}/onnxserve/history.jsonl", timeout=30).ok
            forged = tmp_path / "audit.key"
            read_key_file(forged)
            known = read_key_file(folder / "console" / "audit.pem").public_pem()
            forged.write_text(forged.read_text() + known)
            with store_of_server(store_url, tmp_path) as forger:
                forger.record("approve", actor="forged", model="toy", version="1")
            assert actors(store) == {"forged"}
            with closing(open_store(f"sqlite:///{tmp_path}/other.db")) as other:
                other.record("approve", actor="ada", model="toy", version="1")
                assert actors(other) == set()  # MLflow's server does not use this store.
    finally:
        server.kill()
