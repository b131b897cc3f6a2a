"""An endpoint whose stored spec is none to this onnxserve: its own trouble, and nobody else's."""

from datetime import timedelta

from mlflow_deploy_plugin.store.alerts import Alert, Alerts
from tests.support.monitors import HOUR, NOON, SECONDS, MonitoredWorld
from tests.support.waiting import wait_until


def test_its_windows_and_alerts_wait_and_the_others_go_on(world: MonitoredWorld) -> None:
    world.endpoint("flights")
    world.endpoint("taxis")
    world.rows(NOON, endpoint="taxis")
    begun = world.monitors.add("flights", "hourly", NOON, NOON + HOUR)
    Alerts(world.store).change("f", lambda _: Alert("f", "flights", "hourly", "firing", NOON, NOON))
    world.spoil("flights")
    world.now = NOON + HOUR + timedelta(minutes=6)

    world.start()
    (judged,) = world.wait_for(1)

    assert (judged.endpoint, judged.verdict) == ("taxis", "no drift")
    wait_until(lambda: any("endpoint 'flights' in the store cannot be read" in line for line in world.said), SECONDS)
    assert [one.state for one in world.monitors.windows("flights")] == [begun.state]
    assert [one.endpoint for one in Alerts(world.store).firing()] == ["flights"]
