"""A store with a fake clock, and a web server that receives alerts."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.watch.alerts.record import record_result
from mlflow_deploy_plugin.watch.alerts.send import send_due
from tests.support.clocks import Clock
from tests.support.services.alert_receiver import receiver as a_receiver


@pytest.fixture(scope="session")
def server():
    with a_receiver() as alert_receiver:
        yield alert_receiver


@pytest.fixture
def receiver(server):
    server.is_broken = False
    server.answer_bytes = 0
    server.got.clear()
    return server


@pytest.fixture
def clock():
    return Clock(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture
def store(tmp_path, clock):
    opened = open_store(f"sqlite:///{tmp_path / 'store.db'}", clock)
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path, receiver):
    """Settings with two channels: /ops for all alerts, and /science for alerts with the
    tag `science`.
    """
    file = tmp_path / "alerts.yaml"
    file.write_text(
        "urls:\n"
        f"  - {receiver.url('ops')}:\n"
        "    - tag: ops\n"
        f"  - {receiver.url('science')}:\n"
        "    - tag: science\n"
    )
    return Settings(home=tmp_path, alert_config=file)


RUN = "http://mlflow/#/experiments/1/runs/abc"

OPS = MonitorSpec(alert=("ops",))


@pytest.fixture
def see(store, settings):
    """Record a result, and send due alerts."""

    def take(result, spec=OPS, settings=settings):
        record_result(
            store, settings, replace(result, run=LoggedRun("abc", "onnxserve/flights", RUN)), spec
        )
        return send_due(store, settings)

    return take
