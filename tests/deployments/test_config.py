"""What people say of an endpoint, as its spec."""

import pytest

from mlflow_deploy_plugin.deployments.config import configure
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import new_endpoint


def test_a_time_zone_has_to_be_known_where_it_is_said() -> None:
    spec = configure(new_endpoint("flights", "models:/X/1"), {"monitors.daily.time_zone": "Europe/Berlin"})

    assert spec.monitors["daily"].time_zone == "Europe/Berlin"
    with pytest.raises(InvalidConfig, match="time_zone 'Europe/Berlinn' is not known"):
        configure(spec, {"monitors.daily.time_zone": "Europe/Berlinn"})
    assert configure(spec, {"monitors.daily.time_zone": ""}).monitors["daily"].time_zone == "UTC"
