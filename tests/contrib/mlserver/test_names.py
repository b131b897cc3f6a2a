"""Every recorded request, answered by this server with `server.v2_names: mlserver`."""

import re

import pytest

from tests.contrib.mlserver import aspects
from tests.contrib.mlserver.conftest import CODE, FORMS, MAKERS, MODELS, read_recordings
from tests.contrib.mlserver.record import answer_of_call
from tests.serve.grpc.conftest import calling
from tests.support import servers

FORM_CASES = ["onnx", pytest.param("original", marks=pytest.mark.long)]
_MODEL = re.compile(r"/v[12]/models/([\w-]+)")


def of_form(recordings, form):
    """Return the recordings of the models of a form, and those of no model."""
    chosen = []
    for recording in recordings:
        match = _MODEL.match(recording["path"])
        if match is None or match[1] in (*FORMS[form], "unknown"):
            chosen.append(recording)
    return chosen


def compare(server, recordings, allowed):
    """Return the differences that are not allowed, by the names of requests, and the
    rows of the table that no answer needs.
    """
    wrong = {}
    unused = set(allowed)
    for recording in recordings:
        theirs = aspects.aspects_of(recording["answer"])
        ours = aspects.aspects_of(aspects.send(server, recording))
        found, used = aspects.differences(recording, theirs, ours, allowed)
        unused -= used
        if found:
            wrong[recording["name"]] = found
    return wrong, {row.reason for row in unused}


@pytest.mark.parametrize("form", FORM_CASES)
def test_mlserver_recordings_are_answered_equally(served, form):
    allowed = aspects.MLSERVER + (aspects.ONNX if form == "onnx" else ())
    recordings = of_form(read_recordings("mlserver"), form)
    assert compare(served(form), recordings, allowed) == ({}, set())


@pytest.mark.parametrize("form", FORM_CASES)
def test_kserve_recordings_are_answered_equally_for_mlserver_names(served, form, monkeypatch):
    recordings = of_form(read_recordings("kserve"), form)
    usual = [recording for recording in recordings if not recording["variables"]]
    assert compare(served(form), usual, aspects.KSERVE) == ({}, set())
    monkeypatch.setenv("PREDICT_PROBA", "true")
    others = [recording for recording in recordings if recording["variables"]]
    wrong, _ = compare(served(form), others, ())
    assert len(others) == 3
    assert wrong == {}


def test_recordings_have_enough_models_and_requests():
    names = {folder.name for folder in MODELS.iterdir()}
    assert len(names) >= 12
    assert names == {*FORMS["onnx"], *FORMS["original"]}
    assert len(read_recordings("mlserver")) >= 40


@pytest.mark.long
def test_mlserver_calls_are_answered_equally(tmp_path):
    recordings = read_recordings("grpc")
    endpoints = {}
    for name in ("iris", "names", "widths", "flights", "xgb-binary", "lgb-binary", "cat-classes"):
        MAKERS["onnx"](name, tmp_path / name)
        endpoints[name] = {"v": servers.variant(tmp_path / name)}
    for name in (*CODE, "mlflow-array"):
        MAKERS["original"](name, tmp_path / name)
        endpoints[name] = {"v": servers.variant(tmp_path / name)}
    wrong = {}
    unused = set(aspects.GRPC)
    with calling(tmp_path / "state", endpoints, v2_names="mlserver") as called:
        port = called.address.rpartition(":")[2]
        for recording in recordings:
            answer = answer_of_call(port, {**recording})["answer"]
            theirs = aspects.call_aspects(recording["answer"])
            found, used = aspects.differences(
                recording, theirs, aspects.call_aspects(answer), aspects.GRPC
            )
            unused -= used
            if found:
                wrong[recording["name"]] = found
        usual = read_recordings("mlserver")[0]
        answer = called.http.post(usual["path"], json=usual["body"])
    assert (wrong, unused) == ({}, set())
    assert answer.json() == usual["answer"]["body"]
    assert answer.headers["Ce-Id"] == usual["body"]["id"]
