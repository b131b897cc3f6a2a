"""The alerts of the controller about MLflow's server."""

from contextlib import closing
from datetime import timedelta

import pytest

from mlflow_deploy_plugin.core.registry.audit_trail import TrustedKeys
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.audit_keys import Keys
from mlflow_deploy_plugin.core.store.database import open_store, utc_now
from mlflow_deploy_plugin.watch.controller import service
from tests.support.clocks import Clock
from tests.support.refusals import mentions


@pytest.fixture
def clock():
    return Clock(utc_now())


@pytest.fixture
def store(tmp_path, clock):
    with closing(open_store(f"sqlite:///{tmp_path}/store.db", clock)) as opened:
        yield opened


def test_fault_of_a_witness_is_an_alert(store, clock, monkeypatch):
    fault = "the witness law.example has cosigned another tree"
    monkeypatch.setattr(
        service, "published_trail", lambda: TrustedKeys(Keys({}), "", None, (fault,))
    )
    for _ in range(2):
        service.announce_trail_faults(store)
    (alert,) = Alerts(store).recent()
    assert mentions(alert.detail["lines"][0], "law.example")
    clock.now += timedelta(days=1)
    service.announce_trail_faults(store)
    assert len(Alerts(store).recent()) == 2


def test_server_without_a_trail_raises_no_alert(store, monkeypatch):
    monkeypatch.setattr(service, "published_trail", lambda: None)

    service.announce_trail_faults(store)

    assert Alerts(store).recent() == []
