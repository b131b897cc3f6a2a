"""What an HTTP answer is called in gRPC: the one place that turns our errors, which know their HTTP status, into codes.

As https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto pairs them, but for 413 and 429, which are
both RESOURCE_EXHAUSTED here: as gRPC itself answers a message beyond its limit.
"""

from collections.abc import Mapping
from urllib.parse import unquote

import grpc
import orjson

from mlflow_deploy_plugin.server.http.messages import RawResponse, fit_headers

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(response: RawResponse) -> grpc.StatusCode:
    """OK, or the code of an error; INTERNAL for what has no other."""
    return grpc.StatusCode.OK if response.status < 400 else _CODES.get(response.status, grpc.StatusCode.INTERNAL)


def message_of(response: RawResponse) -> str:
    """The message of an error's JSON body."""
    return str(orjson.loads(response.body)["message"])


def metadata_of(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """The headers of an answer as trailing metadata, names in lower case."""
    return [(name.lower(), value) for name, value in fit_headers(headers).items()]


def address_of(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:5001` or `ipv6:%5B::1%5D:5001`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
