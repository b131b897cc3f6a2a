"""The models and endpoints of MLflow's server with a login and the console, as its
users see and promote them.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import requests

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.store import Store
from tests.support.classifiers import write_classifier
from tests.support.console import API, PAGE, POLICY, RISK
from tests.support.gate_bypasses import SOURCE, GatedRegistry
from tests.support.waiting import wait_until

SECONDS = 60
_APPROVALS = (
    "gated_aliases: [champion]\nskip: [evaluation, robustness, budget]\n"
    f"approvals: {{groups: [{RISK}], evaluation: optional}}"
)


@dataclass
class Platform:
    """The server, its store, and a session of each user who may log in.

    Attributes:
        server: has the attributes `url` and `folder`.
    """

    server: Any
    store: Store
    sessions: dict[str, requests.Session]

    @property
    def console(self):
        return f"{self.server.url}{PAGE}"

    def page(self, user, headers=None, **query):
        answer = self.sessions[user].get(
            self.console, params=query, headers=headers, timeout=SECONDS
        )
        assert answer.status_code == 200, answer.text
        return answer.text

    def send(self, user, path, fields):
        url = f"{self.server.url}{path}"
        return self.sessions[user].post(url, json=fields, timeout=SECONDS)

    def add_model(self, model, endpoint, owner="admin"):
        """Create a gated model with a version and an endpoint. Only administrators may
        create a version from files outside of a run.
        """
        new = {"name": model, "tags": [{"key": "onnxserve.gate.policy", "value": POLICY}]}
        version = {"name": model, "source": "gs://bucket/x"}
        self.send(owner, f"{API}/registered-models/create", new).raise_for_status()
        self.send("admin", f"{API}/model-versions/create", version).raise_for_status()
        self.store.add_endpoint("onnxserve", new_endpoint(endpoint, f"models:/{model}/Staging"))

    def move(self, user, stage, model="X"):
        body = {"name": model, "version": "1", "stage": stage}
        return self.send(user, f"{API}/model-versions/transition-stage", body)

    def check_moves(self, editor):
        """Check that the editor, whose name in the audit trail is `editor`, may move X
        to ungated stages only, and that the reader may not move X.
        """
        moves = product(("editor", "reader"), ("Archived", "Production"))
        assert [self.move(*move).status_code for move in moves] == [200, 403, 403, 403]
        refusals = {(event.actor, event.after) for event in self.events("X", "refused")}
        assert refusals == {(editor, "Production")}

    def registry(self, user):
        return GatedRegistry(self.server.url, self.sessions[user], self.sessions["admin"])

    def seen(self, user, models):
        """Return the endpoints of the models (model → endpoint) on the user's page, and
        the models that the user may promote.
        """
        page = self.page(user)
        endpoints = {name for name in models.values() if f'id="endpoint-{name}"' in page}
        return endpoints, {name for name in models if f"Promote version 1 of {name}" in page}

    def events(self, model, action):
        return [event for event in self.store.events(model=model) if event.action == action]

    def wait_for_event(self, model, action):
        wait_until(lambda: self.events(model, action), 120, f"the {action} is recorded")

    def add_approved_model(self):
        """Create a model of the editor, whose promotions a member of the group `RISK`
        approves. Return its name.
        """
        registry = self.registry("editor")
        files = registry.files[SOURCE].removeprefix("mlflow-artifacts:/")
        write_classifier(self.server.folder / "artifacts" / files)
        model = registry.create_model(_APPROVALS)
        self.store.add_endpoint("onnxserve", new_endpoint(model, f"models:/{model}@champion"))
        return model

    def promote_by_group(self, model, press, outsiders):
        """Promote version 1 as the editor, with the approval of the reader. Return the
        actors of the request, the approval, the move and the promotion.

        Args:
            press: presses a button of the editor's page, `request` or `promote`, and
                waits for its event.
            outsiders: the users whose approval is refused.
        """
        press("request")
        decided = {user: self._approve(user, model) for user in (*outsiders, "reader")}
        assert decided == {**dict.fromkeys(outsiders, 403), "reader": 200}
        press("promote")
        assert self.registry("editor").placed(model) == {"none", "champion"}
        actions = ("request", "approve", "alias", "promote")
        return [self.events(model, action)[0].actor for action in actions]

    def _approve(self, user, model):
        """Approve the report that the console lists, and return the status."""
        path = f"{PAGE}/requests?model={model}"
        listed = self.sessions[user].get(f"{self.server.url}{path}", timeout=SECONDS)
        decision = {"action": "approve", "model": model, "version": "1", "to": "@champion"}
        decision["report"] = listed.json()[0]["report_digest"]
        return self.send(user, path, decision).status_code

    def job_files(self):
        """Return the content of all files of jobs."""
        texts = [path.read_text() for path in (self.server.folder / "home").rglob("jobs/*")]
        assert texts
        return "".join(texts)
