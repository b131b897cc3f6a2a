"""The events of the audit trail that MLflow's server has signed, as a process without
keys finds them.
"""

import json
from contextlib import closing

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.audit_trail import (
    AUDIT_TRAIL,
    load_checkpoint,
    newest_events,
    stored_events,
    trusted_keys,
    unsigned_events,
)
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.audit_trail import store_of_server
from tests.support.refusals import refused
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
        # The newest checkpoint has no signature of a known key.
        assert actors(store) == {"forged", "earlier"}
        with closing(open_store(f"sqlite:///{tmp_path}/other.db")) as other:
            other.record("approve", actor="ada", model="toy", version="1")
            assert actors(other) == set()  # MLflow's server does not use this store.
    assert actors(store) == set()  # The forger has published the key in the store.


def test_stored_events_have_their_places(store, store_url, tmp_path):
    with store_of_server(store_url, tmp_path) as server:
        server.record("approve", actor="ada", model="toy", version="1")
        store.record("create", endpoint="flights")
        key_id = server.keys.key_id
    events = stored_events(store, "flights", ["toy"])
    assert [(event.place, event.signed_by) for event in events] == [
        (0, key_id),
        (2, key_id),
        (None, ""),
    ]
    assert events[1].without_place() == next(newest_events(store, "toy"))


@pytest.mark.parametrize(
    ("before", "after"), [("\n", ""), ("onnxserve", "other"), ("\n3\n", "\n4\n")]
)
def test_changed_checkpoint_is_refused(store, store_url, tmp_path, before, after):
    with store_of_server(store_url, tmp_path) as server:
        server.record("approve", model="toy")
        checkpoint = server.trail_record.newest().checkpoint
        keys = server.keys
    assert load_checkpoint(checkpoint.text, keys, "of MLflow's server") == checkpoint
    with refused(InvalidConfig, "log.txt", "checkpoint"):
        load_checkpoint(checkpoint.text.replace(before, after, 1), keys, "log.txt")
