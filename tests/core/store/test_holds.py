"""Legal holds and the retention floor refuse deletions, or prevent them."""

from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.expiry import Expired, expire
from mlflow_deploy_plugin.core.store.holds import held_endpoints, hold, require_deletable
from mlflow_deploy_plugin.core.store.tables import AlertRow
from tests.support.refusals import refused

NOW = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path):
    with closing(open_store(f"sqlite:///{tmp_path}/store.db", lambda: NOW)) as opened:
        for name in ("flights", "other"):
            opened.add_endpoint("onnxserve", new_endpoint(name, "m"))
            with opened.transaction() as session:
                alert = {"state": "resolved", "monitor": "a", "count": 1, "detail": {}}
                times = {"first_at": NOW - 90 * DAY, "last_at": NOW - 90 * DAY}
                session.add(AlertRow(fingerprint=name, endpoint=name, **alert, **times))
        yield opened


def test_hold_lasts_until_release(store):
    hold(store, "flights", "case 7")
    assert [*held_endpoints(store)] == ["flights"]
    with refused(InvalidConfig, "flights", store.user, "case 7", "--release"):
        require_deletable(store, "flights", 90 * DAY)
    with refused(InvalidConfig, "flights", "case 7"):
        store.remove_endpoint("flights")
    assert "flights" in store.names()
    assert expire(store, 30 * DAY, only_count=True) == Expired(alerts=1)

    hold(store, "flights", "closed", is_released=True)

    assert held_endpoints(store) == {}
    require_deletable(store, "flights", 90 * DAY)
    assert expire(store, 30 * DAY) == Expired(alerts=2)
    assert store.remove_endpoint("flights")


def test_invalid_hold_is_refused(store):
    with refused(InvalidConfig, "--why"):
        hold(store, "flights", " ")
    with refused(InvalidConfig, "other", "not on hold"):
        hold(store, "other", "closed", is_released=True)
    with refused(NotFound, "flihgts", "flights"):
        hold(store, "flihgts", "case 7")


@pytest.mark.parametrize(("days", "is_refused"), [("30", True), ("7", False)])
def test_retention_floor_prevents_deletion(store, monkeypatch, days, is_refused):
    monkeypatch.setenv("ONNXSERVE_RETENTION_FLOOR_DAYS", days)
    if is_refused:
        with refused(InvalidConfig, "30 days", "ONNXSERVE_RETENTION_FLOOR_DAYS"):
            require_deletable(store, "flights", 29 * DAY)
    else:
        require_deletable(store, "flights", 29 * DAY)
