"""Identifiers never repeat, not even in a forked process. Headers carry any name."""

import os
from urllib.parse import unquote

import pytest

from mlflow_deploy_plugin.serve.http.responses import RawResponse, serialize_response
from mlflow_deploy_plugin.serve.messages import new_id, safe_headers
from tests.support.names import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_name_outside_ascii_is_one_header(name):
    value = safe_headers({"X-Model-Name": name})["X-Model-Name"]
    assert value.isascii()
    assert value.isprintable()
    assert unquote(value) == name.replace("\ud800", "?")
    head = serialize_response(RawResponse(200, b"", headers={"X-Model-Name": name}), True)
    assert len(head.split(b"\r\n")) == 8


def test_identifiers_never_repeat():
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(id_) == 32 and int(id_, 16) >= 0 for id_ in ids)


def test_forked_process_has_other_identifiers():
    new_id()  # Some ids are prepared, and would exist in both processes.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 32).decode() != new_id()
    os.close(reading)
    os.close(writing)
