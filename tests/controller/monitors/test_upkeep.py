"""The log's upkeep beside the rollouts."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlflow_deploy_plugin.controller.lease import LeaseKeeper
from mlflow_deploy_plugin.controller.monitors.upkeep import Upkeep
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from support.monitors import SECONDS, MonitoredWorld
from support.waiting import wait_until


@pytest.mark.long
def test_the_many_files_of_an_hour_that_is_over_become_one(world: MonitoredWorld, tmp_path: Path) -> None:
    hour = datetime(2026, 11, 1, 12, tzinfo=UTC)
    world.endpoint()
    for _ in range(5):
        world.rows(hour)
    lease, over = world.store.acquire_lease("upkeep", "the test", 15), threading.Event()
    assert lease is not None

    def files() -> list[Path]:
        return list((tmp_path / "inference_log" / "endpoint=flights").rglob("*.parquet"))

    assert len(files()) == 5
    world.now = datetime.now(UTC) + timedelta(hours=1)  # files that were written just now are left alone
    upkeep = Upkeep(Deployments(world.store, world.settings, world.said.append), every_seconds=0.1)

    def work() -> None:
        with LeaseKeeper(world.store, lease) as keeper:
            upkeep.run(keeper, over)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: len(files()) == 1, SECONDS, "one file is left")
    finally:
        over.set()
        thread.join(SECONDS)
