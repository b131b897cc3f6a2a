"""Random bytes, and valid bodies with changes, to every route in one process: the
response is never a 5xx.
"""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.serve.messages import RawRequest
from tests.serve.corpus.case import Route
from tests.serve.corpus.routes import ALL, POSTS
from tests.serve.corpus.wire import Answer, check_right
from tests.support.handling import handle

ENCODINGS = st.sampled_from(["", "gzip", "zstd", "br", "identity", "gzip, zstd"])
TYPES = st.sampled_from(
    sorted({route.headers.get("Content-Type", "") for route in POSTS} | {"application/x"})
)


@pytest.fixture
def ask(server):
    def asked(route, body, headers):
        fields = {
            name.lower(): value for name, value in {**route.headers, **headers}.items() if value
        }
        response = handle(server, RawRequest(route.method, route.path, fields, body))
        return Answer(response.status, response.headers, response.body)

    return asked


Ask = Callable[[Route, bytes, dict[str, str]], Answer]
NOISE = settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check(ask, route, body, headers, caplog):
    answered = ask(route, body, headers)
    assert answered.status < 500, answered
    assert b"Traceback" not in answered.body
    assert not [record for record in caplog.records if record.exc_info]
    check_right(route, ask(route, route.good, {}))


@pytest.mark.parametrize("route", ALL, ids=lambda route: route.name)
@NOISE
@given(data=st.data())
def test_noise_is_refused_or_answered(ask, caplog, route, data):
    headers = {"Content-Encoding": data.draw(ENCODINGS), "Content-Type": data.draw(TYPES)}
    headers["Inference-Header-Content-Length"] = data.draw(
        st.sampled_from(["", "0", "5", "-1", "x"])
    )
    headers["Accept"] = data.draw(
        st.sampled_from(["", "*/*", "text/html;q=x", *route.headers.values()])
    )
    check(ask, route, data.draw(st.binary(max_size=200)), headers, caplog)


@pytest.mark.parametrize("route", POSTS, ids=lambda route: route.name)
@NOISE
@given(data=st.data())
def test_a_good_body_that_is_bent_is_refused_or_answered(ask, caplog, route, data):
    body = bytearray(route.good or b'{"parameters": {"model_uri": "models:/m/1"}}')
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 8)))
        body[start:end] = data.draw(st.one_of(st.binary(max_size=8), st.sampled_from(WORDS)))
    check(ask, route, bytes(body), {}, caplog)


WORDS = [
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"\\ud800",
    b"null",
    b"[",
    b"{}",
    b'"',
    b"9" * 30,
    b"-0.0",
    b"\xff\xfe",
    b",,",
]
