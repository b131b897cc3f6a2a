"""Tests of the actions of the console: blockers, invalid forms, and the process of an
action.
"""

import ssl
import subprocess
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.connection import redact_addresses
from mlflow_deploy_plugin.core.registry.policy import GatePolicy
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.core.statedir.files import read_state, write_state
from mlflow_deploy_plugin.promote.rollouts.rollback import rollback
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ui.actions import (
    gate_blocker,
    main,
    require_shown_target,
    rollback_target_of,
    server_blocker,
    traffic_blocker,
)
from mlflow_deploy_plugin.ui.jobs import Job
from tests.support.console import PAGE, form, open_page
from tests.support.refusals import mentions, refused
from tests.support.waiting import wait_until


@pytest.mark.long
def test_a_button_starts_a_process_and_the_page_tells_how_it_went(
    mlflow_app, endpoint, monkeypatch
):
    browser, _, token = open_page(mlflow_app)
    begun = time.monotonic()
    page = f"{PAGE}?endpoint={endpoint}&span=day"  # The response leads back to this page.
    answer = browser.post(page, data=form(endpoint, token), headers={"Origin": "http://localhost"})
    assert answer.headers["Location"].endswith(f"&endpoint={endpoint}&span=day")
    assert time.monotonic() - begun < 30  # The process runs in the background.
    assert answer.status_code == 303
    html = wait_until(lambda: ended(browser, answer.headers["Location"]), 90, "the job has ended")
    assert 'role="alert"' in html
    # No server listens at the address of the test's app, and the process reports this.
    assert mentions(
        html, "Not done", f"the traffic of {endpoint}", "champion 100", "http://localhost:80"
    )


@pytest.mark.parametrize(
    ("allowed", "sent_from", "servers"),
    [
        ("", "127.0.0.1", ("http://127.0.0.1:5000",)),
        ("", "", ()),  # On a Unix socket, gunicorn derives the server's name from the Host header.
        ("10.*", "", ()),
        ("10.6.6.6,mlflow.example", "127.0.0.1", ("http://127.0.0.1:5000", "http://10.6.6.6")),
    ],
)
def test_a_host_that_only_the_caller_names_is_never_taken_for_mlflow(
    mlflow_app, endpoint, started, monkeypatch, allowed, sent_from, servers
):
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", allowed)
    browser, _, token = open_page(mlflow_app)
    browser.set_cookie(*session_of(browser), domain="10.6.6.6")
    browser.post(
        PAGE,
        data=form(endpoint, token),
        base_url="http://10.6.6.6",
        environ_overrides={
            "REMOTE_ADDR": sent_from,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "5000",
        },
    )
    assert [job.servers for job in started] == [servers]


@pytest.fixture
def private_mlflow(tmp_path):
    """Yield an address behind TLS, and the certificate of its private authority."""
    certfile = tmp_path / "cert.pem"
    keyfile = tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [*command, "-keyout", str(keyfile), "-out", str(certfile)], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    with ThreadingHTTPServer(("localhost", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_port}", certfile
        server.shutdown()


@pytest.mark.parametrize(
    ("is_trusted", "names"),
    [
        (True, ["no endpoint", "'x'"]),
        (False, ["cannot send requests to itself", "MLFLOW_TRACKING_SERVER_CERT_PATH"]),
    ],
)
def test_job_trusts_the_certificate_authority_configured_for_mlflow(
    private_mlflow, tmp_path, monkeypatch, is_trusted, names
):
    address, certfile = private_mlflow
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "replaced")
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    if is_trusted:
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certfile))
    arguments = {"action": "rollback", "endpoint": "x", "why": ""}
    job = tmp_path / "job.json"
    write_state(
        job, Job(description="roll x back", actor="me", arguments=arguments, servers=(address,))
    )

    main(job)

    ended = read_state(job, Job)
    assert ended is not None
    assert mentions(ended.message, *names)
    assert (address in ended.message) is not is_trusted


def session_of(browser):
    (cookie,) = browser._cookies.values()
    return cookie.key, cookie.value


def ended(browser, path):
    html: str = browser.get(path).text
    return "" if "In progress" in html else html


@pytest.mark.parametrize(
    ("changed", "status", "names"),
    [
        ({"weight:champion": "much"}, 400, ["champion", "&#39;much&#39;"]),
        ({"weight:champion": "101"}, 400, ["&#39;101&#39;", "0 to 100"]),
        ({"weight:champion": "0"}, 400, ["at least one weight"]),
        ({"endpoint": "nobody"}, 404, ["no endpoint", "&#39;nobody&#39;"]),
        ({"action": "explode"}, 400, ["&#39;explode&#39;"]),
        (
            {"action": "promote", "model": "m", "version": "1", "to": "Mars"},
            400,
            ["&#39;Mars&#39;", "@champion"],
        ),
        (
            {"action": "gate", "model": "m", "version": "one"},
            400,
            ["a registered model", "its version"],
        ),
        ({"why": "x" * 501}, 400, ["501", "500"]),
    ],
)
def test_invalid_form_is_refused_with_a_clear_message(mlflow_app, endpoint, changed, status, names):
    browser, _, token = open_page(mlflow_app)
    answer = browser.post(PAGE, data={**form(endpoint, token), **changed})
    assert answer.status_code == status
    assert mentions(answer.text, *names)


@pytest.fixture
def deployments(mlflow_app):
    return Deployments(mlflow_app.store, load_settings(), lambda line: None)


def observed(mlflow_app, uri, beside=""):
    """Return a running endpoint without requests, optionally with a second variant."""
    name = f"e-{len(mlflow_app.store.endpoints())}"
    spec = new_endpoint(name, uri)
    if beside:
        spec = apply_config(add_variant(spec, "other", beside), {"variants.other.weight": 50})
    return ObservedEndpoint(
        mlflow_app.store.add_endpoint("onnxserve", spec), Observation("running")
    )


def followed(mlflow_app, model, *stood):
    """Return an endpoint that follows Production, which contained these versions one
    after another.
    """
    for version in stood:
        mlflow_app.registry.transition_model_version_stage(model, version, "Production", True)
    return observed(mlflow_app, f"models:/{model}/Production")


def test_a_server_that_does_not_run_is_neither_given_traffic_nor_rolled_back(mlflow_app):
    live = followed(mlflow_app, mlflow_app.model(), "1", "2")
    for state in ("stopped", "failed", "empty"):
        down = replace(live, observation=Observation(state))  # type: ignore[arg-type]
        text = (
            f"the server of {live.endpoint.name} does not run: start it with `onnxserve start "
            f"{live.endpoint.name}`"
        )
        assert server_blocker(down) == text
        assert traffic_blocker(mlflow_app.store, down) == text
        assert refusal(mlflow_app, down) == text


def test_running_endpoint_with_an_earlier_version_allows_traffic_and_rollback(mlflow_app):
    served = followed(mlflow_app, mlflow_app.model(), "1", "2")
    assert traffic_blocker(mlflow_app.store, served) == ""
    assert target(mlflow_app, served) == "1"


def test_who_presses_the_button_after_another_does_not_go_back_a_second_step(
    mlflow_app, deployments
):
    model = mlflow_app.model(versions=3)
    served = followed(mlflow_app, model, "1", "2", "3")
    shown = target(mlflow_app, served)
    assert shown == "2"
    require_shown_target(mlflow_app.store, served, shown, {})

    rollback(deployments, served.endpoint.name, to="2")

    with refused(InvalidConfig, "a rollback to 2", "rolled back to 1"):
        require_shown_target(mlflow_app.store, served, shown, {})


def test_while_a_rollout_is_under_way_it_has_the_traffic_and_a_rollback_aborts_it(
    mlflow_app, deployments
):
    served = followed(mlflow_app, mlflow_app.model(), "1")
    name = served.endpoint.name
    mlflow_app.store.add_rollout(
        name, {"to_uri": "models:/m/2", "steps": [10, 100], "before_version": "1"}, "stepping"
    )

    assert target(mlflow_app, served) == "1"
    blocker = traffic_blocker(mlflow_app.store, served)
    with pytest.raises(InvalidConfig) as raised:
        deployments.set_traffic(name, {name: 100})
    assert blocker == raised.value.message
    assert mentions(blocker, "rollout")


def test_rollback_without_an_earlier_version_is_refused(mlflow_app, deployments):
    model = mlflow_app.model()
    served = followed(mlflow_app, model, "1")
    pinned = observed(mlflow_app, f"models:/{model}/1")
    for each in (served, pinned):
        message = refusal(mlflow_app, each)
        with pytest.raises(NotFound) as raised:
            rollback(deployments, each.endpoint.name)
        assert message == redact_addresses(raised.value.message)
        assert "sqlite" not in message
        assert mentions(message, f"`onnxserve rollback {each.endpoint.name} --to")


def target(mlflow_app, one):
    return rollback_target_of(mlflow_app.store, one, mlflow_app.registry).version


def refusal(mlflow_app, one):
    with pytest.raises((InvalidConfig, NotFound)) as raised:
        rollback_target_of(mlflow_app.store, one, mlflow_app.registry)
    return raised.value.message


def test_of_several_that_answer_none_is_rolled_back(mlflow_app, deployments):
    model = mlflow_app.model()
    served = observed(mlflow_app, f"models:/{model}/1", beside=f"models:/{model}/2")

    message = refusal(mlflow_app, served)

    with pytest.raises(InvalidConfig) as raised:
        rollback(deployments, served.endpoint.name)
    assert message == raised.value.message
    assert mentions(message, "exactly one deployment is expected")


def test_the_gate_reads_no_file_of_a_server_with_accounts():
    policy = GatePolicy.model_validate(
        {"evaluation": {"dataset": "/data/held_out.csv", "target": "y"}}
    )
    assert gate_blocker(policy, has_account=False) == ""
    assert gate_blocker(policy, has_account=True).startswith(
        "the policy's dataset /data/held_out.csv may not be read here"
    )
    assert gate_blocker(policy.model_copy(update={"skip": ("evaluation",)}), has_account=True) == ""
