"""Generate Grafana's dashboards from the panels below: `python
docker/stack/grafana/make_dashboards.py`.

Grafana 11 is provisioned with the JSON files in dashboards/. A test compares the files
with this script, and sends every query to a real Prometheus. In a query, `$endpoint`
stands for the endpoints that are selected above the panels.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_OF = 'endpoint=~"$endpoint"'
_REFUSED = 'status=~"4..|INVALID_ARGUMENT"'
_FAILED = 'status=~"5.."'


@dataclass(frozen=True)
class Panel:
    """A panel: a chart over time, unless `kind` is set.

    Attributes:
        queries: expressions by the legend of their series.
    """

    title: str
    unit: str
    queries: dict[str, str]
    text: str = ""
    kind: str = "timeseries"


def _rate(metric: str, by: str, more: str = "") -> str:
    selected = ",".join(filter(None, [_OF, more]))
    return f"sum by ({by}) (rate({metric}{{{selected}}}[$__rate_interval]))"


def _quantiles(metric: str, by: str, legend: str, *quantiles: float) -> dict[str, str]:
    inner = _rate(f"{metric}_bucket", f"{by}, le")
    return {f"p{round(q * 100)} {legend}": f"histogram_quantile({q}, {inner})" for q in quantiles}


def _share(metric: str, by: str, part: str) -> str:
    """Return the share of a part, or 0 if the part has no series."""
    every = _rate(metric, by)
    return f"({_rate(metric, by, part)} or 0 * {every}) / {every}"


def _or_zero(query: str) -> str:
    return f"{query} or vector(0)"


def _max(metric: str, by: str, more: str = "") -> str:
    selected = ",".join(filter(None, [_OF, more]))
    return f"max by ({by}) ({metric}{{{selected}}})"


_VERSION = "{{model}} {{version}}"
_VARIANT = "{{variant}} ({{version}})"
_MONITOR = "{{endpoint}} {{monitor}}"

DASHBOARDS = {
    "traffic": (
        "Traffic and latency by version",
        [
            Panel(
                "Requests",
                "reqps",
                {_VERSION: _rate("onnxserve_requests_total", "model, version")},
            ),
            Panel(
                "Failures of the server",
                "percentunit",
                {_VERSION: _share("onnxserve_requests_total", "model, version", _FAILED)},
            ),
            Panel("Answers", "reqps", {"{{status}}": _rate("onnxserve_requests_total", "status")}),
            Panel(
                "Latency",
                "s",
                _quantiles(
                    "onnxserve_request_duration_seconds",
                    "model, version",
                    _VERSION,
                    0.5,
                    0.95,
                    0.99,
                ),
                (
                    "From the complete request to the complete response; interpolated between the "
                    "histogram's bounds."
                ),
            ),
            Panel(
                "Runs of the graph: waiting and computing",
                "s",
                _quantiles("onnxserve_queue_seconds", "model, version", f"waits, {_VERSION}", 0.99)
                | _quantiles(
                    "onnxserve_compute_seconds",
                    "model, version",
                    f"computes, {_VERSION}",
                    0.5,
                    0.99,
                ),
            ),
            Panel(
                "Rows per run",
                "short",
                {
                    _VERSION: f"{_rate('onnxserve_batch_rows_sum', 'model, version')}"
                    f" / {_rate('onnxserve_batch_rows_count', 'model, version')}",
                },
            ),
            Panel(
                "Protocols",
                "reqps",
                {"{{protocol}}": _rate("onnxserve_requests_total", "protocol")},
            ),
            Panel(
                "Refused by limits",
                "reqps",
                {"{{reason}}": _or_zero(_rate("onnxserve_refused_requests_total", "reason"))},
            ),
            Panel(
                "Served versions",
                "short",
                {
                    "": (
                        "sum by (endpoint, variant, model, version) "
                        f"(onnxserve_served_version{{{_OF}}}) > 0"
                    ),
                },
                "The number of workers that have loaded the version.",
                "table",
            ),
            Panel(
                "Versions that should be served, but are not",
                "short",
                {
                    "{{endpoint}} {{model}} {{version}}: {{cause}}": _or_zero(
                        _max("onnxserve_wanted_version_refused", "endpoint, model, version, cause"),
                    ),
                },
            ),
        ],
    ),
    "canary": (
        "Canary beside champion",
        [
            Panel(
                "Share of the traffic",
                "percentunit",
                {
                    _VARIANT: (
                        f"{_rate('onnxserve_requests_total', 'endpoint, variant, version')} / on "
                        f"(endpoint) group_left () {_rate('onnxserve_requests_total', 'endpoint')}"
                    ),
                },
            ),
            Panel(
                "Requests",
                "reqps",
                {_VARIANT: _rate("onnxserve_requests_total", "variant, version")},
            ),
            Panel(
                "Failures of the server",
                "percentunit",
                {_VARIANT: _share("onnxserve_requests_total", "variant, version", _FAILED)},
            ),
            Panel(
                "Refused inputs",
                "percentunit",
                {_VARIANT: _share("onnxserve_requests_total", "variant, version", _REFUSED)},
                "A model that no longer accepts its clients' requests is visible here.",
            ),
            Panel(
                "Latency",
                "s",
                _quantiles(
                    "onnxserve_request_duration_seconds",
                    "variant, version",
                    _VARIANT,
                    0.5,
                    0.95,
                    0.99,
                ),
            ),
            Panel(
                "Predicted labels",
                "percentunit",
                {
                    "{{model_version}}: {{prediction}}": (
                        "sum by (model_version, prediction) "
                        "(rate(ml_predictions_total[$__rate_interval])) / on (model_version) "
                        "group_left () sum by (model_version) "
                        "(rate(ml_predictions_total[$__rate_interval]))"
                    ),
                },
                "By version, of all endpoints.",
            ),
            Panel(
                "Shadows: rows with a different prediction",
                "percentunit",
                {
                    _VARIANT: _share(
                        "onnxserve_shadow_rows_total",
                        "variant, version",
                        'agreement="different"',
                    ),
                },
            ),
            Panel(
                "Shadows: time per run",
                "s",
                _quantiles("onnxserve_shadow_duration_seconds", "variant, version", _VARIANT, 0.99),
            ),
        ],
    ),
    "monitors": (
        "Drift and accuracy over time",
        [
            Panel(
                "Share of drifted columns",
                "percentunit",
                {_MONITOR: _max("onnxserve_drift_share", "endpoint, monitor")},
            ),
            Panel(
                "Quality, with its 95 % interval",
                "short",
                {
                    f"{_MONITOR} {{{{metric}}}}": _max(
                        "onnxserve_monitor_metric",
                        "endpoint, monitor, metric",
                        'metric=~"(accuracy|f1|precision|recall|roc_auc|log_loss|brier|mae|rmse|mape|r2)(_low|_high)?"',
                    ),
                },
                "For the last judged window. The report has all details.",
            ),
            Panel(
                "State",
                "short",
                {
                    f"{_MONITOR}: {{{{state}}}}": _max(
                        "onnxserve_monitor_state",
                        "endpoint, monitor, state",
                    )
                    + " == 1",
                },
                kind="state-timeline",
            ),
            Panel(
                "Open alerts",
                "short",
                {_MONITOR: _max("onnxserve_alerts_firing", "endpoint, monitor")},
            ),
            Panel(
                "Windows by verdict",
                "short",
                {
                    f"{_MONITOR}: {{{{verdict}}}}": _max(
                        "onnxserve_monitor_windows_total",
                        "endpoint, monitor, verdict",
                    ),
                },
            ),
            Panel(
                "Rows and labelled rows per window",
                "short",
                {
                    f"{_MONITOR} {{{{metric}}}}": _max(
                        "onnxserve_monitor_metric",
                        "endpoint, monitor, metric",
                        'metric=~"rows|labelled_rows"',
                    ),
                },
            ),
            Panel(
                "Time since the last judgement",
                "s",
                {
                    _MONITOR: "time() - "
                    + _max("onnxserve_monitor_last_success_timestamp_seconds", "endpoint, monitor"),
                },
            ),
            Panel(
                "Received labels",
                "cps",
                {
                    "{{outcome}}": (
                        "sum by (outcome) (rate(onnxserve_feedback_labels_total[$__rate_interval]))"
                    ),
                },
            ),
            Panel(
                "Retrainings",
                "short",
                {
                    f"{_MONITOR}: {{{{state}}}}": _or_zero(
                        _max("onnxserve_retrainings", "endpoint, monitor, state"),
                    ),
                },
            ),
            Panel(
                "The store answers",
                "short",
                {"{{instance}}": "onnxserve_store_up"},
                kind="stat",
            ),
        ],
    ),
    "capture": (
        "Capture, log and agents",
        [
            Panel("Rows", "cps", {"{{outcome}}": _rate("onnxserve_capture_rows_total", "outcome")}),
            Panel(
                "Lost rows",
                "cps",
                {
                    "{{endpoint}} {{instance}}": _or_zero(
                        _rate(
                            "onnxserve_capture_rows_total",
                            "endpoint, instance",
                            'outcome="dropped"',
                        ),
                    ),
                },
            ),
            Panel(
                "Delay of the log",
                "s",
                {"{{instance}}": "time() - onnxserve_log_complete_until_timestamp_seconds"},
            ),
            Panel("Agents", "short", {"{{instance}}": "onnxserve_agent_up"}, kind="stat"),
            Panel(
                "Errors that prevent serving the spec",
                "short",
                {"{{instance}}": "onnxserve_agent_errors"},
            ),
            Panel(
                "Time since the last poll of the registry",
                "s",
                {"{{instance}}": "time() - (onnxserve_registry_checked_timestamp_seconds > 0)"},
            ),
        ],
    ),
    "gpu": (
        "GPUs",
        [
            Panel(
                "Memory",
                "bytes",
                {
                    "{{instance}} {{gpu}}": "onnxserve_gpu_memory_used_bytes",
                    "{{instance}} {{gpu}} has": "onnxserve_gpu_memory_total_bytes",
                },
            ),
            Panel(
                "Utilization",
                "percentunit",
                {"{{instance}} {{gpu}}": "onnxserve_gpu_utilization_ratio"},
            ),
            Panel(
                "Temperature",
                "celsius",
                {"{{instance}} {{gpu}}": "onnxserve_gpu_temperature_celsius"},
            ),
            Panel("Power", "watt", {"{{instance}} {{gpu}}": "onnxserve_gpu_power_watts"}),
        ],
    ),
}


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": _SOURCE,
            "expr": query,
            "legendFormat": legend or "__auto",
            **({"format": "table", "instant": True} if panel.kind == "table" else {"range": True}),
        }
        for place, (legend, query) in enumerate(panel.queries.items())
    ]
    custom = (
        {"lineWidth": 2, "fillOpacity": 10, "showPoints": "never"}
        if panel.kind == "timeseries"
        else {}
    )
    defaults = {
        "unit": panel.unit,
        "custom": custom,
        **({"min": 0} if panel.kind == "timeseries" else {}),
    }
    return {
        "id": number + 1,
        "title": panel.title,
        "description": panel.text,
        "type": panel.kind,
        "datasource": _SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}}
        if panel.kind == "timeseries"
        else {},
        "targets": targets,
    }


def dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard of Grafana 11."""
    title, panels = DASHBOARDS[name]
    endpoints = "label_values(onnxserve_served_version, endpoint)"
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
    }
    variables: list[dict[str, Any]] = [source]
    if any("$endpoint" in query for panel in panels for query in panel.queries.values()):
        asked = {"qryType": 1, "query": endpoints, "refId": "endpoint"}
        every = {
            "multi": True,
            "includeAll": True,
            "allValue": ".+",
            "current": {"text": "All", "value": "$__all"},
        }
        endpoint = {
            "name": "endpoint",
            "label": "Endpoint",
            "type": "query",
            "datasource": _SOURCE,
            "refresh": 2,
        }
        variables.append({**endpoint, **every, "definition": endpoints, "query": asked})
    return {
        "uid": f"onnxserve-{name}",
        "title": title,
        "tags": ["onnxserve"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "title": "onnxserve",
                "type": "dashboards",
                "tags": ["onnxserve"],
                "keepTime": True,
                "asDropdown": True,
            },
        ],
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def text(name: str) -> str:
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(text(each))
