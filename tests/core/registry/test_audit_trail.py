"""The events of the audit trail that MLflow's server has signed, as a process without
keys finds them.
"""

import json
from contextlib import closing
from dataclasses import replace

import pytest

from mlflow_deploy_plugin.core.registry.audit_trail import (
    AUDIT_TRAIL,
    newest_events,
    stored_events,
    trusted_keys,
    unsigned_events,
)
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.audit_trail import store_of_server
from tests.support.services.proxy import proxy_to
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


def test_published_keys_replace_stored_keys(store, store_url, tmp_path):
    with store_of_server(store_url, tmp_path / "mlflow") as server:
        known = server.keys.public_pem()
    forged = tmp_path / "audit.key"
    read_key_file(forged)
    forged.write_text(forged.read_text() + known)
    with store_of_server(store_url, tmp_path) as forger:
        forger.record("approve", actor="forged", model="toy", version="1")
    with proxy_to("127.0.0.1", 9) as mlflow, tracking_at(mlflow.url):
        mlflow.turn(json.dumps({"keys": known, "checkpoint": ""}), where=AUDIT_TRAIL)
        assert actors(store) == {"forged"}
        with closing(open_store(f"sqlite:///{tmp_path}/other.db")) as other:
            other.record("approve", actor="ada", model="toy", version="1")
            assert actors(other) == set()  # MLflow's server does not use this store.
    assert actors(store) == set()  # The forger has published the key in the store.


def test_changed_or_unsigned_event_has_fault(store, store_url, tmp_path):
    with store_of_server(store_url, tmp_path) as server:
        server.record("approve", actor="ada", model="toy", version="1")
        keys = server.keys
    *_, event = stored_events(store, "flights", ["toy"])
    changes = ({}, {"actor": "eva"}, {"signature": ""})
    faults = [list(replace(event, **change).faults(keys)) for change in changes]
    assert faults == [
        [],
        [f"event {event.id} (approve by eva) was changed"],
        [f"{event.name} has no valid signature of the key {keys.key_id}"],
    ]
