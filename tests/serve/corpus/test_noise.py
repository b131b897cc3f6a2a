"""Random bytes, and valid bodies with changes, to every route in one process: the
response is never a 5xx.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.serve.corpus.routes import ALL, POSTS
from tests.serve.corpus.wire import Answer, check_right
from tests.support.handling import handle

TYPES = sorted({route.headers.get("Content-Type", "") for route in POSTS} | {"application/x"})
WORDS = [b"NaN", b"1e999", b"\\ud800", b"null", b"[", b"{}", b'"', b"9" * 30, b"\xff\xfe", b",,"]


def bent(body, draw):
    """Return the body with a few changes."""
    changed = bytearray(body)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(changed)))
        end = draw(st.integers(start, min(len(changed), start + 8)))
        changed[start:end] = draw(st.binary(max_size=8) | st.sampled_from(WORDS))
    return bytes(changed)


@pytest.mark.parametrize("route", ALL, ids=lambda route: route.name)
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_random_request_is_refused_or_answered(server, caplog, route, data):
    def asked(body, headers):
        sent = {name.lower(): value for name, value in {**route.headers, **headers}.items()}
        response = handle(server, RawRequest(route.method, route.path, sent, body))
        return Answer(response.status, response.headers, response.body)

    choices = {
        "Content-Encoding": ["", "gzip", "zstd", "br", "identity", "gzip, zstd"],
        "Content-Type": TYPES,
        "Inference-Header-Content-Length": ["", "0", "5", "-1", "x"],
        "Accept": ["", "*/*", "text/html;q=x", *route.headers.values()],
    }
    headers = {}
    if data.draw(st.booleans()):
        for name, values in choices.items():
            if value := data.draw(st.sampled_from(values)):
                headers[name] = value
    answered = asked(bent(route.good, data.draw), headers)
    assert answered.status < 500, answered
    assert b"Traceback" not in answered.body
    assert not [record for record in caplog.records if record.exc_info]
    check_right(route, asked(route.good, {}))
