"""Counters of a server since its start (`/metrics`), and their growth
(`/metrics/history`, `core/statedir/history.py`).

The counters are summed over the server's workers and protocols. As in Prometheus, a
counter that has decreased means that the server was restarted. Rollouts and the console
use the same rules:

- An unsuccessful response is an error. A refusal of the input (4xx) is also an error,
  because a rollout must detect a model that no longer accepts its callers' inputs. The
  console shows refusals and failures separately.
- A request whose client disconnected before the answer (499) is not counted.
- Explanations take seconds, so the times of a version do not include them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import orjson
import requests
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.ship.deployments.server_client import ServerSession

_LATEST = 4e9
"""The latest valid time in seconds since 1970, in the year 2096."""
ParsedT = TypeVar("ParsedT")
_CALLER_LEFT = "499"
_EXPLANATIONS = "explain"
"""The value of the metrics' label `protocol` for requests to /explain."""
_REQUESTS = "onnxserve_requests_total"
_DURATIONS = "onnxserve_request_duration_seconds_bucket"
_LAST_REQUEST = "onnxserve_last_request_timestamp_seconds"
_SHADOW_ROWS = "onnxserve_shadow_rows_total"
_SHADOW_REQUESTS = "onnxserve_shadow_requests_total"


@dataclass(frozen=True)
class VersionCounters:
    """The counters of one version under the name of one variant.

    Attributes:
        requests: the number of answered requests.
        errors: the number of unsuccessful responses.
        timed: upper bound in seconds → the number of requests within the bound, without
            explanations.
        same: the number of rows for which a shadow's prediction is the same.
        different: the number of rows for which a shadow's prediction is different. A
            request that the shadow could not answer counts as one row.
        refused: the number of responses with a client error (4xx).
    """

    requests: float = 0
    errors: float = 0
    timed: Mapping[float, float] = field(default_factory=dict)
    same: float = 0
    different: float = 0
    refused: float = 0

    @property
    def failures(self) -> float:
        return self.errors - self.refused

    @property
    def compared(self) -> float:
        return self.same + self.different

    def since(self, before: "VersionCounters") -> "VersionCounters":
        """Return the counts since the earlier counters `before`; all counts if the
        server was restarted in between.
        """
        has_restarted = self.requests < before.requests or self.compared < before.compared
        return self if has_restarted else self._combined(before, -1)

    def plus(self, other: "VersionCounters") -> "VersionCounters":
        return self._combined(other, 1)

    def _combined(self, other: "VersionCounters", sign: int) -> "VersionCounters":
        bounds = sorted({*self.timed, *other.timed})
        timed = {
            bound: self.timed.get(bound, 0) + sign * other.timed.get(bound, 0) for bound in bounds
        }
        names = vars(self).keys() - {"timed"}
        sums = {name: getattr(self, name) + sign * getattr(other, name) for name in names}
        return VersionCounters(**sums, timed=timed)

    def quantile(self, quantile: float) -> float | None:
        """Return a quantile of the request times in seconds, interpolated as in
        Prometheus; None without requests.
        """
        total = self.timed.get(math.inf, 0)
        if not total:
            return None
        low = 0.0
        below = 0.0
        for bound, count in sorted(self.timed.items()):
            if count >= quantile * total:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * (quantile * total - below) / (count - below)
            low = bound
            below = count
        return None


CountersByVersion = Mapping[tuple[str, str], VersionCounters]
"""The counters of an endpoint: (variant, version) → counters."""
_Version = tuple[str, str, str, str]
"""The names of an endpoint, a variant and a registered model, and a version."""


@dataclass(frozen=True)
class ServerMetrics:
    """The counters of one server.

    Attributes:
        counters: (endpoint, variant, model, version) → counters.
        last_requests: (endpoint, model, version) → the time of the last request in
            seconds since 1970.
    """

    counters: Mapping[_Version, VersionCounters] = field(default_factory=dict)
    last_requests: Mapping[tuple[str, str, str], float] = field(default_factory=dict)

    def of(self, endpoint: str, variant: str, model: str, version: str) -> VersionCounters:
        return self.counters.get((endpoint, variant, model, version), VersionCounters())

    def by_version(self, endpoint: str) -> CountersByVersion:
        """Return the counters of one endpoint. Equal versions of different models of a
        variant are summed.
        """
        summed: defaultdict[tuple[str, str], VersionCounters] = defaultdict(VersionCounters)
        for (of_endpoint, variant, _, version), counters in self.counters.items():
            if of_endpoint == endpoint:
                summed[variant, version] = summed[variant, version].plus(counters)
        return dict(summed)

    def versions_by_last_answer(self, endpoint: str, variant: str, model: str) -> list[str]:
        """Return the model's versions that have answered for this variant, the version
        with the newest answer first.
        """
        answered = [
            version
            for (*labels, version), counters in self.counters.items()
            if labels == [endpoint, variant, model] and counters.requests
        ]
        last = {
            version: self.last_requests.get((endpoint, model, version), 0) for version in answered
        }
        return sorted(answered, key=last.__getitem__, reverse=True)


MetricsByServer = Mapping[str, ServerMetrics | Refused]
"""The name of a server → its counters, or the reason why its counters are unreadable.
"""


@dataclass(frozen=True)
class CountedInterval:
    """The counts that a server added in one interval.

    Attributes:
        at: the end of the interval in seconds since 1970, by the server's clock.
        counters: the counts without shadows: (endpoint, variant, model, version) →
            counts.
        labels: the number of accepted labels for all endpoints of the server.
    """

    at: float
    seconds: float
    counters: Mapping[_Version, VersionCounters] = field(default_factory=dict)
    rows: Mapping[str, float] = field(default_factory=dict)
    labels: float = 0

    def of_endpoint(self, endpoint: str) -> Iterator[tuple[tuple[str, str], VersionCounters]]:
        """Yield (model, version) and the counts of each variant of an endpoint."""
        for (name, _, model, version), counters in self.counters.items():
            if name == endpoint:
                yield (model, version), counters

    @staticmethod
    def of(document: Json, bounds: Sequence[float]) -> "CountedInterval":
        """Return the interval of one line of the history. `bounds` are the upper bounds
        of the buckets of all lines. Raises ValueError for an impossible time.
        """
        sums: defaultdict[_Version, defaultdict[str, float]] = defaultdict(
            lambda: defaultdict(float)
        )
        for endpoint, variant, model, version, status, number in document["requests"]:
            _count(sums[endpoint, variant, model, version], status, float(number))
        timed = _durations(document, bounds)
        counters = {
            key: VersionCounters(**sums[key], timed=timed.get(key, {})) for key in {*sums, *timed}
        }
        at = float(document["at"])
        seconds = float(document["seconds"])
        if not (0 < at < _LATEST and seconds > 0):
            raise ValueError(f"an interval of the history ends at {at} after {seconds} s")
        return CountedInterval(
            at, seconds, counters, rows=document["rows"], labels=float(document["labels"])
        )


HistoryByServer = Mapping[str, Sequence[CountedInterval] | Refused]
"""The name of a server → its stored intervals, oldest first, or the reason why its
history is unreadable.
"""


def fetch_page(
    url: str, timeout_seconds: float, deployments: Path | None = None
) -> bytes | Refused:
    """Return a page of a server, or the reason why it is unreadable.

    `deployments` is the folder with the state folders of this machine's servers, whose
    keys the request may use; None is the folder of the settings.
    """
    try:
        with ServerSession(deployments) as session:
            answer = session.get(url, timeout=timeout_seconds)
        answer.raise_for_status()
        return answer.content
    except requests.Timeout:
        return Refused(f"the server did not answer within {timeout_seconds:g} s")
    except requests.HTTPError as error:
        return Refused(f"the server returned the status {error.response.status_code}")
    except requests.RequestException:
        return Refused("the server does not answer")


def read_page(page: bytes | Refused, parse: Callable[[bytes], ParsedT]) -> ParsedT | Refused:
    """Return the result of `parse` for a page, or the reason why the page is missing or
    unreadable.
    """
    if isinstance(page, Refused):
        return page
    try:
        return parse(page)
    except ValueError:
        return Refused("the metrics of the server cannot be read")


def total_metrics(servers: MetricsByServer) -> ServerMetrics:
    """Return the sums of the counters of all servers whose metrics were read, and the
    time of the last request to each version.
    """
    counters: defaultdict[_Version, VersionCounters] = defaultdict(VersionCounters)
    last_requests: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for metrics in servers.values():
        if isinstance(metrics, ServerMetrics):
            for version, counted in metrics.counters.items():
                counters[version] = counters[version].plus(counted)
            for of_model, at in metrics.last_requests.items():
                last_requests[of_model] = max(last_requests[of_model], at)
    return ServerMetrics(dict(counters), dict(last_requests))


def parse_server_metrics(page: str) -> ServerMetrics:
    """Return the counters of a page in Prometheus' text format. Raises ValueError if
    the page has another format.
    """
    sums: defaultdict[_Version, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    timed: defaultdict[_Version, defaultdict[float, float]] = defaultdict(
        lambda: defaultdict(float)
    )
    last: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = sample.labels
            value = sample.value
            if sample.name == _LAST_REQUEST:
                of_model = labels["endpoint"], labels["model"], labels["version"]
                last[of_model] = max(last[of_model], value)
            if "variant" not in labels:
                continue
            key = labels["endpoint"], labels["variant"], labels["model"], labels["version"]
            if sample.name == _REQUESTS:
                _count(sums[key], labels["status"], value)
            elif sample.name == _DURATIONS and labels["protocol"] != _EXPLANATIONS:
                timed[key][float(labels["le"])] += value
            elif sample.name == _SHADOW_ROWS:
                sums[key][labels["agreement"]] += value
            elif sample.name == _SHADOW_REQUESTS and labels["outcome"] == "failed":
                sums[key]["different"] += value
    counters = {
        key: VersionCounters(**sums[key], timed=dict(sorted(timed[key].items())))
        for key in {*sums, *timed}
    }
    return ServerMetrics(counters, dict(last))


def parse_server_history(lines: bytes) -> list[CountedInterval]:
    """Return the intervals of a page of `/metrics/history`. Raises ValueError if a line
    has another format.

    If the server's clock was set back, later intervals replace overlapping earlier
    intervals.
    """
    intervals: list[CountedInterval] = []
    try:
        documents = [orjson.loads(line) for line in lines.splitlines()]
        bounds = {math.inf}
        for document in documents:
            for *_, buckets in document["durations"]:
                bounds.update(map(float, buckets))
        for document in documents:
            interval = CountedInterval.of(document, sorted(bounds))
            while intervals and intervals[-1].at >= interval.at:
                intervals.pop()
            intervals.append(interval)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"a line of the history is malformed: {error}") from None
    return intervals


def _durations(document: Json, bounds: Sequence[float]) -> dict[_Version, dict[float, float]]:
    """Return version → upper bound in seconds → the number of requests within it."""
    timed = {}
    for endpoint, variant, model, version, buckets in document["durations"]:
        counts = {float(bound): float(number) for bound, number in buckets.items()}
        summed = accumulate(counts.get(bound, 0.0) for bound in bounds)
        timed[endpoint, variant, model, version] = dict(zip(bounds, summed, strict=True))
    return timed


def _count(sums: defaultdict[str, float], status: str, requests: float) -> None:
    """Add requests with a status to the counters of a version, except requests whose
    client has disconnected.
    """
    if status != _CALLER_LEFT:
        sums["requests"] += requests
        if not status.startswith("2"):
            sums["errors"] += requests
        if status.startswith("4"):
            sums["refused"] += requests
