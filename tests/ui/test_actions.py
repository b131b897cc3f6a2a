"""Tests of the actions of the console: blockers, invalid forms, and the process of an
action.
"""

import ssl
import threading
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
from tests.support.keypairs import Authority
from tests.support.refusals import mentions, refused


@pytest.mark.parametrize(
    ("allowed", "sent_from", "servers"),
    [
        ("", "127.0.0.1", ("http://127.0.0.1:5000",)),
        ("", "", ()),  # On a Unix socket, gunicorn derives the server's name from the Host header.
        ("10.*", "", ()),
        ("10.6.6.6,mlflow.example", "127.0.0.1", ("http://127.0.0.1:5000", "http://10.6.6.6")),
    ],
)
def test_caller_host_is_not_mlflow(
    mlflow_app, endpoint, started, monkeypatch, allowed, sent_from, servers
):
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", allowed)
    browser, _, token = open_page(mlflow_app)
    (cookie,) = browser._cookies.values()
    browser.set_cookie(cookie.key, cookie.value, domain="10.6.6.6")
    address = {"REMOTE_ADDR": sent_from, "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "5000"}
    browser.post(
        PAGE, data=form(endpoint, token), base_url="http://10.6.6.6", environ_overrides=address
    )
    assert [job.servers for job in started] == [servers]


@pytest.fixture
def private_mlflow(tmp_path):
    """Yield an address behind TLS, and the certificate of its private authority."""
    authority = Authority(tmp_path / "authority", "private")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost"))
    with ThreadingHTTPServer(("localhost", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_port}", authority.certificate
        server.shutdown()


@pytest.mark.parametrize(
    ("is_trusted", "names"),
    [
        (True, ["no endpoint", "'x'"]),
        (False, ["cannot send requests to itself", "MLFLOW_TRACKING_SERVER_CERT_PATH"]),
    ],
)
def test_job_trusts_the_configured_authority(
    private_mlflow, tmp_path, monkeypatch, new_home, is_trusted, names
):
    address, certfile = private_mlflow
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "replaced")
    if is_trusted:
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certfile))
    arguments = {"action": "rollback", "endpoint": "x", "why": ""}
    file = tmp_path / "job.json"
    job = Job(description="roll x back", actor="me", arguments=arguments, servers=(address,))
    write_state(file, job)

    main(file)

    ended = read_state(file, Job)
    assert ended is not None
    assert mentions(ended.message, *names)
    assert (address in ended.message) is not is_trusted


@pytest.mark.parametrize(
    ("changed", "status", "names"),
    [
        ({"weight:champion": "much"}, 400, ["champion", "&#39;much&#39;"]),
        ({"weight:champion": "0"}, 400, ["at least one weight"]),
        ({"endpoint": "nobody"}, 404, ["no endpoint", "&#39;nobody&#39;"]),
        ({"action": "explode"}, 400, ["&#39;explode&#39;"]),
        (
            {"action": "promote", "model": "m", "version": "1", "to": "Mars"},
            400,
            ["&#39;Mars&#39;", "@champion"],
        ),
        ({"action": "gate", "model": "m", "version": "one"}, 400, ["a registered model"]),
        ({"why": "x" * 501}, 400, ["501", "500"]),
    ],
)
def test_invalid_form_is_refused(mlflow_app, endpoint, changed, status, names):
    browser, _, token = open_page(mlflow_app)
    answer = browser.post(PAGE, data={**form(endpoint, token), **changed})
    assert answer.status_code == status
    assert mentions(answer.text, *names)


@pytest.fixture
def deployments(mlflow_app):
    return Deployments(mlflow_app.store, load_settings(), lambda line: None)


@pytest.fixture
def model(mlflow_app):
    return mlflow_app.model(versions=3)


def observed(model, reference, beside=""):
    """Return a running endpoint without requests, optionally with a second variant."""
    store = model.mlflow.store
    spec = new_endpoint(f"e-{len(store.endpoints())}", f"models:/{model}/{reference}")
    if beside:
        both = add_variant(spec, "other", f"models:/{model}/{beside}")
        spec = apply_config(both, {"variants.other.weight": 50})
    return ObservedEndpoint(store.add_endpoint("onnxserve", spec), Observation("running"))


def followed(model, *stood):
    """Return an endpoint that follows Production, which contained these versions one
    after another.
    """
    for version in stood:
        model.mlflow.registry.transition_model_version_stage(model, version, "Production", True)
    return observed(model, "Production")


def target(model, endpoint):
    """Return the version of a rollback, or the message of its refusal."""
    try:
        return rollback_target_of(model.mlflow.store, endpoint, model.mlflow.registry).version
    except (InvalidConfig, NotFound) as refusal:
        return refusal.message


@pytest.mark.parametrize("state", ["stopped", "failed", "empty"])
def test_stopped_server_blocks_every_action(model, state):
    live = followed(model, "1", "2")
    down = replace(live, observation=Observation(state))
    blocker = server_blocker(down)
    assert mentions(blocker, live.endpoint.name, f"`onnxserve start {live.endpoint.name}`")
    assert traffic_blocker(model.mlflow.store, down) == target(model, down) == blocker


def test_running_server_allows_traffic_and_rollback(model):
    served = followed(model, "1", "2")
    assert traffic_blocker(model.mlflow.store, served) == ""
    assert target(model, served) == "1"


def test_repeated_rollback_button_is_refused(model, deployments):
    store = model.mlflow.store
    served = followed(model, "1", "2", "3")
    shown = target(model, served)
    assert shown == "2"
    require_shown_target(store, served, shown, {})

    rollback(deployments, served.endpoint.name, to="2")

    with refused(InvalidConfig, "a rollback to 2", "rolled back to 1"):
        require_shown_target(store, served, shown, {})


def test_rollout_blocks_traffic_changes(model, deployments):
    served = followed(model, "1")
    store = model.mlflow.store
    name = served.endpoint.name
    planned = {"to_uri": "models:/m/2", "steps": [10, 100], "before_version": "1"}
    store.add_rollout(name, planned, "stepping")

    assert target(model, served) == "1"
    blocker = traffic_blocker(store, served)
    with pytest.raises(InvalidConfig) as raised:
        deployments.set_traffic(name, {name: 100})
    assert blocker == raised.value.message
    assert mentions(blocker, "rollout")


def test_rollback_without_a_target_is_refused(model, deployments):
    several = observed(model, "1", beside="2")
    for served in (followed(model, "1"), observed(model, "1"), several):
        name = served.endpoint.name
        message = target(model, served)
        with pytest.raises((InvalidConfig, NotFound)) as raised:
            rollback(deployments, name)
        assert message == redact_addresses(raised.value.message)
        assert "sqlite" not in message
        expected = "exactly one deployment" if served is several else f"rollback {name} --to"
        assert mentions(message, expected)


def test_gate_with_accounts_reads_no_file():
    dataset = {"evaluation": {"dataset": "/data/held_out.csv", "target": "y"}}
    policy = GatePolicy.model_validate(dataset)
    assert gate_blocker(policy, has_account=False) == ""
    assert mentions(gate_blocker(policy, has_account=True), "dataset /data/held_out.csv")
    skipped = policy.model_copy(update={"skip": ("evaluation",)})
    assert gate_blocker(skipped, has_account=True) == ""
