"""Every error of onnxserve in one tree, and `Refused` for an outcome that is not an error.

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
    ├── RuntimeMissing              500 INTERNAL_ERROR           no ONNX Runtime is installed, or one too old
    ├── DeviceUnavailable           500 INTERNAL_ERROR           the device asked for is not really used
    ├── RegistryUnavailable         503 TEMPORARILY_UNAVAILABLE  MLflow does not answer
    │   └── RegistryRefused                                      it does not let this account
    ├── StoreUnavailable            503 TEMPORARILY_UNAVAILABLE  the store's database cannot be used
    ├── DeploymentFailed            500 INTERNAL_ERROR           a server that did not come up
    ├── BuildFailed                 500 INTERNAL_ERROR           an image that was not built or not pushed
    ├── CommandFailed               500 INTERNAL_ERROR           another program failed, or took too long
    └── InternalError               500 INTERNAL_ERROR           an error that nobody foresaw; the log has it

The message is for the person who made the mistake: what was wrong, where, and what would be right. `http_status`
and `error_code` (one of MLflow's, so that MLflow's clients understand it) say the same to programs. One place each
turns the tree into HTTP (`server/http/responses.py`), into gRPC (`server/grpc/service.py`), into `MlflowException`
(`deployments/client.py`) and into a line on stderr with exit status 1 (`cli`); `client/` goes back from a status.
"""

from dataclasses import dataclass
from typing import ClassVar


class OnnxserveError(Exception):
    """Base of everything that onnxserve raises on purpose.

    Attributes:
        retry_after: seconds after which the same request may succeed (HTTP's `Retry-After`); None: unknown.
        status / request_id: of the response that reported it; None and empty for an error of this process.
        column: the only column or tensor that the message is about; empty: several, or none.
    """

    http_status: ClassVar[int] = 500
    error_code: ClassVar[str] = "INTERNAL_ERROR"

    def __init_subclass__(cls, http_status: int | None = None, error_code: str | None = None) -> None:
        super().__init_subclass__()
        cls.http_status, cls.error_code = http_status or cls.http_status, error_code or cls.error_code

    def __init__(self, message: str, retry_after: int | None = None, *, column: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.column = column
        self.status: int | None = None
        self.request_id = ""


class InvalidRequest(OnnxserveError, http_status=400, error_code="BAD_REQUEST"):
    """The body of a request cannot be read as what its content type promises."""


class SchemaMismatch(InvalidRequest):
    """The data can be read, but a column or tensor is missing, mistyped or misshapen; the message names it."""


class UnsupportedMediaType(InvalidRequest, http_status=415):
    """The content type is not one that the route understands; the message lists those that are."""


class BodyTooLarge(InvalidRequest, http_status=413):
    """The body is larger than the server's limit, or has more rows than may be answered at once."""


class RequestTimeout(InvalidRequest, http_status=408):
    """The request was not whole when its time was up."""


class UnfitPath(InvalidRequest):
    """The target of the request is not a path; `path` is its text, which selects the form of the answer."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class TargetTooLong(InvalidRequest, http_status=414):
    """The request line is longer than the server's limit."""


class ExpectationFailed(InvalidRequest, http_status=417):
    """The request expects something other than 100-continue."""


class HeadersTooLarge(InvalidRequest, http_status=431):
    """There are more header fields than the server's limit, or one is longer."""


class UnknownTransferCoding(InvalidRequest, http_status=501, error_code="NOT_IMPLEMENTED"):
    """The body comes in a transfer coding other than chunked."""


class InvalidConfig(OnnxserveError, http_status=400, error_code="INVALID_PARAMETER_VALUE"):
    """A setting, a command-line option or a field of a spec is unknown or has a value it cannot have."""


class NotFound(OnnxserveError, http_status=404, error_code="RESOURCE_DOES_NOT_EXIST"):
    """The model, version, endpoint or deployment does not exist."""


class AlreadyExists(OnnxserveError, http_status=409, error_code="RESOURCE_ALREADY_EXISTS"):
    """The name is taken."""


class NotInstalled(OnnxserveError, http_status=501, error_code="NOT_IMPLEMENTED"):
    """A package that only this needs is not installed; the message says how to install it."""


class NotReady(OnnxserveError, http_status=503, error_code="TEMPORARILY_UNAVAILABLE"):
    """The server lives, but has no version loaded that could answer, no keys yet, or no memory or disk left."""


class TooManyRequests(OnnxserveError, http_status=429, error_code="REQUEST_LIMIT_EXCEEDED"):
    """The caller's rate, this worker's requests in flight or the queue of a batcher are at their limit."""


class DeadlineExceeded(OnnxserveError, http_status=504, error_code="DEADLINE_EXCEEDED"):
    """The time that the caller or the server allows was up before the model began; nothing was computed."""


class ClientDisconnected(OnnxserveError, http_status=499, error_code="CANCELLED"):
    """The caller has closed the connection. The status is nginx's; it is counted and never sent."""


class ModelError(OnnxserveError, http_status=400, error_code="INVALID_PARAMETER_VALUE"):
    """A model that cannot be wrapped or served."""


class ConversionError(ModelError):
    """The model has no ONNX form that we know how to make."""


class ParityError(ModelError):
    """The ONNX form answers otherwise than the original; the message shows the worst rows."""


class InvalidArtifact(ModelError):
    """The folder of a model lacks a file, or a file is not what the MLmodel file says."""


class InferenceError(OnnxserveError, http_status=400, error_code="BAD_REQUEST"):
    """ONNX Runtime refused an input that fits the signature (an unseen category, a shape the graph cannot take)."""


class Unauthenticated(OnnxserveError, http_status=401, error_code="UNAUTHENTICATED"):
    """The caller sent no credentials, or some that do not hold: unknown, expired or revoked."""


class ScopeMissing(OnnxserveError, http_status=403, error_code="PERMISSION_DENIED"):
    """The caller is known, and its credentials hold for other scopes or endpoints."""


class GateRefused(OnnxserveError, http_status=403, error_code="PERMISSION_DENIED"):
    """A version is to be promoted or served that has not passed its gate; the message says what failed."""


class CallerRefused(OnnxserveError, http_status=403, error_code="PERMISSION_DENIED"):
    """A request that changes what is served comes, or may come, from a web page that is not this server's."""


class CodeRefused(OnnxserveError, http_status=403, error_code="PERMISSION_DENIED"):
    """A version without an ONNX form would run code of its own, and may not do so here."""


class RuntimeMissing(OnnxserveError):
    """No ONNX Runtime is installed, neither the `cpu` nor the `gpu` extra, or one that is too old."""


class DeviceUnavailable(OnnxserveError):
    """ONNX Runtime would not really run on the device that was asked for."""


class RegistryUnavailable(OnnxserveError, http_status=503, error_code="TEMPORARILY_UNAVAILABLE"):
    """The MLflow server (or the artifact store behind it) does not answer."""


class RegistryRefused(RegistryUnavailable):
    """The MLflow server does not take the account, or lacks its permission; somebody has to put that right."""


class StoreUnavailable(OnnxserveError, http_status=503, error_code="TEMPORARILY_UNAVAILABLE"):
    """The database of the store cannot be reached, or its schema is not ours."""


class DeploymentFailed(OnnxserveError):
    """A server did not become ready; the message carries the reason from its log."""


class BuildFailed(OnnxserveError):
    """An image was not built, run or pushed; the message carries Docker's last words."""


class CommandFailed(OnnxserveError):
    """An external program failed. The message is its last line of output; the caller adds the context."""


class InternalError(OnnxserveError):
    """An unforeseen error. Its traceback is in the log; the message does not contain it."""


@dataclass(frozen=True)
class Refused:
    """The result of a function without a value, if that is not an error. Never decide by the text `reason`."""

    reason: str


def error_of_status(status: int) -> type[OnnxserveError]:
    """Return the most general error with this HTTP status; OnnxserveError if none has it."""
    level = [OnnxserveError]
    while level:
        if found := [error for error in level if error.http_status == status]:
            return found[0]
        level = [child for error in level for child in error.__subclasses__()]
    return OnnxserveError
