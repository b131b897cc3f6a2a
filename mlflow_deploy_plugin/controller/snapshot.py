"""A snapshot of an endpoint: which versions answer, and what they have counted.

The counters are the server's own, summed over its workers, from its page /metrics. They begin at zero with each server;
a lower value than before is taken for a restart, as Prometheus does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import requests
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.deployments import DeploymentState, ObservedEndpoint, ServerSession
from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import EndpointSpec, VariantSpec

_PAGE_SECONDS = 5.0
_SUCCESS = ("OK",)
_CALLER_LEFT = ("499", "CANCELLED")
_SHADOW_ROWS = "onnxserve_shadow_rows"
_SHADOW_REQUESTS = "onnxserve_shadow_requests"
_REQUESTS = "onnxserve_requests"
_DURATIONS = "onnxserve_request_duration_seconds"
_LAST_REQUEST = "onnxserve_last_request_timestamp_seconds"


@dataclass(frozen=True)
class VersionCounters:
    """The counters of one version under one variant's name.

    Attributes:
        requests / errors: all answered requests, and those answered without success. A refusal of the input (4xx) is an
            error too: a rollout has to find a model that no longer takes what its callers send.
        timed: upper bound in seconds → requests of all kinds that took at most so long.
        same / different: rows that a shadow has answered like the answering version, and otherwise; a request that it
            could not answer counts as one row.
    """

    requests: float = 0
    errors: float = 0
    timed: Mapping[float, float] = field(default_factory=dict)
    same: float = 0
    different: float = 0

    @property
    def compared(self) -> float:
        return self.same + self.different

    def since(self, before: "VersionCounters") -> "VersionCounters":
        """Return what was added since `before`; everything if the server has restarted since."""
        is_anew = self.requests < before.requests or self.compared < before.compared
        old = VersionCounters() if is_anew else before
        return self._combined(old, -1)

    def plus(self, other: "VersionCounters") -> "VersionCounters":
        return self._combined(other, 1)

    def _combined(self, other: "VersionCounters", sign: int) -> "VersionCounters":
        bounds = sorted({*self.timed, *other.timed})
        return VersionCounters(
            requests=self.requests + sign * other.requests,
            errors=self.errors + sign * other.errors,
            timed={bound: self.timed.get(bound, 0) + sign * other.timed.get(bound, 0) for bound in bounds},
            same=self.same + sign * other.same,
            different=self.different + sign * other.different,
        )

    def to_json(self) -> dict[str, object]:
        return {
            "requests": self.requests,
            "errors": self.errors,
            "timed": [[str(bound), count] for bound, count in self.timed.items()],
            "same": self.same,
            "different": self.different,
        }

    @staticmethod
    def from_json(document: Mapping[str, object]) -> "VersionCounters":
        timed = {float(bound): count for bound, count in document["timed"]}  # type: ignore[attr-defined]
        return VersionCounters(**{**document, "timed": timed})  # type: ignore[arg-type]


CountersByVersion = Mapping[tuple[str, str], VersionCounters]
"""By variant and version."""


@dataclass(frozen=True)
class EndpointSnapshot:
    """An endpoint at one moment.

    Attributes:
        variants: the variants of its spec; None if the endpoint does not exist.
        state: the state of its server: running, starting, stopped, failed.
        reason: why it is not running, or what it waits for.
        versions: variant → the version with which every worker answers; a variant with none or several is missing.
        errors: variant → why a worker could not load the version.
        refused: variant and version → why the agent does not let it be served.
        counters: None if the server could not be asked.
    """

    variants: Mapping[str, VariantSpec] | None
    state: DeploymentState = "running"
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[tuple[str, str], str] = field(default_factory=dict)
    counters: CountersByVersion | None = None


def main_variant(spec: EndpointSpec) -> str:
    """Return the one variant that answers.

    Raises:
        InvalidConfig: none does, or several.
    """
    answering = [name for name, variant in spec.variants.items() if variant.weight > 0 and not variant.shadow]
    if len(answering) != 1:
        raise InvalidConfig(
            f"endpoint {spec.name!r} is answered by {' and '.join(answering) or 'nobody'}, and one is expected: "
            f"`onnxserve endpoint traffic {spec.name} NAME=100` says which"
        )
    return answering[0]


def take_snapshot(observed: ObservedEndpoint, with_counters: bool = True) -> EndpointSnapshot:
    """Return a snapshot of the endpoint; with counters it asks the server for them."""
    spec, observation = observed.endpoint.spec, observed.observation
    workers = [worker.endpoints.get(spec.name, {}) for worker in observation.workers]
    answering = {}
    for name in spec.variants:
        versions = {worker[name].version if name in worker else "" for worker in workers}
        if len(versions) == 1 and (version := versions.pop()):
            answering[name] = version
    return EndpointSnapshot(
        variants=spec.variants,
        state=observation.state,
        reason=observation.reason or observation.registry_error,
        versions=answering,
        errors=observation.errors,
        refused={(one.variant, one.version): one.reason for one in observation.refused if one.endpoint == spec.name},
        counters=fetch_counters(observation.url, spec.name) if with_counters and observation.url else None,
    )


def fetch_counters(url: str, endpoint: str) -> CountersByVersion | None:
    """Return the counters of the server at `url`; None if it does not answer."""
    page = fetch_metrics_page(url)
    return parse_counters(page, endpoint) if page is not None else None


def fetch_metrics_page(url: str) -> str | None:
    """Return the metrics page of the server at `url`; None if it does not answer."""
    try:
        with ServerSession() as session:
            answer = session.get(f"{url}/metrics", timeout=_PAGE_SECONDS)
    except requests.RequestException:
        return None
    return answer.text if answer.ok else None


def versions_by_last_answer(page: str, endpoint: str, variant: str, model: str) -> list[str]:
    """Return the model's versions that have answered as this variant since the server's start, the last first."""
    under_name: set[str] = set()
    last: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples if family.name in (_REQUESTS, _LAST_REQUEST) else ():
            labels = sample.labels
            if (labels["endpoint"], labels.get("variant", variant), labels["model"]) != (endpoint, variant, model):
                continue
            if family.name == _REQUESTS:
                under_name.add(labels["version"])
            else:
                last[labels["version"]] = max(last.get(labels["version"], 0), sample.value)
    return sorted(under_name, key=lambda version: last.get(version, 0), reverse=True)


def parse_counters(page: str, endpoint: str) -> CountersByVersion:
    """Return the counters of one endpoint from a page in Prometheus' text format."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    timed: dict[tuple[str, str], dict[float, float]] = {}

    def count(key: tuple[str, str], kind: str, value: float) -> None:
        kinds = values.setdefault(key, {})
        kinds[kind] = kinds.get(kind, 0) + value

    for family in text_string_to_metric_families(page):
        if family.name not in (_REQUESTS, _DURATIONS, _SHADOW_ROWS, _SHADOW_REQUESTS):
            continue
        for sample in family.samples:
            labels = sample.labels
            if labels.get("endpoint") != endpoint:
                continue
            key = labels.get("variant", ""), labels.get("version", "")
            if sample.name == f"{_DURATIONS}_bucket":
                bounds = timed.setdefault(key, {})
                bounds[float(labels["le"])] = bounds.get(float(labels["le"]), 0) + sample.value
            elif sample.name == f"{_REQUESTS}_total":
                status = labels["status"]
                if status in _CALLER_LEFT:
                    continue
                count(key, "requests", sample.value)
                if status not in _SUCCESS and not status.startswith("2"):
                    count(key, "errors", sample.value)
            elif sample.name == f"{_SHADOW_ROWS}_total":
                count(key, labels["agreement"], sample.value)
            elif sample.name == f"{_SHADOW_REQUESTS}_total" and labels["outcome"] == "failed":
                count(key, "different", sample.value)
    return {
        key: VersionCounters(**values.get(key, {}), timed=dict(sorted(timed.get(key, {}).items())))
        for key in {*values, *timed}
    }
