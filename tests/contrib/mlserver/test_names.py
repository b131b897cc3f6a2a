"""Every recorded request, answered by this server with `server.v2_names: mlserver`."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.http.plan import PlanTable
from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.contrib.mlserver.conftest import FORMS, read_recordings
from tests.support import handling


@dataclass(frozen=True)
class Difference:
    """An aspect in which our answers differ, and the reason."""

    aspect: str
    requests: str
    reason: str
    status: int | None = None


DIFFERENCES = ()


def aspects_of(status, headers, body):
    """Return the aspects of an answer by name. New ids are masked."""
    aspects = {"status": status, **{name: value for name, value in headers.items() if name.startswith(("content-type", "ce-"))}}
    if isinstance(body, dict):
        for key, value in body.items():
            if key == "outputs" and value and "data" in value[0]:
                for position, output in enumerate(value):
                    aspects |= {f"output {position} {name}": part for name, part in output.items()}
            else:
                aspects[key] = value
    else:
        aspects["body"] = body
    return aspects


def are_equal(one, other):
    if isinstance(one, float) or isinstance(other, float):
        return one is not None and other is not None and bool(np.isclose(one, other, rtol=1e-6, atol=1e-9))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_equal, one, other))
    return one == other


def send(server, recording):
    body = recording.get("body", b"")
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    headers = {"content-type": "application/json"}
    headers |= {name.lower(): value for name, value in recording.get("headers", {}).items()}
    request = RawRequest(recording["method"], recording["path"], headers, content.encode() if isinstance(content, str) else content)
    response = PlanTable(server).answer(request) or handling.handle(server, request)
    text = response.body.decode()
    try:
        answered = json.loads(text)
    except ValueError:
        answered = text
    headers = {name.lower(): value for name, value in response.headers.items()}
    return response.status, headers | {"content-type": response.content_type}, answered


def model_of(recording):
    match = re.match(r"/v[12]/models/([\w-]+)", recording["path"])
    return match[1] if match else ""


def compare(recording, answer):
    """Yield the aspects that differ, with both values."""
    recorded = recording["answer"]
    theirs = aspects_of(recorded["status"], recorded["headers"], recorded["body"])
    ours = aspects_of(*answer)
    sent = recording.get("body")
    if not (isinstance(sent, dict) and sent.get("id")):
        for aspects in (theirs, ours):
            if "id" in aspects:
                aspects |= {name: "a new id" for name in ("ce-id", "ce-requestid") if aspects.get(name) == aspects["id"]}
                aspects["id"] = "a new id"
    for name in sorted(theirs.keys() | ours.keys()):
        if not are_equal(theirs.get(name), ours.get(name)):
            yield name, theirs.get(name), ours.get(name)


@pytest.mark.parametrize("form", FORMS)
def test_mlserver_show(served, form):
    server = served(form)
    for recording in read_recordings("mlserver"):
        if model_of(recording) not in (*FORMS[form], "", "unknown"):
            continue
        for name, theirs, ours in compare(recording, send(server, recording)):
            print(form, "|", recording["name"], "|", recording["answer"]["status"], "|", name, "|", str(theirs)[:150], "|", str(ours)[:150])
