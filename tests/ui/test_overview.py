"""Tests of endpoints, rollouts, verdicts and models on the page."""

import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from urllib.parse import urlsplit

import mlflow
import pytest

from mlflow_deploy_plugin.core.errors import GateRefused, Refused
from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.core.registry.transitions import (
    ROLLED_BACK_TAG,
    STARTED_AT,
    StageOrAlias,
    parse_stage_or_alias,
)
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.statedir.files import write_state
from mlflow_deploy_plugin.core.statedir.models import LoadedVariant, WorkerState
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.tables import EndpointRow
from mlflow_deploy_plugin.promote.gate.promotion import promote
from mlflow_deploy_plugin.promote.rollouts.snapshot import take_snapshot
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import parse_server_metrics
from mlflow_deploy_plugin.ui.jobs import Job, Jobs
from mlflow_deploy_plugin.ui.overview import promotion_target
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence
from tests.support.console import PAGE
from tests.support.metrics_page import PAGE as METRICS
from tests.support.metrics_page import serving
from tests.support.monitors import judged_window
from tests.support.refusals import mentions


def states(html):
    """Return the labelled states of the only endpoint."""
    return dict(re.findall(r'class="state">(\w+) <span class="mark[^>]*>([^<]+)<', html))


def test_a_rollout_is_shown_with_its_step_and_its_reason(mlflow_app, endpoint):
    spec = {"to_uri": "models:/m/2", "steps": [1, 10, 50, 100]}
    mlflow_app.store.add_rollout(endpoint, spec, "stepping")
    html = " ".join(mlflow_app.client.get(PAGE).text.split())
    assert f'<th scope="row">{endpoint}</th><td data-label="Version">models:/m/2</td>' in html
    assert '<span class="mark mark-stepping">stepping</span>' in html
    assert 'data-label="Step">1 of 4<' in html


def test_a_promotion_is_one_line_of_the_trail_without_its_steps(mlflow_app):
    begun = mlflow_app.store.now().isoformat()
    mlflow_app.store.record(
        "transition", model="stepped", version="7", before="None", after="Production"
    )
    mlflow_app.store.record(
        "promote", model="stepped", version="7", why="as asked", detail={STARTED_AT: begun}
    )
    html = mlflow_app.client.get(PAGE).text
    assert re.findall(r'data-label="What" [^>]*>([^<]*)<bdi>stepped', html) == [
        "promoted version 7 of "
    ]


def test_the_trail_says_which_monitor_was_paused(mlflow_app, endpoint):
    Monitors(mlflow_app.store).pause(endpoint, "hits", actor="ada")
    html = mlflow_app.client.get(f"{PAGE}?endpoint={endpoint}").text
    Monitors(mlflow_app.store).pause(endpoint, "hits", paused=False)
    assert f">paused the monitor hits of {endpoint}<" in html


def test_the_page_of_an_endpoint_has_its_name_and_the_trail_of_its_model(mlflow_app, endpoint):
    mlflow_app.store.record(
        "promote", model=endpoint.removeprefix("of-"), version="2", why="for this endpoint"
    )
    mlflow_app.store.record("promote", model="another", version="2", why="for another one")
    html = mlflow_app.client.get(f"{PAGE}?endpoint={endpoint}").text
    assert f"<title>{endpoint} –" in html
    assert "for this endpoint" in html
    assert "for another one" not in html


@pytest.mark.long
def test_many_endpoints_are_shown_thirty_on_a_page_with_the_versions_of_their_models(mlflow_app):
    names = [f"one-of-many-{number:02}" for number in range(61)]
    for name in names:
        mlflow_app.registry.create_registered_model(name)
        mlflow_app.store.add_endpoint("onnxserve", new_endpoint(name, f"models:/{name}/1"))
    all_names = sorted(mlflow_app.store.names())
    first, second = (
        mlflow_app.client.get(f"{PAGE}{query}").text
        for query in ("", f"?beginning={all_names[31]}")
    )
    for name in names:
        mlflow_app.store.remove_endpoint(name)
    for html, shown in ((first, all_names[:30]), (second, all_names[30:60])):
        assert re.findall(r'<h2 id="endpoint-([^"]+)"', html) == shown
        assert {name for name in names if f'data-part="model {name}"' in html} == {*names} & {
            *shown
        }
        assert f'?beginning={all_names[30]}"' in html
        assert re.findall(r'aria-current="page">([^<]+)<', html) == [f"{shown[0]} – {shown[-1]}"]
    # The form leads back to this page.
    assert f'action="/onnxserve?beginning={all_names[31]}"' in second


def test_endpoints_are_counted_by_state_and_those_in_trouble_are_one_press_away(
    mlflow_app, endpoint
):
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint("beside-it", "models:/m/1"))
    html = mlflow_app.client.get(PAGE).text
    mlflow_app.store.remove_endpoint("beside-it")
    summary = html[html.index('<ul class="summary"') : html.index("</ul>")]
    assert 'mark-failed">2 failed</span>' in summary
    for name in ("beside-it", endpoint):
        assert f'<a href="#endpoint-{name}">{name}</a>' in summary
        assert f'<h2 id="endpoint-{name}">' in html
    assert 'class="summary"' not in mlflow_app.client.get(f"{PAGE}?endpoint={endpoint}").text


def test_a_version_that_answers_without_an_approval_is_named_until_it_is_promoted(mlflow_app):
    model = mlflow_app.model()
    times = {"since": "2026-11-26T12:00:00+00:00", "until": "2026-11-26T13:00:00+00:00"}
    answer = {
        "model_uri": f"models:/{model}/2",
        "model": model,
        "version": "2",
        "places": ["@champion"],
        "share": 5.0,
    }
    spec = new_endpoint("credit", f"models:/{model}/2")
    mlflow_app.store.add_endpoint("onnxserve", spec, unapproved=[answer | times])
    text = (
        f"models:/{model}/2 answers 5 % of the requests without an approval, until 2026-11-26 "
        "13:00 UTC"
    )
    assert f'<p class="reason">{text}</p>' in mlflow_app.client.get(PAGE).text

    promoted = move_detail("@champion", "", "f" * 64)
    mlflow_app.store.record("alias", model=model, version="2", detail=promoted)

    assert f'<p class="reason">{text}</p>' not in mlflow_app.client.get(PAGE).text
    mlflow_app.store.remove_endpoint("credit")


def test_an_endpoint_whose_spec_cannot_be_read_is_shown_with_the_reason(mlflow_app, endpoint):
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint("spoilt", "models:/m/1"))
    with mlflow_app.store.transaction() as session:
        session.get(EndpointRow, "spoilt").spec += "sampling: often\n"

    html = mlflow_app.client.get(PAGE).text

    mlflow_app.store.remove_endpoint("spoilt")
    assert '<span class="mark mark-unreadable">unreadable</span>' in html
    assert mentions(html, "cannot be read", "&#39;sampling&#39;")
    assert endpoint in html


def test_the_page_and_a_rollout_count_the_same_requests_and_errors(
    mlflow_app, endpoint, monkeypatch
):
    stored = mlflow_app.store.endpoint(endpoint)
    model = stored.spec.variants["champion"].model.split("/")[1]
    page = METRICS.replace(
        'endpoint="f",variant="main",model="X"',
        f'endpoint="{endpoint}",variant="champion",model="{model}"',
    )
    worker = WorkerState(
        pid=1, generation=1, endpoints={endpoint: {"champion": LoadedVariant(version="6")}}
    )
    with serving({"/metrics": page}) as url:
        spec = apply_config(stored.spec, {"server.port": urlsplit(url).port})
        observed = ObservedEndpoint(
            replace(stored, spec=spec), Observation("running", url=url, workers=(worker,))
        )
        monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])
        html = mlflow_app.client.get(PAGE).text
        counters = take_snapshot(observed, {endpoint: parse_server_metrics(page)}).counters

    counted = counters[endpoint]["champion", "6"]
    numbers = re.findall(r'<td class="number"[^>]*>(.*?)</td>', html)
    assert counted.requests == 100
    assert counted.errors == 5
    # The errors of a rollout are the refused and the failed requests. The page also
    # counts 8 requests to version 5.
    assert numbers == ["108", "3", "2", "100 ms"]


def test_the_button_that_is_not_offered_is_named_where_the_other_one_is(mlflow_app, monkeypatch):
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint("stepping", "models:/m/1"))
    mlflow_app.store.add_rollout(
        "stepping", {"to_uri": "models:/m/2", "before_version": "1"}, "stepping"
    )
    observed = ObservedEndpoint(
        mlflow_app.store.endpoint("stepping"), Observation("running", url="http://f.ml.svc:8080")
    )
    monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])
    monkeypatch.setattr(Deployments, "server_metrics", lambda *asked, **more: {})
    html = mlflow_app.client.get(PAGE).text
    mlflow_app.store.remove_endpoint("stepping")
    assert mentions(html, "Roll back", "version 1</button>")
    assert html.count(' name="why"') == 1
    assert mentions(html, "not available", "&#39;stepping&#39;")
    assert html.lower().count("not available: ") == 1


def test_the_only_variant_has_all_of_the_traffic_with_any_weight(mlflow_app):
    spec = apply_config(new_endpoint("remaining", "models:/m/1"), {"variants.remaining.weight": 60})
    mlflow_app.store.add_endpoint("onnxserve", spec)
    html = mlflow_app.client.get(PAGE, query_string={"endpoint": "remaining"}).text
    mlflow_app.store.remove_endpoint("remaining")
    assert re.findall(r'data-label="Traffic">(.*?)</td>', html) == ["100 %"]
    assert 'name="weight:remaining" value="60"' in html


def test_a_rollback_is_offered_once_something_was_served_before(mlflow_app, monkeypatch):
    model = mlflow_app.model()
    stored = mlflow_app.store.add_endpoint(
        "onnxserve", new_endpoint("moved", f"models:/{model}/Production")
    )
    observed = ObservedEndpoint(stored, Observation("running", url="http://f.ml.svc:8080"))
    monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])
    monkeypatch.setattr(Deployments, "server_metrics", lambda *asked, **more: {})
    before = mlflow_app.client.get(PAGE).text
    mlflow_app.registry.transition_model_version_stage(model, "2", "Production", False)
    detail = move_detail("Production", "1")
    mlflow_app.store.record(
        "transition", model=model, version="2", before="1", after="Production", detail=detail
    )

    after = mlflow_app.client.get(PAGE).text

    mlflow_app.store.remove_endpoint("moved")
    assert "Roll back" not in before
    assert "Change the traffic</button>" in before
    assert mentions(after, "Roll back", "version 1</button>")


def test_the_page_of_a_model_has_the_endpoints_that_serve_it(mlflow_app, endpoint):
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint("of-another", "models:/another/1"))
    model = endpoint.removeprefix("of-")
    model_page, none = (
        mlflow_app.client.get(f"{PAGE}?model={name}").text for name in (model, "nowhere")
    )
    mlflow_app.store.remove_endpoint("of-another")
    assert re.findall(r'<h2 id="endpoint-([^"]+)"', model_page) == [endpoint]
    assert f'action="{PAGE}?model={model}"' in model_page
    assert re.findall(r'<h2 id="endpoint-([^"]+)"', none) == []
    assert mentions(none, "No endpoint", "<bdi>nowhere</bdi>")


@pytest.mark.parametrize(("state", "colour"), [("starting", "muted"), ("failed", "reason")])
def test_reason_is_red_only_for_a_problem(mlflow_app, endpoint, state, colour, monkeypatch):
    observed = ObservedEndpoint(
        mlflow_app.store.endpoint(endpoint), Observation(state, reason="loading the model")
    )
    monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])
    html = mlflow_app.client.get(PAGE).text
    assert states(html)["serving"] == state
    assert f'<p class="{colour}">loading the model</p>' in html


def test_a_server_that_does_not_answer_is_silent(mlflow_app, endpoint, free_port, monkeypatch):
    stored = mlflow_app.store.endpoint(endpoint)
    spec = apply_config(stored.spec, {"server.port": free_port})
    observed = ObservedEndpoint(
        replace(stored, spec=spec), Observation("running", url=f"http://127.0.0.1:{free_port}")
    )
    monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])

    html = mlflow_app.client.get(PAGE).text

    assert '<span class="mark mark-silent">silent</span>' in html
    assert mentions(html, f"{endpoint}: the server does not answer")


def test_a_server_whose_captured_requests_are_not_logged_is_degraded(
    mlflow_app, endpoint, monkeypatch
):
    observation = Observation(
        "running",
        url="http://f.ml.svc:8080",
        shipping_error="the inference log s3://rows cannot be written: 403",
    )
    observed = ObservedEndpoint(mlflow_app.store.endpoint(endpoint), observation)
    monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])
    monkeypatch.setattr(Deployments, "server_metrics", lambda *asked, **more: {})

    html = mlflow_app.client.get(PAGE).text

    assert '<span class="mark mark-degraded">degraded</span>' in html
    assert observation.shipping_error in html


@pytest.mark.long
@pytest.mark.parametrize(
    ("unread", "mark"),
    [([], "healthy"), (["f-2"], "degraded"), (["f-1", "f-2"], "silent")],
    ids=["all", "one", "none"],
)
def test_the_counts_of_all_pods_are_added_up_and_a_pod_that_does_not_say_them_is_named(
    mlflow_app, endpoint, monkeypatch, unread, mark
):
    stored = mlflow_app.store.endpoint(endpoint)
    model = stored.spec.variants["champion"].model.split("/")[1]
    page = METRICS.replace(
        '"f",variant="main",model="X"', f'"{endpoint}",variant="champion",model="{model}"'
    )
    worker = WorkerState(
        pid=1, generation=1, endpoints={endpoint: {"champion": LoadedVariant(version="6")}}
    )
    observed = ObservedEndpoint(
        stored, Observation("running", url="http://f.ml.svc:8080", workers=(worker,))
    )
    pods = {"f-1": parse_server_metrics(page), "f-2": parse_server_metrics(page)}
    metrics = pods | dict.fromkeys(unread, Refused("no command"))
    monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])
    monkeypatch.setattr(Deployments, "server_metrics", lambda *asked, **more: metrics)

    html = mlflow_app.client.get(PAGE).text

    assert f'<span class="mark mark-{mark}">{mark}</span>' in html
    requests, refused, failures, _ = re.findall(r'<td class="number"[^>]*>(.*?)</td>', html)
    assert [int(observed) for observed in (requests, refused, failures)] == [
        observed * (2 - len(unread)) for observed in (108, 3, 2)
    ]
    assert all(f"{pod}: no command" in html for pod in unread)


@pytest.mark.parametrize(
    ("state", "mark"),
    [
        ("violated", "alarm"),
        ("drift", "alarm"),
        ("cannot tell", "undecided"),
        ("not judged", "undecided"),
        ("kept", "fine"),
        ("no drift", "fine"),
    ],
)
def test_a_monitor_s_verdict_is_an_alarm_or_fine_or_undecided(mlflow_app, endpoint, state, mark):
    judged(
        mlflow_app.store,
        endpoint,
        state,
        f"accuracy: 0.84 (the window before) → 0.71, lower; {state} <since> 2013-07-09",
    )

    html = " ".join(mlflow_app.client.get(PAGE).text.split())

    assert "<h3>Monitors</h3>" in html
    assert f'mark-{mark}">{state}</span>' in html
    assert mentions(html, "accuracy: 0.84", "lower", f"{state} &lt;since&gt; 2013-07-09")


def test_an_endpoint_with_alarms_in_a_row_is_unhealthy_and_its_verdict_is_a_sentence_before_charts(
    mlflow_app, monkeypatch
):
    store = mlflow_app.store
    name = "alarmed"
    monitors = Monitors(mlflow_app.store)
    stored = store.add_endpoint(
        "onnxserve", new_endpoint(name, "models:/m/1", {"monitors.hits.every": "1d"})
    )
    observed = ObservedEndpoint(stored, Observation("running", url="http://f.ml.svc:8080"))
    monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])
    monkeypatch.setattr(Deployments, "get_endpoint", lambda *asked: observed)
    monkeypatch.setattr(Deployments, "server_metrics", lambda *asked, **more: {})
    before = mlflow_app.client.get(f"{PAGE}?endpoint={name}").text
    reason = "hour: mean 13.2 → 17.9, higher; also 4 more (p = 0.0003 compared with 181 windows)"
    for day in range(10):
        start = datetime(2013, 7, 9, tzinfo=UTC) + timedelta(days=day)
        window = monitors.add(name, "hits", start, start + timedelta(days=1))
        evidence = Evidence(
            alarms=("hour", "carrier=AA/delay", "origin", "dest", "distance")
        ).to_json()
        monitors.update(
            replace(window, state="judged", verdict="drift", reason=reason, evidence=evidence)
        )
    monitors.update_state(name, "hits", consecutive=10)
    pages = [mlflow_app.client.get(f"{PAGE}{query}").text for query in ("", f"?endpoint={name}")]
    store.remove_endpoint(name)

    assert states(before) == {"serving": "healthy", "data": "not judged yet"}
    for html in pages:
        assert states(html) == {"serving": "healthy", "data": "alarm"}
        assert mentions(html, "hits", "10 in a row")
        (row,) = rows_of_monitors(html, name)
        shown, _, statistics = row.partition(" Statistics ")
        assert shown == "hits 2013-07-18 drift in hour, carrier=AA/delay, origin and 2 more"
        assert reason in statistics
        assert html.index(f'data-part="monitors {name}"') < html.index('class="pictures')


@pytest.mark.parametrize(("in_a_row", "word"), [(1, "drift"), (2, "alarm")])
def test_the_data_raise_an_alarm_after_consecutive_windows(mlflow_app, monkeypatch, in_a_row, word):
    store = mlflow_app.store
    fields = {"monitors.hits.every": "1d", "monitors.hits.consecutive": 2}
    observed = ObservedEndpoint(
        store.add_endpoint("onnxserve", new_endpoint("patient", "models:/m/1", fields)),
        Observation("running", url="http://f.ml.svc:8080"),
    )
    monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])
    monkeypatch.setattr(Deployments, "server_metrics", lambda *asked, **more: {})
    judged(store, "patient", "drift")
    Monitors(store).update_state("patient", "hits", consecutive=in_a_row)
    html = mlflow_app.client.get(PAGE).text
    store.remove_endpoint("patient")
    assert states(html) == {"serving": "healthy", "data": word}


@pytest.mark.parametrize(
    ("newest", "by_hand", "in_a_row", "word"),
    [
        ("not judged", False, 3, "alarm"),
        ("cannot tell", False, 3, "alarm"),
        ("drift", True, 0, "drift"),
        ("cannot tell", False, 0, "cannot tell"),
        ("kept", False, 0, "kept"),
    ],
)
def test_an_undecided_window_does_not_end_an_alarm_and_a_window_by_hand_does_not_begin_one(
    mlflow_app, monkeypatch, newest, by_hand, in_a_row, word
):
    store = mlflow_app.store
    name = "lasting"
    monitors = Monitors(mlflow_app.store)
    stored = store.add_endpoint(
        "onnxserve", new_endpoint(name, "models:/m/1", {"monitors.hits.every": "1d"})
    )
    observed = ObservedEndpoint(stored, Observation("running", url="http://f.ml.svc:8080"))
    monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [observed])
    monkeypatch.setattr(Deployments, "server_metrics", lambda *asked, **more: {})
    start = datetime(2013, 7, 9, tzinfo=UTC)
    window = monitors.add(name, "hits", start, start + timedelta(days=1), by_hand=by_hand)
    monitors.update(replace(window, state="judged", verdict=newest))
    monitors.update_state(name, "hits", consecutive=in_a_row)
    html = mlflow_app.client.get(PAGE).text
    store.remove_endpoint(name)
    assert states(html) == {"serving": "healthy", "data": word}


def test_while_the_gate_runs_this_is_shown_and_no_button_runs_it_again(
    mlflow_app, endpoint, monkeypatch
):
    model = endpoint.removeprefix("of-")
    jobs = Jobs(load_settings().home_path / "console" / "jobs")
    arguments = {"action": "gate", "model": model, "version": "2", "to": "", "why": ""}
    job = Job(description="run the gate", actor="ada", arguments=arguments, pid=os.getpid())
    write_state(jobs.folder / f"{job.id}.json", job)
    during = " ".join(mlflow_app.client.get(PAGE).text.split())
    write_state(jobs.folder / f"{job.id}.json", job.ended("done", "passed"))
    after = " ".join(mlflow_app.client.get(PAGE).text.split())

    assert 'mark-gate-running">running<' in during
    assert 'disabled title="the gate is running"' in offered(during, model, "2")
    assert 'title="the gate is running"' not in offered(during, model, "1")
    for text in ("mark-gate-running", "the gate is running"):
        assert text not in after


def judged(store, endpoint, verdict, reason=""):
    """Judge the next day of the monitor `hits`."""
    start = datetime(2013, 7, 9, tzinfo=UTC) + timedelta(
        days=len(Monitors(store).windows(endpoint))
    )
    judged_window(store, endpoint, "hits", start, verdict, "", reason)


def test_a_verdict_that_a_person_asked_for_is_marked(mlflow_app):
    store = mlflow_app.store
    start = datetime(2013, 7, 9, tzinfo=UTC)
    store.add_endpoint(
        "onnxserve", new_endpoint("by-hand", "models:/m/1", {"monitors.hits.every": "1d"})
    )
    monitors = Monitors(store)
    pages = []
    for day, by_hand in enumerate((False, True)):
        begin = start + timedelta(days=day)
        window = monitors.add("by-hand", "hits", begin, begin + timedelta(days=1), by_hand=by_hand)
        monitors.update(replace(window, state="judged", verdict="kept"))
        pages.append(
            [mlflow_app.client.get(f"{PAGE}{query}").text for query in ("", "?endpoint=by-hand")]
        )
    store.remove_endpoint("by-hand")

    (before, _), (after, timeline) = pages
    assert rows_of_monitors(before, "by-hand") == ["hits 2013-07-09 kept"]
    assert rows_of_monitors(after, "by-hand") == ["hits 2013-07-10 kept judged by hand"]
    assert re.findall(r'window-fine( by-hand)?" title="hits', timeline) == ["", " by-hand"]


def test_each_monitor_has_its_latest_verdict_and_none_of_a_deleted_endpoint_of_the_name(mlflow_app):
    name = "made-anew"
    store = mlflow_app.store
    monitors = {f"monitors.{monitor}.every": "1d" for monitor in ("hits", "new")}
    experiment = mlflow.MlflowClient().create_experiment(f"onnxserve/{name}")
    store.add_endpoint("onnxserve", new_endpoint(name, "models:/m/1", monitors))
    judged(store, name, "gone")
    Monitors(store).update_state(name, "new", note="no column 'delay'", note_kind="cannot_run")
    store.remove_endpoint(name)
    store.add_endpoint("onnxserve", new_endpoint(name, "models:/m/1", monitors))
    before = mlflow_app.client.get(PAGE).text
    for day, verdict in enumerate(("kept", "violated")):
        judged_window(store, name, "hits", datetime(2013, 7, 9 + day, tzinfo=UTC), verdict, "a-run")
    Monitors(store).update_state(name, "new", note="no column 'arr_delay'", note_kind="cannot_run")
    html = mlflow_app.client.get(PAGE).text
    store.remove_endpoint(name)

    assert rows_of_monitors(before, name) == ["hits no window yet", "new no window yet"]
    assert rows_of_monitors(html, name) == [
        "hits 2013-07-10 violated report",
        "new no window yet no column &#39;arr_delay&#39;",
    ]
    assert f'href="/#/experiments/{experiment}/runs/a-run/artifacts/report.html"' in html


def test_alert_is_shown_with_its_start_and_next_command_for_endpoints_off_the_page(mlflow_app):
    store = mlflow_app.store
    since = datetime(2026, 11, 20, 3, 10, tzinfo=UTC)
    for number in range(31):
        store.add_endpoint("onnxserve", new_endpoint(f"alerted-{number:02}", "models:/m/1"))
    detail = {
        "lines": ["m version 3: drift", "- <delay>"],
        "next": "next: onnxserve retrain run alerted-30",
    }
    detail["link"] = "http://mlflow/#/experiments/1/runs/a/artifacts/report.html"
    Alerts(store).add_once(Alert("f", "alerted-30", "daily", "firing", since, since, detail=detail))
    page, endpoint_page, other = (
        mlflow_app.client.get(f"{PAGE}{query}").text
        for query in ("", "?endpoint=alerted-30", "?endpoint=alerted-29")
    )
    for number in range(31):
        store.remove_endpoint(f"alerted-{number:02}")

    assert 'id="endpoint-alerted-30"' not in page
    assert 'mark-alarm">1 firing</span>' in page
    assert 'endpoint=alerted-30">alerted-30</a> <b>daily</b>' in page
    alert_list = endpoint_page[endpoint_page.index('<ul class="alerts">') :]
    text = " ".join(re.sub("<[^>]*>", " ", alert_list[: alert_list.index("</ul>")]).split())
    first, second = detail["lines"]
    assert mentions(
        unescape(text),
        "daily",
        "2026-11-20 03:10 UTC",
        first,
        second,
        str(detail["next"]),
        "report",
    )
    assert f'href="{detail["link"]}"' in alert_list
    assert "firing" not in other


def rows_of_monitors(html, endpoint):
    part = html[html.index(f'data-part="monitors {endpoint}"') :]
    rows = re.findall(
        "<tr>(.*?)</tr>", part[part.index("<tbody>") : part.index("</table>")], re.DOTALL
    )
    return [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in rows]


def test_a_model_whose_name_is_written_from_right_to_left_does_not_draw_its_version_in(mlflow_app):
    mlflow_app.store.record("promote", model="مرحبا", version="2", before="1", after="2")
    assert "promoted version 2 of <bdi>مرحبا</bdi><" in mlflow_app.client.get(PAGE).text


def test_refused_actions_are_disabled_with_a_reason(mlflow_app, endpoint):
    """The server of this endpoint does not run, and version 1 of its model was rolled
    back.

    The policy of the second model is invalid, so its versions cannot be promoted or
    judged.
    """
    from mlflow.entities.model_registry import ModelVersionTag

    model = endpoint.removeprefix("of-")
    mlflow_app.registry.set_model_version_tag(
        model, "1", ModelVersionTag("onnxserve.rolled_back", "flights: slow")
    )
    mlflow_app.registry.transition_model_version_stage(model, "2", "Staging", False)
    unread = mlflow_app.model(policy="gated_stages: [Mars]", versions=1)
    mlflow_app.store.add_endpoint(
        "onnxserve", new_endpoint(f"of-{unread}", f"models:/{unread}/Production")
    )
    html = " ".join(mlflow_app.client.get(PAGE).text.split())
    mlflow_app.store.remove_endpoint(f"of-{unread}")

    reasons = re.findall(r'value="traffic" disabled title="([^"]*)">', html)
    (why,) = (reason for reason in reasons if mentions(reason, f"`onnxserve start {endpoint}`"))
    assert f"Not available: {why}</p>" in html
    of_1, of_2 = (offered(html, model, version) for version in ("1", "2"))
    assert re.search(
        r'value="Production" disabled title="[^"]*it was rolled back \(flights: slow\)', of_1
    )
    assert re.search("Production – [^<]*it was rolled back", of_1)
    assert "selected>Select a target" in of_1
    assert "Select a target" not in of_2
    assert 'value="Staging">Staging</option>' in of_1
    assert 'value="Production">Production</option>' in of_2
    assert re.search(r'value="Staging" disabled title="([^"]+)">Staging – \1<', of_2)
    of_unread = offered(html, unread, "1")
    assert re.search(r'value="promote" disabled title="[^"]*gated_stages', of_unread)
    assert re.search(
        r'value="gate" class="quiet" formnovalidate disabled title="[^"]*gated_stages', of_unread
    )


def offered(html, model, version):
    """Return the form of a version with its possible stages and its buttons."""
    (form,) = re.findall(
        rf'<select name="to" [^>]*aria-label="Target of version {version} of {model}">.*?</form>',
        html,
    )
    return str(form)


@pytest.mark.parametrize("gate", ["passed", "passed without an evaluation", "forced"])
def test_the_gate_status_of_a_version_is_shown_in_its_own_words(mlflow_app, endpoint, gate):
    mlflow_app.stands(endpoint.removeprefix("of-"), "1", gate, "checked: parity")
    html = mlflow_app.client.get(f"{PAGE}?endpoint={endpoint}").text
    assert re.findall(r'class="mark mark-gate-([\w-]+)">([\w ]+)<', html)[-1] == (
        gate.replace(" ", "-"),
        gate,
    )


PRODUCTION = StageOrAlias(stage="Production")
STAGING = StageOrAlias(stage="Staging")
PASSED = {"onnxserve.gate": "passed", "onnxserve.gate.digest": "ab12"}
TAKEN_BACK = {ROLLED_BACK_TAG: "flights: too slow"}


@pytest.mark.parametrize(
    ("place", "tags", "holders", "refused"),
    [
        (PRODUCTION, {}, {"1"}, ""),
        (PRODUCTION, PASSED, {"1"}, ""),
        (PRODUCTION, PASSED, {"2"}, "already there"),
        (PRODUCTION, {}, {"2"}, ""),  # The version is there without a gate verdict.
        (PRODUCTION, PASSED, {"1", "2"}, ""),  # The other version is archived.
        (STAGING, {}, {"2"}, "already there"),
        (PRODUCTION, TAKEN_BACK, {"1"}, "it was rolled back (flights: too slow)"),
        (STAGING, TAKEN_BACK, {"1"}, ""),
        (StageOrAlias(alias="live"), {}, {"2"}, "already there"),
        (StageOrAlias(alias="live"), TAKEN_BACK, {"2"}, "it was rolled back"),
    ],
)
def test_a_version_goes_where_it_is_not_yet_and_may_be(place, tags, holders, refused):
    target = promotion_target("m", "2", place, tags, GatePolicy(), frozenset(holders))
    assert (refused in target.refusal) if refused else target.refusal == ""
    assert target.obstacle == refused.partition(" (")[0]


FAILED = {"onnxserve.gate": "failed", "onnxserve.gate.digest": "ab12"}


@pytest.mark.parametrize(
    ("place", "tags", "holders", "stage", "words"),
    [
        (
            "@live",
            PASSED,
            {"1"},
            "",
            ["@live", "version 1 → 2", "Gate: passed", "serve it: flights"],
        ),
        ("@live", FAILED, {"1"}, "", ["version 1 → 2", "Gate: failed"]),
        ("@live", {}, {}, "", ["none → 2", "Gate: runs first"]),
        ("Staging", {}, {"9", "10"}, "", ["9, 10 → 2", "Gate: not asked", "no endpoint"]),
        ("Archived", {}, {}, "Production", ["no endpoint", "no longer", "Production: birds"]),
    ],
)
def test_promotion_target_names_versions_gate_and_endpoints(place, tags, holders, stage, words):
    target = promotion_target(
        "m",
        "2",
        parse_stage_or_alias(place),
        tags,
        GatePolicy(gated_aliases=("live",)),
        frozenset(holders),
        stage,
        {"@live": ["flights"], "Production": ["birds"]},
    )
    for text in words:
        assert text in target.effect


def test_the_promotion_refuses_a_version_that_was_rolled_back_in_the_same_words(mlflow_app):
    from mlflow.entities.model_registry import ModelVersionTag

    model = mlflow_app.model(policy=None)
    mlflow_app.registry.set_model_version_tag(
        model, "2", ModelVersionTag(*next(iter(TAKEN_BACK.items())))
    )
    with pytest.raises(GateRefused) as raised:
        promote(model, "2", "Production", store=mlflow_app.store)
    target = promotion_target(model, "2", PRODUCTION, TAKEN_BACK, GatePolicy(), frozenset())
    assert target.refusal == raised.value.message
