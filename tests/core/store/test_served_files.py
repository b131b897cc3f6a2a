"""Tests of the files with which versions moved to a place, as derived from the events
of the audit trail.
"""

import pytest

from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.served_files import MOVES, SERVED, served_entry, stay_of

OLD = "a" * 64
NEW = "b" * 64


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"sqlite:///{tmp_path}/store.db")
    yield opened
    opened.close()


def served(store, version, place="@champion"):
    return stay_of(store.counted_events("credit", MOVES), version, place).files


def moved(store, version, files, place="@champion", action="alias"):
    store.record(action, model="credit", version=version, detail=move_detail(place, "", files))


def test_last_server_move_has_files(store):
    moved(store, "1", OLD)
    moved(store, "1", NEW)
    moved(store, "1", None, action="promote")  # The event of a command has no files.
    moved(store, "2", OLD, "Production", "transition")
    assert served(store, "1", "@Champion") == NEW
    assert served(store, "2") == ""
    moved(store, "1", "")
    assert served(store, "1") == ""  # The files could not be read.


@pytest.mark.parametrize(
    ("kept", "files"), [([], ""), ([served_entry("1", "@champion", OLD)], OLD)]
)
def test_rename_keeps_only_recorded_files(kept, files, store):
    moved(store, "1", NEW)
    store.record("rename", model="credit", after="credit", detail={SERVED: kept})
    assert served(store, "1") == files


def test_policy_event_records_served_files(store):
    store.record("tag", model="credit", detail={SERVED: [served_entry("3", "Production", OLD)]})
    assert served(store, "3", "Production") == OLD
