"""What following tells Prometheus: it is the agent's to say, and stands in agent.json; every worker reads it there."""

from collections.abc import Mapping
from pathlib import Path

from mlflow_deploy_plugin.server.exposition import Family, Kind, Series, prometheus_text
from mlflow_deploy_plugin.server.state import AGENT, AgentState, lives, read_state


def following_page(state_dir: Path) -> bytes:
    """Metrics of the agent, as Prometheus' text; empty where there is no agent."""
    state = read_state(state_dir / AGENT, AgentState)
    if state is None:
        return b""
    refused = [
        {
            "endpoint": one.endpoint,
            "variant": one.variant,
            "model": one.model,
            "version": one.version,
            "cause": one.cause,
        }
        for one in state.refused
    ]
    families = [
        _family("onnxserve_agent_up", "Whether the agent lives.", {(): float(lives(state.pid))}),
        _family(
            "onnxserve_agent_errors", "Things that keep what the spec names from being served.", {(): state.errors}
        ),
        _family(
            "onnxserve_registry_checked_timestamp_seconds",
            "When a look at the registry has last ended, well or not, since 1970.",
            {(): state.checked_at},
        ),
        _family(
            "onnxserve_log_complete_until_timestamp_seconds",
            "Every row that was answered before is in the inference log, or was dropped; since 1970, by tens.",
            {(): state.shipping.complete_until},
        ),
        _family(
            "onnxserve_wanted_version_refused",
            "Versions that the registry names and that are not served: gate, fetch, artifact, consent or load.",
            {tuple(labels.items()): 1.0 for labels in refused},
        ),
    ]
    return prometheus_text(families)


def _family(name: str, text: str, values: Mapping[tuple[tuple[str, str], ...], float]) -> Family:
    kind: Kind = "gauge"
    series = {
        tuple(value for _, value in labels): Series(dict(labels), float(value)) for labels, value in values.items()
    }
    return Family(name, kind, text, series)
