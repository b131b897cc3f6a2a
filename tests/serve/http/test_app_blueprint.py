"""Flask's part of the HTTP surface: the blueprints of other distributions."""

import os
import re
from pathlib import Path

import pytest
import requests

from tests.support.refusals import mentions
from tests.support.servers import gunicorn, one_endpoint

PAGE = (Path(__file__).parents[3] / "docs" / "extend.md").read_text()


MORE_VIEWS = """

@blueprint.get("/broken")
def broken():
    raise RuntimeError("secret")


@blueprint.get("/panics")
def panics():
    class PanicException(BaseException):
        pass

    raise PanicException("secret")


@blueprint.get("/leaves")
def leaves():
    raise SystemExit("secret")


@blueprint.get("/aborts/<int:status>")
def aborts(status):
    from flask import abort

    abort(status, description="its own words")


@blueprint.get("/file")
def file():
    from flask import send_file

    return send_file(__file__, mimetype="text/plain")
"""


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """The example of the docs as an installed distribution, and a second blueprint that
    cannot be loaded.
    """
    folder = tmp_path_factory.mktemp("site-packages")
    code = re.findall(r"`flights_pages.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL)[0]
    entry = re.findall(r'flights = "(.*?)"', PAGE)[0]
    (folder / "flights_pages.py").write_text(code + MORE_VIEWS)
    metadata = folder / "flights_pages-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: flights-pages\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[onnxserve.blueprints]\nflights = {entry}\nabsent = no_such_module:x\n"
    )
    return folder


@pytest.fixture(scope="module")
def running(tmp_path_factory, distribution, bias_folders):
    state_dir = tmp_path_factory.mktemp("state")
    path = os.pathsep.join(filter(None, [str(distribution), os.environ.get("PYTHONPATH")]))
    with gunicorn(
        state_dir, one_endpoint(bias_folders["1"]), environment={"PYTHONPATH": path}
    ) as running:
        yield running


def test_blueprint_of_other_distribution_is_served(running, distribution):
    response = running.get("/airports/ewr?detail=long")
    assert response.json() == {"code": "EWR", "detail": "long", "served": {"e": ["1"]}}
    refused = running.post("/airports/ewr", json={})
    assert refused.status_code == 405
    assert refused.headers["Allow"] == "GET, HEAD, OPTIONS"
    head = requests.head(running.url + "/file", timeout=30)
    assert (head.status_code, head.content) == (200, b"")
    code = (distribution / "flights_pages.py").read_text()
    assert running.get("/file").text == code
    assert head.headers["Content-Length"] == str(len(code.encode()))


@pytest.mark.parametrize("view", ["broken", "panics", "leaves"])
def test_failing_view_hides_its_reason(running, view):
    response = running.get(f"/{view}")
    assert response.status_code == 500
    assert response.json()["error_code"] == "INTERNAL_ERROR"
    assert "secret" not in response.text
    assert "secret" in running.log.read_text()


@pytest.mark.parametrize("status", [404, 405, 410])
def test_error_of_view_keeps_its_message(running, status):
    refused = running.get(f"/aborts/{status}")
    assert (refused.status_code, "its own words" in refused.text) == (status, True)


def test_broken_blueprint_is_skipped(running):
    assert running.post(json={"inputs": [[1, 2, 3]]}).json() == {"predictions": [[1006.0]]}
    assert mentions(running.log.read_text(), "blueprint", "no_such_module:x", "cannot be used")


def test_own_routes_take_precedence(running):
    assert running.get("/v2/models/e/versions/1").json()["name"] == "e"
    assert running.get("/ping").text == "\n"
