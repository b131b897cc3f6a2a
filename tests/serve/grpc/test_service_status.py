"""Our errors become gRPC's status codes, and headers become metadata."""

import pytest

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.serve.grpc.service import address_of, code_of, metadata_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest, "INVALID_ARGUMENT"),
        (errors.SchemaMismatch, "INVALID_ARGUMENT"),
        (errors.InferenceError, "INVALID_ARGUMENT"),
        (errors.UnsupportedMediaType, "INVALID_ARGUMENT"),
        (errors.HeadersTooLarge, "INVALID_ARGUMENT"),
        (errors.BodyTooLarge, "RESOURCE_EXHAUSTED"),
        (errors.TooManyRequests, "RESOURCE_EXHAUSTED"),
        (errors.DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (errors.NotFound, "NOT_FOUND"),
        (errors.AlreadyExists, "ALREADY_EXISTS"),
        (errors.NotReady, "UNAVAILABLE"),
        (errors.DeviceUnavailable, "INTERNAL"),
    ],
)
def test_errors_have_their_codes(error, code):
    assert code_of(error("what was wrong")).name == code


def test_metadata_is_lower_case_ascii():
    metadata = metadata_of(
        {"X-Model-Name": "Flüge 100%", "Retry-After": "1", "traceparent": "00-a-b-01"}
    )
    assert metadata == [
        ("x-model-name", "Fl%C3%BCge 100%25"),
        ("retry-after", "1"),
        ("traceparent", "00-a-b-01"),
    ]


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:5001", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5001", "::1"),
        ("ipv6:[fe80::2]:80", "fe80::2"),
        ("unix:", ""),
    ],
)
def test_peer_address_is_parsed(peer, address):
    assert address_of(peer) == address
