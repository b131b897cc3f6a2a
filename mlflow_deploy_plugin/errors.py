"""Every error of onnxserve, in one tree; `Refused`, for what is no error; and what messages are made of.

    OnnxserveError                  500 INTERNAL_ERROR
    ├── InvalidRequest              400 BAD_REQUEST              the body cannot be read
    │   ├── SchemaMismatch          400 BAD_REQUEST              it can, and does not fit the model
    │   ├── UnsupportedMediaType    415 BAD_REQUEST
    │   ├── BodyTooLarge            413 BAD_REQUEST
    │   ├── RequestTimeout          408 BAD_REQUEST
    │   ├── UnfitPath               400 BAD_REQUEST
    │   ├── TargetTooLong           414 BAD_REQUEST
    │   ├── ExpectationFailed       417 BAD_REQUEST
    │   ├── HeadersTooLarge         431 BAD_REQUEST
    │   └── UnknownTransferCoding   501 NOT_IMPLEMENTED
    ├── InvalidConfig               400 INVALID_PARAMETER_VALUE  a setting, option or spec field
    ├── NotFound                    404 RESOURCE_DOES_NOT_EXIST
    ├── AlreadyExists               409 RESOURCE_ALREADY_EXISTS
    ├── NotInstalled                501 NOT_IMPLEMENTED          a package that only this needs is missing
    ├── NotReady                    503 TEMPORARILY_UNAVAILABLE  nothing is loaded yet
    ├── FeedbackNotKept             503 TEMPORARILY_UNAVAILABLE  the spool takes no labels just now
    ├── TooManyRequests             429 REQUEST_LIMIT_EXCEEDED   a limit or a queue is full
    ├── DeadlineExceeded            504 DEADLINE_EXCEEDED        its time was up before it was computed
    ├── ClientDisconnected          499 CANCELLED                nobody reads the response any more
    ├── ModelError                  400 INVALID_PARAMETER_VALUE  a model that cannot be used
    │   ├── ConversionError                                      it has no ONNX form
    │   ├── ParityError                                          its ONNX form answers otherwise
    │   └── InvalidArtifact                                      its files are not what they should be
    ├── InferenceError              400 BAD_REQUEST              the runtime refused this input
    ├── Unauthenticated             401 UNAUTHENTICATED          the caller sent no key, or one that does not hold
    ├── ScopeMissing                403 PERMISSION_DENIED        the caller's key does not hold for this
    ├── GateRefused                 403 PERMISSION_DENIED        a version that has not passed its gate
    ├── CodeRefused                 403 PERMISSION_DENIED        a model's own code may not run here
    ├── CallerRefused               403 PERMISSION_DENIED        a web page of elsewhere may not change what is served
    ├── RuntimeMissing              500 INTERNAL_ERROR           no ONNX Runtime is installed
    ├── DeviceUnavailable           500 INTERNAL_ERROR           the device asked for is not really used
    ├── RegistryUnavailable         503 TEMPORARILY_UNAVAILABLE  MLflow does not answer
    ├── StoreUnavailable            503 TEMPORARILY_UNAVAILABLE  the store's database cannot be used
    ├── DeploymentFailed            500 INTERNAL_ERROR           a server that did not come up
    ├── BuildFailed                 500 INTERNAL_ERROR           an image that was not built or not pushed
    └── InternalError               500 INTERNAL_ERROR           an error that nobody foresaw; the log has it

The message is for the person who made the mistake: what was wrong, where, and what would be right. `http_status`
and `error_code` (one of MLflow's, so that MLflow's clients understand it) say the same to programs. One place each
turns the tree into HTTP (`server/http/messages.py`), into gRPC (`server/grpc/service.py`), into `MlflowException`
(`deployments/client.py`) and into a line on stderr with exit status 1 (`cli`).
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

_LEAST_LIKENESS = 0.5
"""The least `difflib.SequenceMatcher.ratio` of a suggestion; `port` is just near enough to `server.port`."""
_MOST_COMPARED, _MOST_CHARACTERS = 2000, 100
"""Limits for the names that are compared: each takes some 10 µs, and they come from a client."""
_MOST_UNKNOWN = 5
_MOST_LISTED = 10


class OnnxserveError(Exception):
    """Base of everything that onnxserve raises on purpose.

    Attributes:
        retry_after: seconds after which the same request may do better (HTTP's `Retry-After`); None: nobody knows.
        status / request_id: HTTP status and X-Request-Id of the response that told of it; None and empty if the error
            is this process's own.
    """

    http_status: ClassVar[int] = 500
    error_code: ClassVar[str] = "INTERNAL_ERROR"

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.status: int | None = None
        self.request_id = ""


class InvalidRequest(OnnxserveError):
    """The body of a request cannot be read as what its content type promises."""

    http_status = 400
    error_code = "BAD_REQUEST"


class SchemaMismatch(InvalidRequest):
    """The data can be read, but a column or tensor is missing, mistyped or misshapen; the message names it."""


class UnsupportedMediaType(InvalidRequest):
    """The content type is not one that the route understands; the message lists those that are."""

    http_status = 415


class BodyTooLarge(InvalidRequest):
    """The body is larger than the server's limit."""

    http_status = 413


class RequestTimeout(InvalidRequest):
    """The request was not whole when its time was up."""

    http_status = 408


class UnfitPath(InvalidRequest):
    """The target of the request is no path of any server; `path` is what it says, for the form of the answer."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class TargetTooLong(InvalidRequest):
    """The request line is longer than the server's limit."""

    http_status = 414


class ExpectationFailed(InvalidRequest):
    """The request expects something other than 100-continue."""

    http_status = 417


class HeadersTooLarge(InvalidRequest):
    """There are more header fields than the server's limit, or one is longer."""

    http_status = 431


class UnknownTransferCoding(InvalidRequest):
    """The body comes in a transfer coding other than chunked."""

    http_status = 501
    error_code = "NOT_IMPLEMENTED"


class InvalidConfig(OnnxserveError):
    """A setting, a command-line option or a field of a spec is unknown or has a value it cannot have."""

    http_status = 400
    error_code = "INVALID_PARAMETER_VALUE"


class NotFound(OnnxserveError):
    """The model, version, endpoint or deployment does not exist."""

    http_status = 404
    error_code = "RESOURCE_DOES_NOT_EXIST"


class AlreadyExists(OnnxserveError):
    """The name is taken."""

    http_status = 409
    error_code = "RESOURCE_ALREADY_EXISTS"


class NotInstalled(OnnxserveError):
    """A package that only this needs is not installed; the message says how to install it."""

    http_status = 501
    error_code = "NOT_IMPLEMENTED"


class NotReady(OnnxserveError):
    """The server lives, but has no version loaded that could answer."""

    http_status = 503
    error_code = "TEMPORARILY_UNAVAILABLE"


class FeedbackNotKept(OnnxserveError):
    """Labels that callers send cannot be written to the spool: the disk, or what it may hold, is full."""

    http_status = 503
    error_code = "TEMPORARILY_UNAVAILABLE"


class TooManyRequests(OnnxserveError):
    """The caller's rate, this worker's requests in flight or the queue of a batcher are at their limit."""

    http_status = 429
    error_code = "REQUEST_LIMIT_EXCEEDED"


class DeadlineExceeded(OnnxserveError):
    """The time that the caller or the server allows was up before the model began; nothing was computed."""

    http_status = 504
    error_code = "DEADLINE_EXCEEDED"


class ClientDisconnected(OnnxserveError):
    """Nobody reads the response any more. The status is nginx's; it is counted and never sent."""

    http_status = 499
    error_code = "CANCELLED"


class ModelError(OnnxserveError):
    """A model that cannot be wrapped or served."""

    http_status = 400
    error_code = "INVALID_PARAMETER_VALUE"


class ConversionError(ModelError):
    """The model has no ONNX form that we know how to make."""


class ParityError(ModelError):
    """The ONNX form answers otherwise than the original; the message shows the worst rows."""


class InvalidArtifact(ModelError):
    """The folder of a model lacks a file, or a file is not what the MLmodel file says."""


class InferenceError(OnnxserveError):
    """ONNX Runtime refused an input that fits the signature (an unseen category, a shape the graph cannot take)."""

    http_status = 400
    error_code = "BAD_REQUEST"


class Unauthenticated(OnnxserveError):
    """The caller sent no credentials, or some that do not hold: unknown, expired or revoked."""

    http_status = 401
    error_code = "UNAUTHENTICATED"


class ScopeMissing(OnnxserveError):
    """The caller is known, and its credentials hold for other scopes or endpoints."""

    http_status = 403
    error_code = "PERMISSION_DENIED"


class GateRefused(OnnxserveError):
    """A version is to be promoted or served that has not passed its gate; the message says what failed."""

    http_status = 403
    error_code = "PERMISSION_DENIED"


class CallerRefused(OnnxserveError):
    """A request that changes what is served comes, or may come, from a web page that is not this server's."""

    http_status = 403
    error_code = "PERMISSION_DENIED"


class CodeRefused(OnnxserveError):
    """A version without an ONNX form would run code of its own, and may not do so here."""

    http_status = 403
    error_code = "PERMISSION_DENIED"


class RuntimeMissing(OnnxserveError):
    """No ONNX Runtime is installed: neither the `cpu` nor the `gpu` extra."""


class DeviceUnavailable(OnnxserveError):
    """ONNX Runtime would not really run on the device that was asked for."""


class RegistryUnavailable(OnnxserveError):
    """The MLflow server (or the artifact store behind it) does not answer."""

    http_status = 503
    error_code = "TEMPORARILY_UNAVAILABLE"


class StoreUnavailable(OnnxserveError):
    """The database of the store cannot be reached, or its schema is not ours."""

    http_status = 503
    error_code = "TEMPORARILY_UNAVAILABLE"


class DeploymentFailed(OnnxserveError):
    """A server did not become ready; the message carries the reason from its log."""


class BuildFailed(OnnxserveError):
    """An image was not built, run or pushed; the message carries Docker's last words."""


class InternalError(OnnxserveError):
    """An error that nobody foresaw. The log has it with its traceback; the message says no more than that."""


@dataclass(frozen=True)
class Refused:
    """A function returns it instead of a value if there is none and that is an ordinary outcome, not an error.

    Attributes:
        reason: why there is no value, in a sentence for people. Nothing is ever decided by its text.
    """

    reason: str


def one_line(text: object, most: int | None = None) -> str:
    """Return a text, or an error's (without one, its class), in one line of at most `most` characters."""
    line = " ".join(str(text).split())[:most]
    return line or (type(text).__name__ if isinstance(text, BaseException) else "")


def without_row_number(message: str) -> str:
    """Return a message about a row that was sent alone without its number, which is not the one in its file."""
    return message.replace(", row 0", "", 1).replace("row 0 ", "the row ", 1)


def close_matches(name: str, known: Iterable[str], most: int) -> list[str]:
    """Return the known names that are near, the nearest first. Only the first few thousand are compared."""
    names = [one for one in islice(known, _MOST_COMPARED) if len(one) <= _MOST_CHARACTERS]
    return difflib.get_close_matches(name[:_MOST_CHARACTERS], names, n=most, cutoff=_LEAST_LIKENESS)


def closest_match(name: str, known: Iterable[str]) -> str | None:
    """Return the nearest known name, or None if none is near."""
    return next(iter(close_matches(name, known, 1)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of a message: the nearest known name, or `otherwise` if none is near."""
    found = closest_match(name, known)
    hint = f"did you mean {found!r}?" if found else otherwise
    return f"; {hint}" if hint else ""


def hint_for_missing(missing: Iterable[str], unknown: Iterable[str]) -> str:
    """Return the end of a message about missing names: the unknown name that came instead, or an empty text."""
    wanted, given = list(missing), list(islice(unknown, _MOST_UNKNOWN))
    for name in given:
        if found := closest_match(name, wanted):
            return f"; {name[:_MOST_CHARACTERS]!r} is not known: did you mean {found!r}?"
    return f"; {given[0][:_MOST_CHARACTERS]!r} is not known" if given else ""


def join_names(names: Iterable[str], name: str = "") -> str:
    """Return at most ten names in a line. If some are left out, the one nearest to `name` stands first."""
    known = list(names)
    if len(known) <= _MOST_LISTED:
        return ", ".join(known)
    first = closest_match(name, known) if name else None
    shown = known[:_MOST_LISTED] if first is None else list(dict.fromkeys([first, *known]))[:_MOST_LISTED]
    return f"{', '.join(shown)} and {len(known) - len(shown)} more"
