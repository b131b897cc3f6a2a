import os
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.server.observability.exposition import agent_metrics_page
from mlflow_deploy_plugin.statedir import AGENT, AgentState, RefusedVersion, ShippingState, write_state

REFUSED = RefusedVersion(endpoint="e", variant="v", model='x"\n', version="2", cause="gate", reason="not passed")


def samples(state_dir: Path) -> dict[str, list[tuple[dict[str, str], float]]]:
    families = text_string_to_metric_families(agent_metrics_page(state_dir).decode())
    return {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in families}


def test_what_is_not_served_is_a_metric(tmp_path: Path) -> None:
    shipping = ShippingState(complete_until=120.0)
    state = AgentState(pid=os.getpid(), checked_at=12.5, error="a; b", errors=2, refused=(REFUSED,), shipping=shipping)
    write_state(tmp_path / AGENT, state)
    assert samples(tmp_path) == {
        "onnxserve_agent_up": [({}, 1.0)],
        "onnxserve_agent_errors": [({}, 2.0)],
        "onnxserve_registry_checked_timestamp_seconds": [({}, 12.5)],
        "onnxserve_log_complete_until_timestamp_seconds": [({}, 120.0)],
        "onnxserve_wanted_version_refused": [
            ({"endpoint": "e", "variant": "v", "model": 'x"\n', "version": "2", "cause": "gate"}, 1.0)
        ],
    }


@pytest.mark.parametrize("is_there", [False, True])
def test_an_agent_that_is_not_there_is_told(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        dead = subprocess.Popen(["true"])
        dead.wait()
        write_state(tmp_path / AGENT, AgentState(pid=dead.pid))
        assert samples(tmp_path)["onnxserve_agent_up"] == [({}, 0.0)]
    else:
        assert agent_metrics_page(tmp_path) == b""
