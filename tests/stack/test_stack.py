"""The stack of docker/compose.yaml at work: TLS, gRPC, a server killed, the loop, alerts, traces, logs, dashboards."""

import pytest

from tests.stack.native import NativeStack

pytestmark = [pytest.mark.long, pytest.mark.stack, pytest.mark.timeout(900)]


def test_strangers_are_refused(stack: NativeStack) -> None:
    answer = stack.predict([[1.0, 2.0]], key="onnxserve_nobody")
    assert answer.status_code == 401
    assert stack.predict([[1.0, 2.0]]).json()["predictions"]["label"] == [1]
