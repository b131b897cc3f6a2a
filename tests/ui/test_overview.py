"""Tests of endpoints, rollouts, verdicts and models on the page."""

import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path

import mlflow
import pytest
from mlflow.entities.model_registry import ModelVersionTag

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.core.registry.transitions import ROLLED_BACK_TAG, parse_stage_or_alias
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.statedir.files import write_state
from mlflow_deploy_plugin.core.statedir.models import (
    LoadedVariant,
    WantedEndpoint,
    WantedVariant,
    WorkerState,
)
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.core.store.tables import EndpointRow
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import parse_server_metrics
from mlflow_deploy_plugin.ui import overview
from mlflow_deploy_plugin.ui.jobs import Job, Jobs
from mlflow_deploy_plugin.ui.overview import promotion_target
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence
from tests.support.console import PAGE
from tests.support.metrics_page import PAGE as METRICS
from tests.support.monitors import judged_window
from tests.support.refusals import mentions

DAY = timedelta(days=1)
START = datetime(2013, 7, 9, tzinfo=UTC)


@pytest.fixture
def store(mlflow_app):
    return mlflow_app.store


@pytest.fixture
def page(mlflow_app):
    """A function that returns the page with a query, in one line."""
    return lambda query="": " ".join(mlflow_app.client.get(f"{PAGE}{query}").text.split())


@pytest.fixture
def add(store):
    """A function that adds an endpoint until the end of the test."""
    names = []

    def added(name, model="models:/m/1", config=None, **more):
        names.append(name)
        return store.add_endpoint("onnxserve", new_endpoint(name, model, config), **more)

    yield added
    for name in names:
        store.remove_endpoint(name)


@pytest.fixture
def observe(monkeypatch):
    """A function that sets the state of the only endpoint on the page."""

    def observed(stored, state="running", metrics=None, **more):
        seen = ObservedEndpoint(stored, Observation(state, url="http://f.ml.svc:8080", **more))
        monkeypatch.setattr(Deployments, "list_endpoints", lambda *asked: [seen])
        monkeypatch.setattr(Deployments, "get_endpoint", lambda *asked: seen)
        monkeypatch.setattr(Deployments, "server_metrics", lambda *asked, **more: metrics or {})

    return observed


def states(html):
    """Return the labelled states of the only endpoint."""
    return dict(re.findall(r'class="state">(\w+) <span class="mark[^>]*>([^<]+)<', html))


def test_rollout_is_shown_with_its_step(store, page, endpoint):
    spec = {"to_uri": "models:/m/2", "steps": [1, 10, 50, 100]}
    store.add_rollout(endpoint, spec, "stepping")
    html = page()
    assert f'<th scope="row">{endpoint}</th><td data-label="Version">models:/m/2</td>' in html
    assert '<span class="mark mark-stepping">stepping</span>' in html
    assert 'data-label="Step">1 of 4<' in html


def test_endpoint_page_shows_its_model_events(store, page, endpoint):
    moved = {"act": "a" * 16, "moved": {"place": "Production", "before": ""}}
    version = {"model": endpoint.removeprefix("of-"), "version": "2", "detail": moved}
    store.record("transition", before="None", after="Production", **version)
    store.record("promote", why="for this endpoint", **version)
    store.record("promote", model="another", version="2", why="for another one")
    html = page(f"?endpoint={endpoint}")
    assert f"<title>{endpoint} –" in html
    assert "for this endpoint" in html
    assert "for another one" not in html
    # The promotion is shown without its steps.
    shown = re.findall(rf'data-label="What" [^>]*>([^<]*)<bdi>{version["model"]}', html)
    assert shown[0] == "promoted version 2 of "
    assert "moved version 2 of " not in shown


@pytest.mark.long
def test_thirty_endpoints_are_on_a_page(mlflow_app, store, add, page):
    names = [f"one-of-many-{number:02}" for number in range(61)]
    for name in names:
        mlflow_app.registry.create_registered_model(name)
        add(name, f"models:/{name}/1")
    all_names = sorted(store.names())
    second = f"?beginning={all_names[31]}"
    for query, shown in (("", all_names[:30]), (second, all_names[30:60])):
        html = page(query)
        assert re.findall(r'<h2 id="endpoint-([^"]+)"', html) == shown
        with_models = {name for name in names if f'data-part="model {name}"' in html}
        assert with_models == {*names} & {*shown}
        assert f'?beginning={all_names[30]}"' in html
        assert re.findall(r'aria-current="page">([^<]+)<', html) == [f"{shown[0]} – {shown[-1]}"]
        # The form leads back to this page.
        assert f'action="/onnxserve{query}"' in html


def test_failed_endpoints_are_counted_and_linked(add, page, endpoint):
    add("beside-it")
    html = page()
    summary = html[html.index('<ul class="summary"') : html.index("</ul>")]
    assert 'mark-failed">2 failed</span>' in summary
    for name in ("beside-it", endpoint):
        assert f'<a href="#endpoint-{name}">{name}</a>' in summary
        assert f'<h2 id="endpoint-{name}">' in html
    assert 'class="summary"' not in page(f"?endpoint={endpoint}")


def test_unapproved_version_is_named_until_promotion(mlflow_app, store, add, page):
    model = mlflow_app.model()
    answer = {
        "model_uri": f"models:/{model}/2",
        "model": model,
        "version": "2",
        "places": ["@champion"],
        "share": 5.0,
        "since": "2026-11-26T12:00:00+00:00",
        "until": "2026-11-26T13:00:00+00:00",
    }
    add("credit", f"models:/{model}/2", unapproved=[answer])
    (reason,) = re.findall(r'<p class="reason">([^<]*without an approval[^<]*)</p>', page())
    assert mentions(reason, f"models:/{model}/2", "5 %", "2026-11-26 13:00 UTC")

    detail = move_detail("@champion", "", "f" * 64)
    store.record("alias", model=model, version="2", detail=detail)

    assert reason not in page()


def test_unreadable_spec_is_shown_with_the_reason(store, add, page, endpoint):
    add("spoilt")
    with store.transaction() as session:
        session.get(EndpointRow, "spoilt").spec += "sampling: often\n"

    html = page()

    assert '<span class="mark mark-unreadable">unreadable</span>' in html
    assert mentions(html, "cannot be read", "&#39;sampling&#39;")
    assert endpoint in html


@pytest.mark.parametrize(
    ("unread", "mark"),
    [([], "healthy"), (["f-2"], "degraded"), (["f-1", "f-2"], "silent")],
    ids=["all", "one", "none"],
)
def test_counts_of_all_pods_are_added_up(store, page, observe, endpoint, unread, mark):
    """The errors of a rollout are the refused and the failed requests. The page also
    counts 8 requests to version 5.
    """
    stored = store.endpoint(endpoint)
    model = stored.spec.variants["champion"].model.split("/")[1]
    counted = METRICS.replace(
        '"f",variant="main",model="X"', f'"{endpoint}",variant="champion",model="{model}"'
    )
    loaded = {endpoint: {"champion": LoadedVariant(version="6")}}
    pods = dict.fromkeys(("f-1", "f-2"), parse_server_metrics(counted))
    metrics = pods | dict.fromkeys(unread, Refused("no command"))
    observe(stored, metrics=metrics, workers=(WorkerState(pid=1, generation=1, endpoints=loaded),))

    html = page()

    assert f'<span class="mark mark-{mark}">{mark}</span>' in html
    *numbers, latency = re.findall(r'<td class="number"[^>]*>(.*?)</td>', html)
    read = 2 - len(unread)
    assert numbers == [str(108 * read), str(3 * read), str(2 * read)]
    if not unread:
        assert latency == "100 ms"
    assert all(f"{pod}: no command" in html for pod in unread)


@pytest.mark.parametrize(
    ("loaded", "aspects", "shown"),
    [
        ("6", {"form": "onnx", "parity": "proven"}, ["onnx: proven"]),
        (
            "6",
            {"form": "converting", "form_reason": "it is being converted", "parity": "pyfunc"},
            ["converting: it is being converted"],
        ),
        (
            "6",
            {"form": "converted", "form_reason": "proven on 20 example rows"},
            ["converted: proven on 20 example rows"],
        ),
        (
            "6",
            {"form": "original", "form_reason": "no <i>ONNX</i> form"},
            ["original: no &lt;i&gt;ONNX&lt;/i&gt; form"],
        ),
        # Version 6 is wanted, and version 5 still answers.
        ("5", {"form": "onnx", "parity": "proven"}, []),
        ("6", {"parity": "proven"}, []),  # This is a server of an earlier release.
    ],
)
def test_form_of_the_served_version_is_shown(add, page, observe, loaded, aspects, shown):
    want = WantedVariant(
        model_uri="models:/m@live",
        model="m",
        version="6",
        folder=Path("/only/there"),
        aspects=aspects,
    )
    worker = {"formed": {"formed": LoadedVariant(version=loaded)}}
    observe(
        add("formed"),
        wanted=WantedEndpoint(variants={"formed": want}),
        workers=(WorkerState(pid=1, generation=1, endpoints=worker),),
    )
    cell = 'data-label="Model">models:/m/1<br><span class="muted">(.*?)</span>'
    for query in ("", "?endpoint=formed"):
        assert re.findall(cell, page(query)) == shown


@pytest.mark.parametrize(
    ("mlmodel", "form"),
    [
        ("flavors: {onnxserve: {parity: {state: warned}}}", "onnx: warned"),
        (
            "saved_input_example_info: {type: dataframe}\n"
            "flavors: {sklearn: {}, python_function: {loader_module: mlflow.sklearn}}",
            "converts: ",
        ),
        (
            "flavors: {sklearn: {}, python_function: {loader_module: mlflow.sklearn}}",
            "original: ",
        ),
        ("flavors: {python_function: {loader_module: mine}}", "original: "),
        ("flavors: [", "unreadable: "),
    ],
)
def test_model_page_shows_the_form_of_versions(mlflow_app, page, mlmodel, form):
    model = mlflow_app.model(versions=1)
    (model.files("1") / "MLmodel").write_text(mlmodel)
    cell = r'data-label="Stage and aliases">[^<]*<br><span class="muted">(.*?)</span>'
    (shown,) = re.findall(cell, page(f"?model={model}"))
    assert shown.startswith(form)
    assert re.findall(cell, page()) == []


def test_form_of_same_size_mlmodel_is_shown(mlflow_app, page):
    model = mlflow_app.model(versions=1)
    for state in ("proven", "warned"):
        section = f"flavors: {{onnxserve: {{parity: {{state: {state}}}}}}}"
        (model.files("1") / "MLmodel").write_text(section)
        assert mentions(page(f"?model={model}"), f"onnx: {state}")


def test_unavailable_traffic_button_is_named(store, add, page, observe):
    stored = add("stepping")
    store.add_rollout("stepping", {"to_uri": "models:/m/2", "before_version": "1"}, "stepping")
    observe(stored)
    html = page()
    assert mentions(html, "Roll back", "version 1</button>")
    assert html.count(' name="why"') == 1
    assert mentions(html, "not available", "&#39;stepping&#39;")
    assert html.lower().count("not available: ") == 1


def test_single_variant_has_all_traffic(add, page):
    add("remaining", config={"variants.remaining.weight": 60})
    html = page("?endpoint=remaining")
    assert re.findall(r'data-label="Traffic">(.*?)</td>', html) == ["100 %"]
    assert 'name="weight:remaining" value="60"' in html


def test_model_page_has_its_endpoints(add, page, endpoint):
    add("of-another", "models:/another/1")
    model = endpoint.removeprefix("of-")
    html = page(f"?model={model}")
    none = page("?model=nowhere")
    assert re.findall(r'<h2 id="endpoint-([^"]+)"', html) == [endpoint]
    assert f'action="{PAGE}?model={model}"' in html
    assert re.findall(r'<h2 id="endpoint-([^"]+)"', none) == []
    assert mentions(none, "No endpoint", "<bdi>nowhere</bdi>")


@pytest.mark.parametrize(("state", "colour"), [("starting", "muted"), ("failed", "reason")])
def test_reason_is_red_only_for_a_problem(store, page, observe, endpoint, state, colour):
    observe(store.endpoint(endpoint), state, reason="loading the model")
    html = page()
    assert states(html)["serving"] == state
    assert f'<p class="{colour}">loading the model</p>' in html


def test_observed_endpoint_shows_its_source_and_no_server(add, page, observe):
    source = {"source": "/logs", "time": "ts", "prediction": "score"}
    config = {f"observe.{name}": value for name, value in source.items()}
    stored = add("churn", config=config)
    observe(stored, state="observed")

    html = page("?endpoint=churn")

    assert states(html)["serving"] == "observed"
    assert mentions(html, "/logs", "5m", "models:/m/1")
    assert not re.search("Requests|Change the traffic|No figures|Last hour", html)


def test_shipping_error_degrades_the_server(add, page, observe):
    error = "the inference log s3://rows cannot be written: 403"
    observe(add("behind"), shipping_error=error)
    html = page()
    assert '<span class="mark mark-degraded">degraded</span>' in html
    assert error in html
    # Without an earlier version, a rollback is not offered.
    assert "Change the traffic</button>" in html
    assert "Roll back" not in html


def rows_of_monitors(html, endpoint):
    part = html[html.index(f'data-part="monitors {endpoint}"') :]
    body = part[part.index("<tbody>") : part.index("</table>")]
    rows = re.findall("<tr>(.*?)</tr>", body)
    return [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in rows]


def test_alarms_are_summarized_before_charts(store, add, page, observe):
    observe(add("alarmed", config={"monitors.hits.every": "1d"}))
    before = page("?endpoint=alarmed")
    reason = "hour: mean 13.2 → 17.9, higher; also 4 more (p = 0.0003 compared with 181 windows)"
    columns = ("hour", "carrier=AA/delay", "origin", "dest", "distance")
    evidence = Evidence(alarms=columns).to_json()
    monitors = Monitors(store)
    window = monitors.add("alarmed", "hits", START, START + DAY)
    window = replace(window, state="judged", verdict="drift", reason=reason, evidence=evidence)
    monitors.update(window)
    monitors.update_state("alarmed", "hits", consecutive=10)

    assert states(before) == {"serving": "healthy", "data": "not judged yet"}
    for query in ("", "?endpoint=alarmed"):
        html = page(query)
        assert states(html) == {"serving": "healthy", "data": "alarm"}
        assert mentions(html, "hits", "10 in a row")
        (row,) = rows_of_monitors(html, "alarmed")
        shown, _, statistics = row.partition(" Statistics ")
        assert shown == "hits 2013-07-09 drift in hour, carrier=AA/delay, origin and 2 more"
        assert reason in statistics
        assert html.index('data-part="monitors alarmed"') < html.index('class="pictures')


@pytest.mark.parametrize(
    ("verdict", "by_hand", "in_a_row", "word"),
    [
        ("drift", False, 1, "drift"),
        ("drift", False, 2, "alarm"),
        # An undecided window does not end an alarm.
        ("not judged", False, 3, "alarm"),
        ("cannot tell", False, 3, "alarm"),
        # A window that is judged by hand does not begin an alarm.
        ("drift", True, 0, "drift"),
        ("cannot tell", False, 0, "cannot tell"),
        ("kept", False, 0, "kept"),
    ],
)
def test_consecutive_alarms_are_an_alarm(
    store, add, page, observe, verdict, by_hand, in_a_row, word
):
    observe(add("patient", config={"monitors.hits.every": "1d", "monitors.hits.consecutive": 2}))
    monitors = Monitors(store)
    window = monitors.add("patient", "hits", START, START + DAY, by_hand=by_hand)
    monitors.update(replace(window, state="judged", verdict=verdict))
    monitors.update_state("patient", "hits", consecutive=in_a_row)
    assert states(page()) == {"serving": "healthy", "data": word}


def test_running_gate_disables_its_button(page, endpoint):
    model = endpoint.removeprefix("of-")
    jobs = Jobs(load_settings().home_path / "console" / "jobs")
    arguments = {"action": "gate", "model": model, "version": "2", "to": "", "why": ""}
    job = Job(description="run the gate", actor="ada", arguments=arguments, pid=os.getpid())
    write_state(jobs.folder / f"{job.id}.json", job)
    during = page()
    write_state(jobs.folder / f"{job.id}.json", job.ended("done", "passed"))
    after = page()

    assert 'mark-gate-running">running<' in during
    assert 'disabled title="the gate is running"' in offered(during, model, "2")
    assert 'title="the gate is running"' not in offered(during, model, "1")
    for text in ("mark-gate-running", "the gate is running"):
        assert text not in after


def test_verdict_by_hand_is_marked(store, add, page):
    add("by-hand", config={"monitors.hits.every": "1d"})
    monitors = Monitors(store)
    rows = []
    for day, by_hand in enumerate((False, True)):
        begin = START + day * DAY
        window = monitors.add("by-hand", "hits", begin, begin + DAY, by_hand=by_hand)
        monitors.update(replace(window, state="judged", verdict="kept"))
        rows += rows_of_monitors(page(), "by-hand")

    assert rows == ["hits 2013-07-09 kept", "hits 2013-07-10 kept judged by hand"]
    timeline = page("?endpoint=by-hand")
    assert re.findall(r'window-fine( by-hand)?" title="hits', timeline) == ["", " by-hand"]


def test_recreated_endpoint_has_no_old_verdict(store, add, page):
    name = "made-anew"
    config = {f"monitors.{monitor}.every": "1d" for monitor in ("hits", "new")}
    experiment = mlflow.MlflowClient().create_experiment(f"onnxserve/{name}")
    add(name, config=config)
    judged_window(store, name, "hits", START, "gone", "")
    Monitors(store).update_state(name, "new", note="no column 'delay'", note_kind="cannot_run")
    store.remove_endpoint(name)
    add(name, config=config)
    before = page()
    for day, verdict in enumerate(("kept", "violated")):
        judged_window(store, name, "hits", START + day * DAY, verdict, "a-run")
    Monitors(store).update_state(name, "new", note="no column 'arr_delay'", note_kind="cannot_run")
    html = page()

    assert rows_of_monitors(before, name) == ["hits no window yet", "new no window yet"]
    assert rows_of_monitors(html, name) == [
        "hits 2013-07-10 violated report",
        "new no window yet no column &#39;arr_delay&#39;",
    ]
    assert f'href="/#/experiments/{experiment}/runs/a-run/artifacts/report.html"' in html


def test_alert_on_another_page_is_linked(store, add, page, monkeypatch):
    monkeypatch.setattr(overview, "_SHOWN", 2)
    for number in range(3):
        add(f"alerted-{number}")
    lines = ["m version 3: drift", "- <delay>"]
    command = "next: onnxserve retrain run alerted-2"
    link = "http://mlflow/#/experiments/1/runs/a/artifacts/report.html"
    detail = {"lines": lines, "next": command, "link": link}
    since = datetime(2026, 11, 20, 3, 10, tzinfo=UTC)
    Alerts(store).add_once(Alert("f", "alerted-2", "daily", "firing", since, since, detail=detail))

    html = page()
    endpoint_page = page("?endpoint=alerted-2")

    assert 'id="endpoint-alerted-2"' not in html
    assert 'mark-alarm">1 firing</span>' in html
    assert 'endpoint=alerted-2">alerted-2</a> <b>daily</b>' in html
    alert_list = endpoint_page[endpoint_page.index('<ul class="alerts">') :]
    text = unescape(re.sub("<[^>]*>", " ", alert_list[: alert_list.index("</ul>")]))
    assert mentions(text, "daily", "2026-11-20 03:10 UTC", *lines, command)
    assert f'href="{link}"' in alert_list
    assert "firing" not in page("?endpoint=alerted-1")


def test_refused_actions_are_disabled_with_a_reason(mlflow_app, add, page, endpoint):
    """The server of this endpoint does not run, and version 1 of its model was rolled
    back. The policy of the second model is invalid, so its versions cannot be promoted
    or judged.
    """
    model = endpoint.removeprefix("of-")
    mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag(*ROLLED_BACK))
    mlflow_app.registry.transition_model_version_stage(model, "2", "Staging", False)
    unread = mlflow_app.model(policy="gated_stages: [Mars]", versions=1)
    add(f"of-{unread}", f"models:/{unread}/Production")
    html = page()

    reasons = re.findall(r'value="traffic" disabled title="([^"]*)">', html)
    (why,) = (reason for reason in reasons if mentions(reason, f"`onnxserve start {endpoint}`"))
    assert f"Not available: {why}</p>" in html
    of_1 = offered(html, model, "1")
    of_2 = offered(html, model, "2")
    assert re.search(r'value="Production" disabled title="[^"]*it was rolled back', of_1)
    assert re.search("Production – [^<]*it was rolled back", of_1)
    assert "selected>Select a target" in of_1
    assert "Select a target" not in of_2
    assert 'value="Staging">Staging</option>' in of_1
    assert 'value="Production">Production</option>' in of_2
    assert re.search(r'value="Staging" disabled title="([^"]+)">Staging – \1<', of_2)
    of_unread = offered(html, unread, "1")
    assert re.search(r'value="promote" disabled title="[^"]*gated_stages', of_unread)
    disabled = r'value="gate" class="quiet" formnovalidate disabled title="[^"]*gated_stages'
    assert re.search(disabled, of_unread)


def offered(html, model, version):
    """Return the form of a version with its possible stages and its buttons."""
    label = f"Target of version {version} of {model}"
    (form,) = re.findall(rf'<select name="to" [^>]*aria-label="{label}">.*?</form>', html)
    return form


ROLLED_BACK = (ROLLED_BACK_TAG, "flights: too slow")
PASSED = {"onnxserve.gate": "passed", "onnxserve.gate.digest": "ab12"}
TAKEN_BACK = dict([ROLLED_BACK])


@pytest.mark.parametrize(
    ("place", "tags", "holders", "refused"),
    [
        ("Production", {}, {"1"}, ""),
        ("Production", PASSED, {"1"}, ""),
        ("Production", PASSED, {"2"}, "already there"),
        ("Production", {}, {"2"}, ""),  # The version is there without a gate verdict.
        ("Production", PASSED, {"1", "2"}, ""),  # The other version is archived.
        ("Staging", {}, {"2"}, "already there"),
        ("Production", TAKEN_BACK, {"1"}, "it was rolled back (flights: too slow)"),
        ("Staging", TAKEN_BACK, {"1"}, ""),
        ("@live", {}, {"2"}, "already there"),
        ("@live", TAKEN_BACK, {"2"}, "it was rolled back"),
    ],
)
def test_promotion_target_has_a_refusal(place, tags, holders, refused):
    parsed = parse_stage_or_alias(place)
    target = promotion_target("m", "2", parsed, tags, GatePolicy(), frozenset(holders))
    assert refused in target.refusal
    assert bool(target.refusal) is bool(refused)
    assert target.obstacle == refused.partition(" (")[0]


FAILED = {"onnxserve.gate": "failed", "onnxserve.gate.digest": "ab12"}


@pytest.mark.parametrize(
    ("place", "tags", "holders", "stage", "words"),
    [
        ("@live", PASSED, {"1"}, "", ["version 1 → 2", "Gate: passed", "serve it: flights"]),
        ("@live", FAILED, {"1"}, "", ["version 1 → 2", "Gate: failed"]),
        ("@live", {}, {}, "", ["none → 2", "Gate: runs first"]),
        ("Staging", {}, {"9", "10"}, "", ["9, 10 → 2", "Gate: not asked", "no endpoint"]),
        ("Archived", {}, {}, "Production", ["no endpoint", "no longer", "Production: birds"]),
    ],
)
def test_promotion_target_names_its_effect(place, tags, holders, stage, words):
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
    assert place in target.effect
    for text in words:
        assert text in target.effect
