"""The page `/onnxserve`: what it shows, who may press its buttons, and what they start."""

import json
import re
import time
from typing import Any

import mlflow
import pytest

from mlflow_deploy_plugin.spec import apply_config, new_endpoint
from mlflow_deploy_plugin.store.tables import EndpointRow
from tests.support.waiting import wait_until

PAGE = "/onnxserve"


@pytest.fixture(scope="module")
def endpoint(mlflow_app: Any) -> str:
    """An endpoint that somebody asked for, and whose server does not run; its model has two versions."""
    model = mlflow_app.model()
    mlflow_app.stands(model, "2", "failed", "evaluation: accuracy 0.71 against 0.80")
    spec = new_endpoint(f"of-{model}", f"models:/{model}/Production", variant="champion")
    mlflow_app.store.add_endpoint("onnxserve", apply_config(spec, {"server.port": 65001}))
    return spec.name


def open_page(mlflow_app: Any, path: str = PAGE) -> tuple[Any, str, str]:
    """A browser that has the page open, the page, and the token of its forms."""
    browser = mlflow_app.client
    html = browser.get(path).get_data(as_text=True)
    found = re.search(r'name="csrf_token" value="([\w.-]+)"', html)
    return browser, html, found.group(1) if found else ""


def form(endpoint: str, token: str, **more: str) -> dict[str, str]:
    fields = {"action": "traffic", "endpoint": endpoint, "csrf_token": token}
    return {**fields, "weight:champion": "100", "why": "tried", **more}


def test_the_page_shows_endpoints_versions_gate_and_trail_and_asks_nobody_else(mlflow_app: Any, endpoint: str) -> None:
    answer = mlflow_app.client.get(PAGE)
    html = answer.get_data(as_text=True)
    assert answer.status_code == 200
    assert endpoint in html
    assert "@champion is gated" in html
    assert "evaluation: accuracy 0.71 against 0.80" in html
    assert f'<a href="/#/models/{endpoint.removeprefix("of-")}/versions/2">2</a>' in html
    assert "<td>create</td>" in html
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert re.findall(r'(?:src|href)="(?:https?:)?//', html) == []
    assert "<script" not in html


def test_a_version_that_was_rolled_back_is_shown_with_the_reason(mlflow_app: Any, endpoint: str) -> None:
    from mlflow.entities.model_registry import ModelVersionTag

    tag = ModelVersionTag("onnxserve.rolled_back", "flights: <too slow>")
    mlflow_app.registry.set_model_version_tag(endpoint.removeprefix("of-"), "1", tag)
    assert "rolled back: flights: &lt;too slow&gt;; it is promoted again by" in mlflow_app.client.get(PAGE).text


def test_a_rollout_is_shown_with_its_step_and_its_reason(mlflow_app: Any, endpoint: str) -> None:
    spec = {"to_uri": "models:/m/2", "steps": [1, 10, 50, 100]}
    mlflow_app.store.add_rollout(endpoint, spec, "stepping")
    html = " ".join(mlflow_app.client.get(PAGE).get_data(as_text=True).split())
    assert f'<th scope="row">{endpoint}</th><td>models:/m/2</td>' in html
    assert '<td><span class="mark mark-stepping">stepping</span></td> <td>1 of 4</td>' in html


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
def test_a_monitor_s_verdict_is_an_alarm_or_fine_or_undecided(
    mlflow_app: Any, endpoint: str, state: str, mark: str
) -> None:
    client, name = mlflow.MlflowClient(), f"onnxserve/{endpoint}"
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    reason = f"accuracy: 0.84 (the window before) → 0.71, lower; {state} <since> 2013-07-09"
    tags = {"verdict": state, "monitor": "hits", "window.start": "2013-07-09T00:00:00+00:00", "reason": reason}
    run = client.create_run(experiment_id, tags={f"onnxserve.{key}": value for key, value in tags.items()})

    html = " ".join(mlflow_app.client.get(PAGE).get_data(as_text=True).split())
    client.delete_run(run.info.run_id)

    assert "<h3>Monitors</h3>" in html
    assert f'<span class="mark mark-{mark}">{state}</span></a> <span class="muted">accuracy: 0.84 (the' in html
    assert f"lower; {state} &lt;since&gt; 2013-07-09" in html


def test_verdicts_on_a_deleted_endpoint_of_the_name_are_not_shown(mlflow_app: Any) -> None:
    name = "made-anew"
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint(name, "models:/m/1"))
    created = mlflow_app.store.require_endpoint(name).created_at.isoformat()
    client = mlflow.MlflowClient()
    experiment_id = client.create_experiment(f"onnxserve/{name}")
    for monitor, of in (("of-the-gone", "2020-01-01T00:00:00+00:00"), ("of-this", created)):
        tags = {"verdict": "drift", "monitor": monitor, "endpoint.created": of}
        client.create_run(experiment_id, tags={f"onnxserve.{key}": value for key, value in tags.items()})

    html = mlflow_app.client.get(PAGE).get_data(as_text=True)
    mlflow_app.store.remove_endpoint(name)

    assert "of-this" in html
    assert "of-the-gone" not in html


def test_an_endpoint_whose_spec_cannot_be_read_is_shown_with_the_reason(mlflow_app: Any, endpoint: str) -> None:
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint("spoilt", "models:/m/1"))
    with mlflow_app.store.transaction() as session:
        session.get(EndpointRow, "spoilt").spec += "sampling: often\n"

    html = mlflow_app.client.get(PAGE).get_data(as_text=True)

    mlflow_app.store.remove_endpoint("spoilt")
    assert '<span class="mark mark-unreadable">unreadable</span>' in html
    assert "cannot be read: unknown field &#39;sampling&#39;" in html
    assert endpoint in html


def test_the_stylesheet_is_there(mlflow_app: Any) -> None:
    answer = mlflow_app.client.get(f"{PAGE}/console.css")
    assert answer.status_code == 200
    assert "prefers-color-scheme: dark" in answer.get_data(as_text=True)


def test_names_and_reasons_that_are_html_stay_text(mlflow_app: Any) -> None:
    mlflow_app.store.record("update", endpoint="x", why="<script>alert(1)</script>")
    html = mlflow_app.client.get(PAGE).get_data(as_text=True)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)" in html


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused(mlflow_app: Any, endpoint: str, headers: dict[str, str]) -> None:
    browser, _, token = open_page(mlflow_app)
    answer = browser.post(f"{PAGE}/act", data=form(endpoint, token), headers=headers)
    assert answer.status_code == 403
    assert "the form was sent from another site" in answer.get_data(as_text=True)


def test_a_name_that_leads_here_for_the_moment_gets_neither_the_page_nor_its_token(
    mlflow_app: Any, endpoint: str
) -> None:
    """MLflow's own check of Host, which it makes for what is ours too."""
    browser, _, token = open_page(mlflow_app)
    headers = {"Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}
    assert browser.get(PAGE, headers=headers).status_code == 403
    assert browser.post(f"{PAGE}/act", data=form(endpoint, token), headers=headers).status_code == 403


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_a_form_without_its_token_is_refused(mlflow_app: Any, endpoint: str, token: str) -> None:
    browser, _, _ = open_page(mlflow_app)
    answer = browser.post(f"{PAGE}/act", data=form(endpoint, token))
    assert answer.status_code == 403
    assert "load it again" in answer.get_data(as_text=True)


def test_the_token_of_one_browser_is_not_that_of_another(mlflow_app: Any, endpoint: str) -> None:
    _, _, token = open_page(mlflow_app)
    other, _, _ = open_page(mlflow_app)
    assert other.post(f"{PAGE}/act", data=form(endpoint, token)).status_code == 403


@pytest.mark.parametrize(
    ("changed", "status", "said"),
    [
        ({"weight:champion": "much"}, 400, "the weight of champion is &#39;much&#39;; a whole number"),
        ({"weight:champion": "101"}, 400, "a whole number from 0 to 100 is expected"),
        ({"weight:champion": "0"}, 400, "give at least one variant a weight"),
        ({"endpoint": "nobody"}, 404, "there is no endpoint &#39;nobody&#39;"),
        ({"action": "explode"}, 400, "there is no action &#39;explode&#39;"),
        ({"action": "promote", "model": "m", "version": "1", "to": "Mars"}, 400, "no stage and no @alias"),
        ({"action": "gate", "model": "m", "version": "one"}, 400, "the number of its version"),
        ({"why": "x" * 501}, 400, "at most 500 are kept"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(
    mlflow_app: Any, endpoint: str, changed: dict[str, str], status: int, said: str
) -> None:
    browser, _, token = open_page(mlflow_app)
    answer = browser.post(f"{PAGE}/act", data={**form(endpoint, token), **changed})
    assert answer.status_code == status
    assert said in answer.get_data(as_text=True)


def test_what_would_be_refused_is_not_offered_and_the_reason_stands_there(mlflow_app: Any, endpoint: str) -> None:
    """The server of this endpoint does not run, and version 1 of its model was rolled back; nothing can be promoted or
    judged of a model whose policy nobody can read.
    """
    from mlflow.entities.model_registry import ModelVersionTag

    model = endpoint.removeprefix("of-")
    mlflow_app.registry.set_model_version_tag(model, "1", ModelVersionTag("onnxserve.rolled_back", "flights: slow"))
    mlflow_app.registry.transition_model_version_stage(model, "2", "Staging", False)
    unread = mlflow_app.model(policy="gated_stages: [Mars]", versions=1)
    mlflow_app.store.add_endpoint("onnxserve", new_endpoint(f"of-{unread}", f"models:/{unread}/Production"))
    html = " ".join(mlflow_app.client.get(PAGE).get_data(as_text=True).split())
    mlflow_app.store.remove_endpoint(f"of-{unread}")

    why = f"the server of {endpoint} does not run: `onnxserve start {endpoint}` first"
    assert f'<button disabled title="{why}">Change the traffic</button>' in html
    assert f'<button class="danger" disabled title="{why}">Roll back</button>' in html
    assert f"Not now: {why}</p>" in html
    of_1, of_2 = (offered(html, model, version) for version in ("1", "2"))
    assert re.search(r'<option value="Production" disabled title="[^"]*it was rolled back \(flights: slow\)', of_1)
    assert "Production – it was rolled back" in of_1
    assert '<option value="" selected>where to?</option>' in of_1
    assert "where to?" not in of_2
    assert '<option value="Staging">Staging</option>' in of_1
    assert '<option value="Production">Production</option>' in of_2
    assert '<option value="Staging" disabled title="it is there already">Staging – it is there already' in of_2
    of_unread = offered(html, unread, "1")
    assert re.search(r'value="promote" disabled title="[^"]*gated_stages', of_unread)
    assert re.search(r'value="gate" class="quiet" formnovalidate disabled title="[^"]*gated_stages', of_unread)


def offered(html: str, model: str, version: str) -> str:
    """The form of a version: where it may go, and its buttons."""
    (form,) = re.findall(
        rf'<select name="to" required aria-label="Where version {version} of {model} goes">.*?</form>', html
    )
    return str(form)


def test_a_button_starts_a_process_and_the_page_tells_how_it_went(
    mlflow_app: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, _, token = open_page(mlflow_app)
    begun = time.monotonic()
    answer = browser.post(f"{PAGE}/act", data=form(endpoint, token), headers={"Origin": "http://localhost"})
    assert time.monotonic() - begun < 30  # the process goes on without the answer
    assert answer.status_code == 303
    html = wait_until(lambda: ended(browser, answer.headers["Location"]), 90, "the job has ended")
    assert 'role="alert"' in html
    # nobody listens where the test's app says it is: the one thing that this process can do is to say so
    assert f"Not done: change the traffic of {endpoint} to champion 100. this MLflow server reaches itself" in html


def ended(browser: Any, path: str) -> str:
    html: str = browser.get(path).get_data(as_text=True)
    return "" if "Under way" in html else html


def test_the_audit_trail_is_given_as_json_lines(mlflow_app: Any, endpoint: str) -> None:
    answer = mlflow_app.client.get(f"{PAGE}/history.jsonl?endpoint={endpoint}")
    lines = [json.loads(line) for line in answer.get_data(as_text=True).splitlines()]
    assert [(line["action"], line["endpoint"]) for line in lines] == [("create", endpoint)]


def test_a_store_that_cannot_be_used_is_said_and_the_page_stands(
    mlflow_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = mlflow_app.app.extensions["onnxserve"]
    monkeypatch.setattr(trail, "_store", None)
    monkeypatch.setattr(trail, "_url", "sqlite:////proc/nobody/can/write/here.db")
    answer = mlflow_app.client.get(PAGE)
    assert answer.status_code == 200
    assert "the store at sqlite:////proc/nobody" in answer.get_data(as_text=True)
