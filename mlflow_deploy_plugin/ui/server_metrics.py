"""The figures of variants from a server's `/metrics`, read once with a short timeout."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import requests
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.deployments import ServerSession

_TIMEOUT_SECONDS = 1.5
_AT_ONCE = 8
_REQUESTS, _SECONDS = "onnxserve_requests", "onnxserve_request_duration_seconds"

VariantKey = tuple[str, str, str]
"""Variant (empty if the server does not label variants), model, version."""


@dataclass(frozen=True)
class VariantMetrics:
    """The answers of one variant since its server's start.

    Attributes:
        failures: the number of answers with a status of 5xx.
        p99_seconds: an upper bound, the end of a bucket; None before the first answer.
    """

    requests: int = 0
    failures: int = 0
    p99_seconds: float | None = None


@dataclass(frozen=True)
class Scrape:
    """The result of reading a server's metrics; `error` is empty if it answered."""

    error: str = ""
    figures: Mapping[VariantKey, VariantMetrics] | None = None

    def of(self, variant: str, model: str, version: str) -> VariantMetrics:
        """Return the figures of a variant, or of its model if the server does not label variants."""
        figures = self.figures or {}
        return figures.get((variant, model, version)) or figures.get(("", model, version)) or VariantMetrics()


def scrape_servers(servers: Mapping[str, str]) -> dict[str, Scrape]:
    """Return the metrics of each endpoint's server; `servers` maps endpoints to URLs."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        answers = pool.map(lambda one: _scrape(one[0], one[1]), servers.items())
        return dict(zip(servers, answers, strict=True))


def _scrape(endpoint: str, url: str) -> Scrape:
    try:
        with ServerSession() as session:
            answer = session.get(f"{url}/metrics", timeout=_TIMEOUT_SECONDS)
        answer.raise_for_status()
        return Scrape(figures=_variant_metrics(endpoint, answer.text))
    except requests.Timeout:
        return Scrape(f"no answer within {_TIMEOUT_SECONDS} s")
    except requests.HTTPError as error:
        return Scrape(f"it answers {error.response.status_code}")
    except requests.RequestException:
        return Scrape("nothing answers there")
    except ValueError:
        return Scrape("its metrics cannot be read")


def _variant_metrics(endpoint: str, text: str) -> dict[VariantKey, VariantMetrics]:
    counted: dict[VariantKey, int] = defaultdict(int)
    failed: dict[VariantKey, int] = defaultdict(int)
    buckets: dict[VariantKey, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(text):
        if family.name not in (_REQUESTS, _SECONDS):
            continue
        for sample in family.samples:
            labels = sample.labels
            if labels.get("endpoint") != endpoint:
                continue
            key = labels.get("variant", ""), labels.get("model", ""), labels.get("version", "")
            if sample.name == f"{_REQUESTS}_total":
                counted[key] += int(sample.value)
                failed[key] += int(sample.value) if labels.get("status", "").startswith("5") else 0
            elif sample.name == f"{_SECONDS}_bucket":
                buckets[key][float(labels["le"])] += sample.value
    return {key: VariantMetrics(counted[key], failed[key], _p99(buckets[key].items())) for key in counted}


def _p99(buckets: Iterable[tuple[float, float]]) -> float | None:
    cumulative = sorted(buckets)
    if not cumulative or not cumulative[-1][1]:
        return None
    return next(bound for bound, count in cumulative if count >= 0.99 * cumulative[-1][1])
