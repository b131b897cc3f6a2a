"""Tests of the pictures of an endpoint from its server, the store and MLflow, and on
the page.
"""

import math
import re
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import mlflow
import orjson
import pytest

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, MonitorWindow
from mlflow_deploy_plugin.core.store.store import Endpoint, Rollout
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import CountedInterval, VersionCounters
from mlflow_deploy_plugin.ui import overview
from mlflow_deploy_plugin.ui.mlflow_pages import MlflowPages, MonitorVerdict
from mlflow_deploy_plugin.ui.pictures import (
    Timeline,
    endpoint_pictures,
    newest_verdicts,
    rollout_picture,
    traffic_charts,
)
from tests.support.console import PAGE
from tests.support.metrics_page import serving
from tests.support.monitors import judged_window
from tests.support.refusals import mentions

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = [NOW.timestamp() - 10 * left for left in reversed(range(360))]
DAY = timedelta(days=1)


def interval(at, *, seconds=10.0, labels=0, **requests):
    """Return ten seconds in which versions of `m` answered these numbers of requests,
    each in 2 to 4 ms; 6 % failed, 4 % were refused.
    """
    counters = {
        ("f", "main", "m", version.removeprefix("v")): VersionCounters(
            number, number / 10, {0.002: 0.0, 0.004: number, math.inf: number}, refused=number / 25
        )
        for version, number in requests.items()
    }
    return CountedInterval(at, seconds, counters, {"f": sum(requests.values())}, labels)


def charts(*history, now=NOW):
    pictures, notice = traffic_charts("f", {"f": history}, "hour", now)
    return {chart.title: chart for chart in pictures}, notice


def failures(pictures):
    return next(chart for title, chart in pictures.items() if title.startswith("Failures"))


def last(chart):
    return {line.name: line.last for line in chart.lines}


def test_charts_have_a_line_per_version():
    pictures, notice = charts(*(interval(at, v9=50, v10=5, labels=6) for at in HOUR))

    assert last(pictures["Requests"]) == {"version 9": "5 /s", "version 10": "0.5 /s"}
    assert last(pictures["Latency"])["version 9 p99"] == "3.98 ms"
    assert last(pictures["Latency"])["version 10 median"] == "3 ms"
    assert last(failures(pictures)) == {
        "version 9": "6 %",
        "version 9 refused": "4 %",
        "version 10": "6 %",
        "version 10 refused": "4 %",
    }
    assert last(pictures["Rows and labels"]) == {
        "rows answered": "330 /min",
        "labels received": "36 /min",
    }
    assert [line.colour for line in failures(pictures).lines] == [0, 0, 1, 1]
    assert notice == ""
    assert pictures["Requests"].axis.ticks[0] == "60 min ago"


def test_long_latency_is_in_seconds():
    slow = VersionCounters(100, 0, {0.002: 0, 0.004: 60, 9.0: 98, 10.0: 100, math.inf: 100})
    pictures, _ = charts(CountedInterval(HOUR[-1], 10, {("f", "main", "m", "1"): slow}))

    assert pictures["Latency"].unit == "s"
    assert pictures["Latency"].ticks == ("10", "5", "0")
    assert last(pictures["Latency"]) == {"version 1 p99": "9.5 s", "version 1 median": "3.67 ms"}


def test_sparse_traffic_is_a_line_with_its_count():
    busy = [interval(at, v1=2) for at in HOUR[::12]]
    pictures, _ = charts(*busy, *(interval(at) for at in HOUR if at not in HOUR[::12]))
    assert failures(pictures).title == "Failures, 4 of 60"
    errors = failures(pictures).lines[0]
    assert errors.path.count("M") == 1
    assert errors.path.count("L") == len(busy) - 1
    assert errors.last == "6 %"


def test_missing_interval_is_a_gap():
    busy = [interval(at, v1=20) for at in HOUR[:60]]
    idle = [interval(at) for at in HOUR[60:120] + HOUR[240:]]
    pictures, _ = charts(*busy, *idle)

    (line,) = pictures["Requests"].lines
    assert line.path.count("M") == 2
    assert line.last == "0 /s"
    for errors in failures(pictures).lines:
        assert errors.path.count("M") == 1  # Without requests, the share is unknown.
        assert errors.last == "–"


def test_young_server_fills_the_chart():
    """The interval of a late line is longer, and leaves no gap."""
    times = (*HOUR[-9:-5], *HOUR[-2:])
    seconds = {HOUR[-2]: 40}
    pictures, _ = charts(*(interval(at, seconds=seconds.get(at, 10), v1=1) for at in times))

    assert pictures["Requests"].axis.ticks == ("2 min ago", "90 s", "60 s", "30 s", "now")
    (line,) = pictures["Requests"].lines
    assert line.path.count("M") == 1


def test_figures_of_pods_are_added_up():
    pods: dict[str, list[CountedInterval] | Refused] = {
        "f-1": [interval(at, v1=60, labels=3) for at in HOUR],
        # The third pod has replaced this pod.
        "f-2": [interval(at + 4, v1=20) for at in HOUR[:120]],
        "f-3": [interval(HOUR[-1] - 12, v2=20)],
        "f-4": Refused("no command can be run there"),
    }
    pictures, notice = traffic_charts("f", pods, "hour", NOW)
    requests, latency, errors, rows = pictures

    assert last(requests) == {"version 1": "6 /s", "version 2": "2 /s"}
    assert mentions(requests.summary, "version 1: now 6 /s", "8 /s")
    assert last(latency)["version 1 p99"] == "3.98 ms"
    assert last(errors)["version 1"] == "6 %"
    assert last(rows) == {"rows answered": "480 /min", "labels received": "18 /min"}
    assert mentions(notice, "No figures", "f-4", "no command")


@pytest.mark.parametrize(
    ("busy", "seconds"),
    [(HOUR[-1:], 120), (HOUR[-12:-10], 120), (HOUR[-60:-36], 1200)],
    ids=["now", "minutes", "recent"],
)
def test_time_axis_fits_the_requests(busy, seconds):
    requests = dict.fromkeys(busy, 1.0)
    pictures, _ = charts(*(interval(at, v1=requests.get(at, 0.0)) for at in HOUR))
    chart = pictures["Requests"]
    assert chart.axis.end - chart.axis.begin == timedelta(seconds=seconds)
    assert chart.axis.end == NOW
    assert chart.top == 0.1
    assert "0.0" in chart.lines[0].path.split(), "the requests are in the chart"


@pytest.mark.parametrize(
    ("late", "words"),
    [
        (59, []),
        (61, ["No figures since 2026-11-21 12:00:00 UTC", "does not run"]),
        (-59, []),
        (-3600, ["clock", "60 min ahead"]),
    ],
)
def test_silence_and_wrong_clock_are_noticed(late, words):
    pictures, notice = charts(interval(HOUR[-1], v1=10), now=NOW + timedelta(seconds=late))
    assert bool(notice) is bool(words)
    assert mentions(notice, *words)
    assert pictures["Requests"].lines[0].path


def test_charts_without_figures_are_empty():
    def empty(server, span="hour"):
        pictures, notice = traffic_charts("f", {"f": server}, span, NOW)
        return [chart.empty for chart in pictures], notice

    texts, notice = empty(Refused("the server does not answer"))
    assert mentions(notice, "No figures", "does not answer")
    assert texts == empty([])[0] == ["no figures yet"] * 4
    assert empty([interval(HOUR[-1])], "day")[0] == [*["no requests in the last day"] * 3, ""]


def test_busiest_versions_have_lines():
    counted = interval(HOUR[-1], **{f"v{number}": float(number) for number in range(1, 10)})
    pictures, _ = charts(counted)
    assert [*last(pictures["Requests"])] == [f"version {number}" for number in range(4, 10)]
    counters = {("f", "a", "x", "1"): VersionCounters(1), ("f", "b", "y", "1"): VersionCounters(2)}
    both, _ = charts(CountedInterval(HOUR[-1], 10, counters))
    assert [*last(both["Requests"])] == ["x 1", "y 1"]


def rollout(state="stepping", step=1, ended_at=None, **figures):
    spec = {"steps": [1, 10, 100], "version": "7", "before_version": "6", "min_requests": 100}
    begun = NOW - timedelta(seconds=90)
    return Rollout(1, "f", spec, state, step, begun, figures, "", begun, NOW, ended_at)


def test_rollout_has_a_line_per_criterion():
    criterion = {
        "figures": "2.00% of 100 requests to version 7 failed",
        "log_evidence": 4.5,
        "log_evidence_needed": 5,
    }
    figures = {
        "trace": [[at, 0, {"error_rate>1%": at / 100}] for at in range(0, 91, 10)],
        "criteria": {"error_rate>1%": criterion},
        "candidate": {"requests": 100},
    }
    picture = rollout_picture(rollout(**figures), NOW)

    assert mentions(picture.title, "Rollout", "6", "7")
    assert picture.steps == (("1 %", "done"), ("10 %", "now"), ("100 %", "to come"))
    (line,) = picture.chart.lines
    assert picture.chart.limit == 0.0
    assert picture.chart.axis.ticks[-1] == "2 min"
    assert line.path.startswith("M0.0 100.0")
    assert line.last == "90 %"
    assert re.search(r"L756\.\d 10\.0$", line.path)
    assert picture.counts[1] == f"error_rate>1%: {criterion['figures']}"


@pytest.mark.parametrize(
    "figures", [{}, {"trace": [[1]], "criteria": {"p99>2x": {}}}, {"trace": [3], "criteria": {}}]
)
def test_unreadable_evidence_is_omitted(figures):
    assert mentions(rollout_picture(rollout(**figures), NOW).chart.empty, "not judged yet")


def test_ended_rollout_has_no_current_step():
    promoted = rollout_picture(rollout("promoted", 2, NOW), NOW)
    ended = rollout_picture(rollout("rolled_back", 1, NOW), NOW + timedelta(days=3))
    assert [place for _, place in promoted.steps] == ["done"] * 3
    assert [place for _, place in ended.steps] == ["done", "to come", "to come"]
    assert ended.chart.axis.ticks[-1] == "2 min"


def verdict(day, state="no drift", mark="fine"):
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
    end = start + DAY
    stored = MonitorWindow(1, "f", "drift", start, end, 1, False, "judged", end, end)
    return MonitorVerdict(stored, state, mark)


def test_timeline_has_the_newest_verdicts():
    again = verdict(2, mark="waiting")
    verdicts = newest_verdicts([verdict(1), verdict(2), verdict(2, "drift"), again, verdict(3)], 2)
    assert [(entry.window, entry.state) for entry in verdicts] == [
        ("2026-01-03", "drift"),
        ("2026-01-04", "no drift"),
    ]


def test_latest_verdict_is_before_waiting_windows():
    def latest(*windows):
        return Timeline("drift", windows).latest

    waiting = verdict(5, mark="waiting")
    alarm = verdict(4, "drift")
    failed = verdict(4, mark="failed")
    assert latest(alarm, waiting) == alarm
    assert latest(failed, waiting, waiting) == failed
    assert latest(waiting) == waiting
    assert latest() is None


def history_line(at, endpoint="f"):
    """Return a line of the server's history: 70 requests in ten seconds."""
    counted = [[endpoint, "main", "m", "3", "200", 70]]
    line = {"at": at, "seconds": 10, "requests": counted, "durations": [], "rows": {}, "labels": 0}
    return orjson.dumps(line)


def test_server_on_another_machine_is_asked(mlflow_app):
    line = history_line(time.time(), "far").decode()
    with serving({"/metrics/history?span=hour": line}) as url:
        spec = apply_config(new_endpoint("far", "models:/m/1"), {"server.port": urlsplit(url).port})
        stored = Endpoint("far", "onnxserve", spec, NOW, NOW)
        deployments = Deployments(mlflow_app.store, load_settings(), print)
        running, stopped = (
            endpoint_pictures(
                ObservedEndpoint(stored, observation),
                deployments,
                MlflowPages(None, ""),
                "hour",
                only_traffic=True,
            )
            for observation in (Observation("running", url=url), Observation("stopped"))
        )

    assert last(running.charts[0]) == {"version 3": "7 /s"}
    assert running.notice == ""
    assert mentions(stopped.notice, "No figures", "is not running")


@pytest.fixture
def page(mlflow_app):
    """A function that returns a page of the console."""
    return lambda path="": mlflow_app.client.get(f"{PAGE}{path}").text


@pytest.fixture
def history(mlflow_app):
    """An endpoint `f` whose server has just ended, after an hour of requests. Yield the
    file of its history.
    """
    folder = load_settings().state_dir("f") / "history"
    folder.mkdir(parents=True)
    lines = [history_line(time.time() - 10 * left) for left in reversed(range(1, 361))]
    (folder / "hour.jsonl").write_bytes(b"\n".join(lines))
    monitors = {"monitors.drift.every": "1d", "monitors.hits.every": "1h"}
    spec = new_endpoint("f", f"models:/{mlflow_app.model()}/1", monitors)
    mlflow_app.store.add_endpoint("onnxserve", spec)
    yield folder / "hour.jsonl"
    mlflow_app.store.remove_endpoint("f")
    (folder / "hour.jsonl").unlink()
    folder.rmdir()


PLANNED = {"steps": [10, 100], "version": "4", "before_version": "3"}


def test_overview_draws_only_traffic(mlflow_app, history, page):
    mlflow_app.store.add_rollout("f", PLANNED, "stepping")
    start = datetime(2026, 11, 20, tzinfo=UTC)
    Monitors(mlflow_app.store).add("f", "drift", start, start + DAY)
    experiment = mlflow.MlflowClient().create_experiment("onnxserve/f")
    judged_window(mlflow_app.store, "f", "drift", start - DAY, "drift", "a-run")

    small = page()
    whole = page("?endpoint=f")

    assert 'aria-label="Requests, from' in small
    assert mentions(small, "version 3: now 7 /s")
    assert "Rows and labels" not in small
    assert f'data-live="{PAGE}/pictures?endpoint=f&amp;whole=1&amp;span=hour"' in whole
    assert mentions(whole, "Rollout", "version 3 to 4", "not judged yet")
    report = f'href="/#/experiments/{experiment}/runs/a-run/artifacts/report.html"'
    assert f'class="window window-alarm" {report} title="drift, 2026-11-19: drift"' in whole
    assert 'window-waiting" title="drift, 2026-11-20: pending"' in whole


def test_monitors_have_their_newest_windows(mlflow_app, history, page):
    monitors = Monitors(mlflow_app.store)
    start = datetime(2026, 11, 20, tzinfo=UTC)
    hour = timedelta(hours=1)
    judged_window(mlflow_app.store, "f", "drift", start - timedelta(days=30), "drift", "")
    for number in range(70):
        monitors.add("f", "hits", start + number * hour, start + (number + 1) * hour)
    monitors.pause("f", "drift", actor="ada")

    html = page("?endpoint=f")

    assert re.findall(r"<h4>(\w+) <span[^>]*>([^<]*)<", html) == [
        ("drift", "1 window, 1 alarm"),
        ("hits", "60 windows"),
    ]
    assert 'class="reason">paused by ada' in html
    assert html.count('title="hits, ') == 60
    assert 'title="hits, 2026-11-22 21:00 – 22:00: pending"' in html


def test_pictures_are_loaded_without_the_page(mlflow_app, history):
    answer = mlflow_app.client.get(f"{PAGE}/pictures?endpoint=f&span=day&whole=1")
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "<html" not in answer.text
    assert "no figures yet" in answer.text


@pytest.mark.parametrize("path", ["/pictures?endpoint=nobody", "?endpoint=nobody", "/pictures"])
def test_unknown_endpoint_is_not_found(mlflow_app, history, path):
    answer = mlflow_app.client.get(f"{PAGE}{path}")
    assert answer.status_code == 404
    assert mentions(answer.text, "no endpoint")
    assert "flights" not in answer.text


def test_deleted_endpoint_rollout_is_hidden(mlflow_app, history, page):
    store = mlflow_app.store
    store.add_rollout("f", PLANNED, "stepping")
    spec = store.require_endpoint("f").spec
    store.remove_endpoint("f")
    store.add_endpoint("onnxserve", spec)
    assert "Rollout from" not in page("?endpoint=f")


def test_unreadable_history_is_reported(history, page):
    history.write_bytes(b'{"labels":{}}')
    assert mentions(page(), "No figures", "cannot be read")


def test_unavailable_store_is_plain_text(mlflow_app, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "sqlite:////proc/nobody/can/write/here.db")
    answer = mlflow_app.client.get(f"{PAGE}/pictures?endpoint=f")
    assert answer.status_code == 503
    assert answer.mimetype == "text/plain"
    assert mentions(answer.text, "the store", "sqlite:////proc/nobody")


@pytest.mark.parametrize(("drawn", "charts"), [(0, 0), (1, 3)])
def test_only_the_first_endpoints_are_drawn(history, page, monkeypatch, drawn, charts):
    monkeypatch.setattr(overview, "_DRAWN", drawn)
    html = page()
    assert html.count("data-live=") == 1
    assert html.count('class="chart"') == charts
