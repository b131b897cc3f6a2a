"""The alerts of the controller about MLflow's server."""

from contextlib import closing
from datetime import timedelta

import pytest

from mlflow_deploy_plugin.core.registry.audit_trail import TrustedKeys
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.audit_keys import read_key_file
from mlflow_deploy_plugin.core.store.checkpoints import make_checkpoint
from mlflow_deploy_plugin.core.store.database import open_store, utc_now
from mlflow_deploy_plugin.watch.controller import service
from tests.support.audit_trail import store_of_server
from tests.support.clocks import Clock
from tests.support.refusals import mentions


@pytest.fixture
def clock():
    return Clock(utc_now())


@pytest.fixture
def store(tmp_path, clock):
    with closing(open_store(f"sqlite:///{tmp_path}/store.db", clock)) as opened:
        yield opened


def test_late_checkpoint_is_an_alert(store, clock, tmp_path, monkeypatch):
    with store_of_server(str(store._engine.url), tmp_path, clock) as server:
        keys = read_key_file(tmp_path / "audit.key")
        checkpoint = make_checkpoint(server, keys)
    monkeypatch.setattr(service, "published_trail", lambda: TrustedKeys(keys, "", checkpoint))

    service.announce_lateness(store)
    assert Alerts(store).recent() == []

    clock.now += timedelta(hours=4)
    for _ in range(2):
        service.announce_lateness(store)
    (alert,) = Alerts(store).recent()
    assert mentions(alert.detail["lines"][0], "newest checkpoint")


def test_server_without_a_trail_raises_no_alert(store, monkeypatch):
    monkeypatch.setattr(service, "published_trail", lambda: None)

    service.announce_lateness(store)

    assert Alerts(store).recent() == []
