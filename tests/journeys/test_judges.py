"""Tests of whose verdicts count, and of the report that approvers see, with the
accounts of MLflow's basic auth.
"""

import hashlib

import pytest
import requests
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.errors import ScopeMissing
from mlflow_deploy_plugin.core.registry.model_files import version_digest
from mlflow_deploy_plugin.core.registry.policy import parse_policy
from mlflow_deploy_plugin.promote.gate.approval_client import listed_requests, send_decision
from mlflow_deploy_plugin.promote.gate.promotion import promote
from mlflow_deploy_plugin.promote.gate.recording import VerdictRecord, write_verdict
from mlflow_deploy_plugin.promote.gate.run import run_gate
from tests.support.accounts import people
from tests.support.refusals import mentions, refused
from tests.support.services.basic_auth import password

pytest.importorskip(
    "flask_wtf", reason="MLflow's basic auth needs Flask-WTF (pip install mlflow[auth])"
)
pytestmark = pytest.mark.long

TO = "@champion"
CHECKS = "gated_aliases: [champion]\nskip: [evaluation, robustness, budget]\n"
JUDGES = f"{CHECKS}judges: [admin]"
APPROVALS = f"{CHECKS}approvals: {{groups: [risk], evaluation: optional}}"
EVIL = "https://evil.example/passed"
REPORT = "gate_report.html"


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("judges")
    with people(folder, new_database, "alice", "carol", "bob") as accounts:
        accounts.add_role("risk", "carol")
        yield accounts


def invented(model, policy):
    """Return a verdict that no gate has made, on the files of version 1."""
    return VerdictRecord(
        model=model,
        version="1",
        state="passed",
        reason="invented",
        files=version_digest(f"models:/{model}/1"),
        policy_digest=parse_policy(policy, "the test").digest,
        report=EVIL,
        machine="root@laptop",
    )


def get(user, url):
    return requests.get(url, auth=(user, password(user)), timeout=60)


def test_only_judges_verdicts_count(server):
    model = server.register("alice", JUDGES)
    with server.logged_in("alice") as client:
        with refused(ScopeMissing, "alice", "admin", "judges"):
            run_gate(model, "1")
        with refused(ScopeMissing, "alice", "admin", "judges"):
            write_verdict(invented(model, JUDGES), server.store)
        with refused(ScopeMissing, "alice", "admin", "judges"):
            promote(model, "1", TO, force=True, why="a drill")
        with refused(MlflowException, "administrator", "judges"):
            client.set_registered_model_tag(model, "onnxserve.gate.policy", CHECKS)
        assert client.get_model_version(model, "1").tags == {}
    with server.logged_in("admin"):
        run_gate(model, "1")
    with server.logged_in("alice"):
        assert promote(model, "1", TO).is_moved


def test_approvers_see_author_of_report(server):
    model = server.register("alice", APPROVALS)
    with server.logged_in("alice") as client:
        run_id = client.get_model_version(model, "1").run_id
        client.log_text(run_id, "<p>judged", REPORT)
        digest = hashlib.sha256(b"<p>judged").hexdigest()
        report = {"run_id": run_id, "report_digest": digest}
        write_verdict(invented(model, APPROVALS).model_copy(update=report), server.store)
        send_decision("request", model, "1", TO)
        assert EVIL not in client.get_model_version(model, "1").tags.values()
    with server.logged_in("carol"):
        (entry,) = listed_requests(model)
    assert mentions(entry.judged_by, "alice", "author of the version", "root@laptop", "127.0.0.1")
    shown = get("carol", entry.report)
    assert shown.text == "<p>judged"
    assert shown.headers["Content-Security-Policy"].startswith("sandbox;")
    assert entry.judged_by in get("carol", f"{server.server.url}/onnxserve").text
    assert get("bob", entry.report).status_code == 404
    with server.logged_in("alice") as client:
        client.log_text(run_id, "<p>replaced", REPORT)
    assert get("carol", entry.report).status_code == 403
