"""Moves and decisions of one person during the promotion of another, on a server with
accounts and a witness.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from mlflow_deploy_plugin.core.registry.transitions import ACT_HEADER, StageOrAlias, version_at
from mlflow_deploy_plugin.promote.gate.approvals import promotion_requests
from mlflow_deploy_plugin.promote.gate.promotion import promote
from tests.support.accounts import people
from tests.support.commands import done
from tests.support.console import API
from tests.support.refusals import mentions
from tests.support.services.basic_auth import password
from tests.support.waiting import wait_until
from tests.support.witnesses import scripted_witness

pytestmark = pytest.mark.long
POLICY = "gated_aliases: [champion]\nskip: [evaluation, robustness, budget]\n"
WITNESSED = f"{POLICY}approvals: {{groups: [risk], evaluation: optional}}\nwitnessed: 1"


@pytest.fixture(scope="module")
def witness():
    with scripted_witness() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database, witness):
    folder = tmp_path_factory.mktemp("others")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_AUDIT_WITNESSES", witness.setting)
        with people(folder, new_database, "alice", "bob") as accounts:
            accounts.add_role("risk", "bob", permission="EDIT")
            yield accounts


def send(server, user, path, headers=None, **body):
    return requests.post(
        f"{server.url}{path}", json=body, auth=(user, password(user)), headers=headers, timeout=60
    )


def point(server, user, model, alias, **more):
    body = {"name": model, "alias": alias, "version": "1"}
    return send(server, user, f"{API}/registered-models/alias", **body, **more)


def acts(server, model, action):
    events = server.store.events(model=model, actions=(action,))
    return [(event.actor, event.detail.get("act")) for event in events]


def test_moves_of_others_are_shown_despite_an_act_id(server, tmp_path):
    model = server.register("alice", POLICY)

    def interfere(line):
        """Move the version with the act id of the promotion, before its move."""
        if line.startswith("moving"):
            ((_, number),) = acts(server, model, "gate")
            for user, alias in (("bob", "other"), ("bob", "second"), ("alice", "own")):
                moved = point(server.server, user, model, alias, headers={ACT_HEADER: number})
                assert moved.status_code == 200

    with server.logged_in("alice"):
        promote(model, "1", "@champion", progress=interfere)
        history = done(f"audit history --model {model}")
        done(f"audit card models:/{model}/1 --folder {tmp_path}")
    (promoted,) = acts(server, model, "promote")
    assert acts(server, model, "alias") == [("bob", promoted[1])] * 2 + [promoted] * 2
    page = requests.get(
        f"{server.server.url}/onnxserve/history?model={model}",
        auth=("bob", password("bob")),
        timeout=60,
    ).text
    for text in (history, page, (tmp_path / "model_card.json").read_text()):
        assert text.count("bob") >= 2
        assert mentions(text, "@other", "@own")
    entries = [line.split("  ")[1:3] for line in history.splitlines() if not line.startswith(" ")]
    assert entries[-4:] == [
        ["bob", "alias"],
        ["bob", "alias"],
        ["alice", "alias"],
        ["alice", "promote"],
    ]


def test_decline_wins_over_a_version_being_moved(server, witness):
    model = server.register("alice", WITNESSED)
    url = server.server
    asked = {"model": model, "version": "1", "to": "@champion", "why": "faster"}
    with server.logged_in("alice"):
        done(f"promote models:/{model}/1 --to @champion --request --why faster")

    def requests_of(user):
        answer = requests.get(
            f"{url.url}/onnxserve/requests?model={model}", auth=(user, password(user)), timeout=60
        )
        return answer.json()

    def decide(action, report=""):
        body = {**asked, "action": action, "why": "slower", "report": report}
        return send(url, "bob", "/onnxserve/requests", **body)

    def is_moving():
        return [entry.is_moving for entry in promotion_requests(server.store, model)] == [True]

    (listed,) = requests_of("bob")
    assert decide("approve", listed["report_digest"]).status_code == 200
    witness.hangs = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        move = pool.submit(point, url, "alice", model, "champion")
        # The store answers faster than the server, which waits for the witness for 5 s.
        wait_until(is_moving, what="the request is being moved")
        (moving,) = requests_of("bob")
        declined = decide("decline")
        witness.hangs.set()
        refused = move.result()
    witness.hangs = None

    assert moving["is_moving"]
    assert (declined.status_code, refused.status_code) == (200, 403)
    assert mentions(refused.json()["message"], "bob", "declined", "slower")
    assert requests_of("bob") == []
    assert decide("decline").status_code == 404
    actions = [event.action for event in server.store.events(model=model)]
    assert actions[-3:] == ["intend", "decline", "failed"]
    with server.logged_in("alice"):
        assert version_at(model, StageOrAlias(alias="champion")) is None


def test_witness_is_asked_at_the_start(server, witness):
    model = server.register("alice", POLICY)
    witness.answer = (503, "text/plain", "")
    assert point(server.server, "alice", model, "other").status_code == 200
    server.server.kill()
    witness.asked.clear()
    server.server.start()
    wait_until(lambda: witness.asked, what="the witness is asked without a request")
    witness.answer = None
