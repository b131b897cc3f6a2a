"""Requests to MLflow's server with the console in it: its registry, the page and its
forms.
"""

import re
from dataclasses import replace

from flask import request

from mlflow_deploy_plugin.core.store.audit import INTEND, INTENTION
from mlflow_deploy_plugin.ui.logins.login import Login, ModelPermission

PAGE = "/onnxserve"
POLICY = "gated_stages: [Production]\ngated_aliases: [champion]"
API = "/api/2.0/mlflow"
AJAX = "/ajax-api/2.0/mlflow"
FIXTURE = "fixture"
"""The actor of the events that prepare a test."""
RISK = "risk"
"""The group of the people who approve promotions."""


class HeaderLogin(Login):
    """A login that believes the name in a header. Without a name, the caller is an
    administrator.
    """

    def __init__(self, readers, editors, risk=""):
        self._readers = readers.split()
        self._editors = editors.split()
        self._risk = risk.split()

    def user(self):
        return request.headers.get("X-User", "")

    def is_administrator(self):
        return not self.user()

    def groups(self):
        return frozenset({RISK} if self.user() in self._risk else ())

    def permission(self, model):
        return ModelPermission(self.user() in self._readers, self.user() in self._editors)


def events(mlflow_app, model):
    """Return the events of the model, without the intentions of changes, and without
    those of `FIXTURE`.
    """
    return [
        replace(event, detail={key: event.detail[key] for key in event.detail if key != INTENTION})
        for event in mlflow_app.store.events(model=model)
        if event.action != INTEND and event.actor != FIXTURE
    ]


def move(mlflow_app, model, version, stage, base=API, **more):
    body = {"name": model, "version": version, "stage": stage, **more}
    return mlflow_app.client.post(f"{base}/model-versions/transition-stage", json=body)


def point(mlflow_app, model, alias, version):
    body = {"name": model, "alias": alias, "version": version}
    return mlflow_app.client.post(f"{API}/registered-models/alias", json=body)


def open_page(mlflow_app, path=PAGE, **options):
    """Return a browser that has opened the page, the page,
    and the token of its forms.
    """
    browser = mlflow_app.client
    html = browser.get(path, **options).text
    return browser, html, form_token(html)


def form_token(html):
    """Return the token of the forms of a page; empty without forms."""
    match = re.search(r'name="csrf_token" value="([\w.-]+)"', html)
    return match.group(1) if match else ""


def form(endpoint, token, **more):
    fields = {"action": "traffic", "endpoint": endpoint, "csrf_token": token}
    return {**fields, "weight:champion": "100", "why": "tried", **more}
