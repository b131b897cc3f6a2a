"""Tests of the pictures of an endpoint from its server, the store and MLflow, and on
the page.
"""

import math
import re
import time
from dataclasses import replace
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
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    CountedInterval,
    VersionCounters,
    parse_server_history,
)
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


def last(chart):
    return {line.name: line.last for line in chart.lines}


def test_requests_latency_errors_rows_and_labels_by_version():
    pictures, notice = charts(*(interval(at, v9=50, v10=5, labels=6) for at in HOUR))

    assert last(pictures["Requests"]) == {"version 9": "5 /s", "version 10": "0.5 /s"}
    assert last(pictures["Latency"])["version 9 p99"] == "3.98 ms"
    assert last(pictures["Latency"])["version 10 median"] == "3 ms"
    assert last(pictures["Failures"]) == {
        "version 9": "6 %",
        "version 9 refused": "4 %",
        "version 10": "6 %",
        "version 10 refused": "4 %",
    }
    assert last(pictures["Rows and labels"]) == {
        "rows answered": "330 /min",
        "labels received": "36 /min",
    }
    assert [line.colour for line in pictures["Failures"].lines] == [0, 0, 1, 1]
    assert notice == ""
    assert pictures["Requests"].axis.ticks[0] == "60 min ago"


def test_seconds_are_drawn_as_seconds():
    slow = VersionCounters(100, 0, {0.002: 0, 0.004: 60, 9.0: 98, 10.0: 100, math.inf: 100})
    pictures, _ = charts(CountedInterval(HOUR[-1], 10, {("f", "main", "m", "1"): slow}))

    assert pictures["Latency"].unit == "s"
    assert pictures["Latency"].ticks == ("10", "5", "0")
    assert last(pictures["Latency"]) == {"version 1 p99": "9.5 s", "version 1 median": "3.67 ms"}


def test_an_interval_without_a_server_is_a_gap_and_one_without_requests_is_zero():
    busy = [interval(at, v1=20) for at in HOUR[:60]]
    idle = [interval(at) for at in HOUR[60:120] + HOUR[240:]]
    pictures, _ = charts(*busy, *idle)

    (line,) = pictures["Requests"].lines
    assert line.path.count("M") == 2
    assert line.last == "0 /s"
    for errors in pictures["Failures"].lines:
        assert errors.path.count("M") == 1  # Without requests, the share is unknown.
        assert errors.last == "–"


def test_a_young_server_fills_its_picture_and_a_late_line_leaves_no_gap():
    pictures, _ = charts(
        *(
            interval(at, seconds=40 if at == HOUR[-2] else 10, v1=1)
            for at in (*HOUR[-9:-5], *HOUR[-2:])
        )
    )

    assert pictures["Requests"].axis.ticks == ("2 min ago", "90 s", "60 s", "30 s", "now")
    (line,) = pictures["Requests"].lines
    assert line.path.count("M") == 1


def test_the_figures_of_several_pods_are_added_up_also_where_one_has_just_come():
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


def test_one_interval_is_a_dot():
    pictures, _ = charts(interval(HOUR[-1], v1=10))
    assert pictures["Requests"].lines[0].path.endswith("h0")


@pytest.mark.parametrize(
    ("late", "said"),
    [
        (0, ""),
        (59, ""),
        (61, "No figures since 2026-11-21 12:00:00 UTC: the server or its agent does not run"),
        (-59, ""),
        (-3600, "The server's clock is 60 min ahead of this machine's clock"),
    ],
)
def test_silent_server_or_wrong_clock_gives_a_notice(late, said):
    pictures, notice = charts(interval(HOUR[-1], v1=10), now=NOW + timedelta(seconds=late))
    assert notice == said
    assert pictures["Requests"].lines[0].path


def test_without_figures_the_picture_says_why():
    pictures, notice = traffic_charts(
        "f", {"f": Refused("the server does not answer")}, "hour", NOW
    )
    assert mentions(notice, "No figures", "does not answer")
    assert {chart.empty for chart in pictures} == {"no figures yet"}
    assert {chart.empty for chart in traffic_charts("f", {"f": []}, "day", NOW)[0]} == {
        "no figures yet"
    }
    idle = traffic_charts("f", {"f": [interval(HOUR[-1])]}, "day", NOW)[0]
    assert [chart.empty for chart in idle] == [*["no requests in the last day"] * 3, ""]


def test_versions_of_several_models_have_their_names_and_of_many_the_busiest_are_shown():
    counted = interval(HOUR[-1], **{f"v{number}": float(number) for number in range(1, 10)})
    pictures, _ = charts(counted)
    assert [*last(pictures["Requests"])] == [f"version {number}" for number in range(4, 10)]
    both = CountedInterval(
        HOUR[-1],
        10,
        {("f", "a", "x", "1"): VersionCounters(1), ("f", "b", "y", "1"): VersionCounters(2)},
    )
    assert [*last(charts(both)[0]["Requests"])] == ["x 1", "y 1"]


def test_figures_that_are_none_are_a_gap():
    pictures, _ = charts(interval(HOUR[-2], v1=math.nan), interval(HOUR[-1], v1=math.inf))
    assert [line.path for line in pictures["Requests"].lines] == [""]


def rollout(state="stepping", step=1, ended_at=None, **figures):
    spec = {"steps": [1, 10, 100], "version": "7", "before_version": "6", "min_requests": 100}
    begun = NOW - timedelta(seconds=90)
    return Rollout(1, "f", spec, state, step, begun, figures, "", begun, NOW, ended_at)


def test_a_rollout_s_evidence_is_a_line_for_each_criterion():
    criterion = {
        "figures": "2.00% of 100 requests to version 7 failed",
        "log_evidence": 4.5,
        "log_evidence_needed": 5,
    }
    trace = [[at, 0, {"error_rate>1%": at / 100}] for at in range(0, 91, 10)]
    picture = rollout_picture(
        rollout(trace=trace, criteria={"error_rate>1%": criterion}, candidate={"requests": 100}),
        NOW,
    )

    assert mentions(picture.title, "Rollout", "6", "7")
    assert picture.steps == (("1 %", "done"), ("10 %", "now"), ("100 %", "to come"))
    (line,) = picture.chart.lines
    assert picture.chart.limit == 0.0
    assert picture.chart.axis.ticks[-1] == "2 min"
    assert line.path[:10] == "M0.0 100.0"
    assert line.last == "90 %"
    assert re.search(r"L(\d+)\.\d 10\.0$", line.path)[1] == "756"  # type: ignore[index]
    assert picture.counts[1] == f"error_rate>1%: {criterion['figures']}"


@pytest.mark.parametrize(
    "figures", [{}, {"trace": [[1]], "criteria": {"p99>2x": {}}}, {"trace": [3], "criteria": {}}]
)
def test_evidence_that_another_onnxserve_has_written_is_left_out(figures):
    assert mentions(rollout_picture(rollout(**figures), NOW).chart.empty, "not judged yet")


def test_a_rollout_that_has_ended_has_no_step_now():
    assert [place for _, place in rollout_picture(rollout("promoted", 2, NOW), NOW).steps] == [
        "done"
    ] * 3
    ended = rollout_picture(rollout("rolled_back", 1, NOW), NOW + timedelta(days=3))
    assert [place for _, place in ended.steps] == ["done", "to come", "to come"]
    assert ended.chart.axis.ticks[-1] == "2 min"


def verdict(day, state="no drift", **more):
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
    end = start + timedelta(days=1)
    stored = MonitorWindow(1, "f", "drift", start, end, 1, False, "judged", end, end)
    return MonitorVerdict(stored, state, "fine", **more)


def test_a_timeline_has_the_newest_windows_in_their_order_and_the_newest_verdict_of_each():
    again = replace(verdict(2), mark="waiting")
    verdicts = newest_verdicts([verdict(1), verdict(2), verdict(2, "drift"), again, verdict(3)], 2)
    assert [(entry.window, entry.state) for entry in verdicts] == [
        ("2026-01-03", "drift"),
        ("2026-01-04", "no drift"),
    ]


def test_while_a_window_waits_the_verdict_before_it_is_the_latest():
    def latest(*windows):
        return Timeline("drift", windows).latest

    waiting = replace(verdict(5), mark="waiting")
    alarm = verdict(4, "drift")
    failed = replace(verdict(4), mark="failed")
    assert latest(alarm, waiting) == alarm
    assert latest(failed, waiting, waiting) == failed
    assert latest(waiting) == waiting
    assert latest() is None


def history_line(at, **requests):
    counted = [
        ["f", "main", "m", version.removeprefix("v"), "200", number]
        for version, number in requests.items()
    ]
    return orjson.dumps(
        {"at": at, "seconds": 10, "requests": counted, "durations": [], "rows": {}, "labels": 0}
    )


def test_a_server_without_a_folder_here_is_asked(mlflow_app):
    line = history_line(time.time(), v3=70).replace(b'"f"', b'"far"').decode()
    with serving({"/metrics/history?span=hour": line}) as url:
        spec = apply_config(new_endpoint("far", "models:/m/1"), {"server.port": urlsplit(url).port})
        observed = ObservedEndpoint(
            Endpoint("far", "onnxserve", spec, NOW, NOW), Observation("running", url=url)
        )
        deployments = Deployments(mlflow_app.store, load_settings(), print)
        pictures = endpoint_pictures(
            observed, deployments, MlflowPages(None, ""), "hour", only_traffic=True
        )
        away = replace(observed, observation=Observation("stopped"))
        gone = endpoint_pictures(
            away, deployments, MlflowPages(None, ""), "hour", only_traffic=True
        )

    assert last(pictures.charts[0]) == {"version 3": "7 /s"}
    assert pictures.notice == ""
    assert mentions(gone.notice, "No figures", "is not running")


@pytest.fixture
def drawn(mlflow_app):
    """Yield the URL of an endpoint `f` whose server has just ended, after an hour of
    requests.
    """
    folder = load_settings().state_dir("f") / "history"
    folder.mkdir(parents=True)
    lines = [history_line(time.time() - 10 * left, v3=70) for left in reversed(range(1, 361))]
    (folder / "hour.jsonl").write_bytes(b"\n".join(lines))
    monitors = {"monitors.drift.every": "1d", "monitors.hits.every": "1h"}
    mlflow_app.store.add_endpoint(
        "onnxserve", new_endpoint("f", f"models:/{mlflow_app.model()}/1", monitors)
    )
    yield "f"
    mlflow_app.store.remove_endpoint("f")
    (folder / "hour.jsonl").unlink()
    folder.rmdir()


def test_the_overview_has_the_traffic_and_the_endpoint_s_own_page_everything(mlflow_app, drawn):
    mlflow_app.store.add_rollout(
        "f", {"steps": [10, 100], "version": "4", "before_version": "3"}, "stepping"
    )
    start = datetime(2026, 11, 20, tzinfo=UTC)
    Monitors(mlflow_app.store).add("f", "drift", start, start + timedelta(days=1))
    experiment = mlflow.MlflowClient().create_experiment("onnxserve/f")
    judged_window(mlflow_app.store, "f", "drift", start - timedelta(days=1), "drift", "a-run")

    small = mlflow_app.client.get(PAGE).text
    whole = mlflow_app.client.get(f"{PAGE}?endpoint=f").text

    assert 'aria-label="Requests, from' in small
    assert mentions(small, "version 3: now 7 /s")
    assert "Rows and labels" not in small
    assert f'data-live="{PAGE}/pictures?endpoint=f&amp;whole=1&amp;span=hour"' in whole
    assert mentions(whole, "Rollout", "version 3 to 4")
    assert mentions(whole, "not judged yet")
    report = f'href="/#/experiments/{experiment}/runs/a-run/artifacts/report.html"'
    assert re.search(
        rf'class="window window-alarm" {report} title="drift, 2026-11-19: drift"', whole
    )
    assert re.search(r'window-waiting" title="drift, 2026-11-20: pending"', whole)


def test_each_monitor_has_its_newest_windows_and_says_why_there_will_be_no_more(mlflow_app, drawn):
    monitors = Monitors(mlflow_app.store)
    start = datetime(2026, 11, 20, tzinfo=UTC)
    hour = timedelta(hours=1)
    judged_window(mlflow_app.store, "f", "drift", start - timedelta(days=30), "drift", "")
    for number in range(70):
        monitors.add("f", "hits", start + number * hour, start + (number + 1) * hour)
    monitors.pause("f", "drift", actor="ada")

    html = mlflow_app.client.get(f"{PAGE}?endpoint=f").text

    assert re.findall(r"<h4>(\w+) <span[^>]*>([^<]*)<", html) == [
        ("drift", "1 window, 1 alarm"),
        ("hits", "60 windows"),
    ]
    assert 'class="reason">paused by ada' in html
    assert html.count('title="hits, ') == 60
    assert re.search('title="hits, 2026-11-22 21:00 – 22:00: pending"', html)


def test_the_script_gets_the_pictures_alone(mlflow_app, drawn):
    answer = mlflow_app.client.get(f"{PAGE}/pictures?endpoint=f&span=day&whole=1")
    assert answer.status_code == 200
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    html = answer.text
    assert "<html" not in html
    assert "no figures yet" in html


@pytest.mark.parametrize(
    "path", [f"{PAGE}/pictures?endpoint=nobody", f"{PAGE}?endpoint=nobody", f"{PAGE}/pictures"]
)
def test_unknown_endpoint_is_not_found_and_reveals_no_other(mlflow_app, drawn, path):
    answer = mlflow_app.client.get(path)
    html = answer.text
    assert answer.status_code == 404
    assert mentions(html, "no endpoint")
    assert "flights" not in html


def test_a_rollout_of_an_earlier_endpoint_of_the_name_is_not_shown(mlflow_app, drawn):
    mlflow_app.store.add_rollout(
        "f", {"steps": [100], "version": "4", "before_version": "3"}, "stepping"
    )
    spec = mlflow_app.store.require_endpoint("f").spec
    mlflow_app.store.remove_endpoint("f")
    mlflow_app.store.add_endpoint("onnxserve", spec)
    assert "Rollout from" not in mlflow_app.client.get(f"{PAGE}?endpoint=f").text


def test_unreadable_history_is_reported(mlflow_app, drawn):
    file = load_settings().state_dir("f") / "history" / "hour.jsonl"
    file.write_bytes(b'{"labels":{}}')
    assert mentions(mlflow_app.client.get(PAGE).text, "No figures", "cannot be read")


def test_unavailable_store_is_a_plain_text_error(mlflow_app, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "sqlite:////proc/nobody/can/write/here.db")
    answer = mlflow_app.client.get(f"{PAGE}/pictures?endpoint=f")
    assert answer.status_code == 503
    assert answer.mimetype == "text/plain"
    assert mentions(answer.text, "the store", "sqlite:////proc/nobody")


@pytest.mark.long
def test_pictures_do_not_make_a_page_of_endpoints_slow(mlflow_app, monkeypatch):
    model = mlflow_app.model()
    lines = [history_line(time.time() - 10 * left, v3=70) for left in reversed(range(360))]
    for number in range(30):
        mlflow_app.store.add_endpoint(
            "onnxserve", new_endpoint(f"many-{number}", f"models:/{model}/1")
        )
        folder = load_settings().state_dir(f"many-{number}") / "history"
        folder.mkdir(parents=True)
        (folder / "hour.jsonl").write_bytes(b"\n".join(lines))
    seconds: dict[int, list[float]] = {0: [], 6: []}
    for _ in range(6):
        for drawn, taken in seconds.items():
            monkeypatch.setattr(overview, "_DRAWN", drawn)
            begun = time.process_time()
            html = mlflow_app.client.get(PAGE).text
            taken.append(time.process_time() - begun)
            assert html.count("data-live=") >= 30
    for number in range(30):
        mlflow_app.store.remove_endpoint(f"many-{number}")

    # Six endpoints take half as long as the page; all thirty would take three times as
    # long.
    assert min(seconds[6]) < 2.5 * min(seconds[0])


def test_the_file_is_read_as_the_server_writes_it(drawn):
    lines = (load_settings().state_dir("f") / "history" / "hour.jsonl").read_bytes()
    assert len(parse_server_history(lines)) == 360
