"""All errors of onnxserve in one class tree, and `Refused` for an outcome that is not
an error.

    OnnxserveError                  500 INTERNAL_ERROR
    ├── InvalidRequest              400 BAD_REQUEST
    │   ├── SchemaMismatch          400 BAD_REQUEST
    │   ├── OutOfRange              422 BAD_REQUEST
    │   ├── UnsupportedMediaType    415 BAD_REQUEST
    │   ├── BodyTooLarge            413 BAD_REQUEST
    │   ├── RequestTimeout          408 BAD_REQUEST
    │   ├── UnfitPath               400 BAD_REQUEST
    │   ├── TargetTooLong           414 BAD_REQUEST
    │   ├── ExpectationFailed       417 BAD_REQUEST
    │   ├── HeadersTooLarge         431 BAD_REQUEST
    │   └── UnknownTransferCoding   501 NOT_IMPLEMENTED
    ├── InvalidConfig               400 INVALID_PARAMETER_VALUE
    ├── NotFound                    404 RESOURCE_DOES_NOT_EXIST
    ├── AlreadyExists               409 RESOURCE_ALREADY_EXISTS
    ├── NotInstalled                501 NOT_IMPLEMENTED
    ├── NotReady                    503 TEMPORARILY_UNAVAILABLE
    │   └── DeviceMemoryFull
    ├── TooManyRequests             429 REQUEST_LIMIT_EXCEEDED
    ├── DeadlineExceeded            504 DEADLINE_EXCEEDED
    ├── ClientDisconnected          499 CANCELLED
    ├── ModelError                  400 INVALID_PARAMETER_VALUE
    │   ├── ConversionError
    │   ├── ParityError
    │   └── InvalidArtifact
    ├── InferenceError              400 BAD_REQUEST
    ├── StepFailed                  500 INTERNAL_ERROR
    │   ├── StepRefused             400 BAD_REQUEST
    │   └── StepTimeout             504 DEADLINE_EXCEEDED
    ├── Unauthenticated             401 UNAUTHENTICATED
    ├── ScopeMissing                403 PERMISSION_DENIED
    ├── GateRefused                 403 PERMISSION_DENIED
    ├── SignatureRefused            403 PERMISSION_DENIED
    ├── CodeRefused                 403 PERMISSION_DENIED
    ├── CallerRefused               403 PERMISSION_DENIED
    ├── RuntimeMissing              500 INTERNAL_ERROR
    ├── DeviceUnavailable           500 INTERNAL_ERROR
    ├── RegistryUnavailable         503 TEMPORARILY_UNAVAILABLE
    │   └── RegistryRefused
    ├── StoreUnavailable            503 TEMPORARILY_UNAVAILABLE
    ├── DeploymentFailed            500 INTERNAL_ERROR
    ├── BuildFailed                 500 INTERNAL_ERROR
    ├── CommandFailed               500 INTERNAL_ERROR
    └── InternalError               500 INTERNAL_ERROR

The docstring of a class describes its cause. The message is for the person who made the
mistake: it describes the problem, its location and a correct value. `http_status` and
`error_code` (a code of MLflow, so that MLflow's clients understand it) are for
programs. The errors become HTTP responses in `serve/http/responses.py`, gRPC responses
in `serve/grpc/service.py`, an `MlflowException` in `ship/deployments/client.py`, and a
line on stderr with exit status 1 in `cli`. `serve/client/` turns responses into errors
again.
"""

from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

_EXITS = (KeyboardInterrupt, SystemExit, GeneratorExit)


class OnnxserveError(Exception):
    """Base class of all errors that onnxserve raises on purpose.

    Attributes:
        retry_after: seconds after which the same request may succeed (HTTP's
            `Retry-After`); None if unknown.
        status / request_id: the response's status and request id; None and empty if
            this process raised the error.
        column: the name of the column or tensor that the message is about; empty for
            several names or none.
    """

    http_status: ClassVar[int] = 500
    error_code: ClassVar[str] = "INTERNAL_ERROR"

    def __init_subclass__(
        cls,
        http_status: int | None = None,
        error_code: str | None = None,
    ) -> None:
        super().__init_subclass__()
        cls.http_status = http_status or cls.http_status
        cls.error_code = error_code or cls.error_code

    def __init__(
        self,
        message: str,
        retry_after: int | None = None,
        *,
        column: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.column = column
        self.status: int | None = None
        self.request_id = ""


class InvalidRequest(OnnxserveError, http_status=400, error_code="BAD_REQUEST"):
    """The body of a request cannot be parsed according to its content type."""


class SchemaMismatch(InvalidRequest):
    """The data can be parsed, but the column or tensor in the message is missing or has
    a wrong type or shape.
    """


class OutOfRange(InvalidRequest, http_status=422):
    """A value is outside of the training rows of the version, and the endpoint refuses
    such rows (`guard.then`).
    """


class UnsupportedMediaType(InvalidRequest, http_status=415):
    """The route does not accept the content type; the message lists the accepted
    types.
    """


class BodyTooLarge(InvalidRequest, http_status=413):
    """The body is larger than the server's limit, or has more rows than the server
    answers at once.
    """


class RequestTimeout(InvalidRequest, http_status=408):
    """The request was not complete when its time limit passed."""


class UnfitPath(InvalidRequest):
    """The target of the request is not a path. `path` is this target, which determines
    the response's form.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class TargetTooLong(InvalidRequest, http_status=414):
    """The request line is longer than the server's limit."""


class ExpectationFailed(InvalidRequest, http_status=417):
    """The request expects something other than 100-continue."""


class HeadersTooLarge(InvalidRequest, http_status=431):
    """The number of header fields, or the length of a field, exceeds the server's
    limit.
    """


class UnknownTransferCoding(InvalidRequest, http_status=501, error_code="NOT_IMPLEMENTED"):
    """The body has a transfer coding other than chunked."""


class InvalidConfig(OnnxserveError, http_status=400, error_code="INVALID_PARAMETER_VALUE"):
    """A setting, a command-line option or a field of a spec is unknown or has an
    invalid value.
    """


class NotFound(OnnxserveError, http_status=404, error_code="RESOURCE_DOES_NOT_EXIST"):
    """The model, version, endpoint or deployment does not exist."""


class AlreadyExists(OnnxserveError, http_status=409, error_code="RESOURCE_ALREADY_EXISTS"):
    """The name of a new object is already in use."""


class NotInstalled(OnnxserveError, http_status=501, error_code="NOT_IMPLEMENTED"):
    """A package that a feature needs is not installed; the message contains the install
    command.
    """


class NotReady(OnnxserveError, http_status=503, error_code="TEMPORARILY_UNAVAILABLE"):
    """The server runs, but has no loaded version, no keys yet, or no memory or disk
    space left.
    """


class DeviceMemoryFull(NotReady):
    """The device, or the worker's limit, lacks memory for the rows of a run."""


class TooManyRequests(OnnxserveError, http_status=429, error_code="REQUEST_LIMIT_EXCEEDED"):
    """The caller's rate, this worker's requests in flight or the queue of a batcher are
    at their limit.
    """


class DeadlineExceeded(OnnxserveError, http_status=504, error_code="DEADLINE_EXCEEDED"):
    """The caller's or the server's time limit passed before the model ran; no
    prediction was computed.
    """


class ClientDisconnected(OnnxserveError, http_status=499, error_code="CANCELLED"):
    """The caller has closed the connection. The status 499, which nginx defines, is
    counted but never sent.
    """


class ModelError(OnnxserveError, http_status=400, error_code="INVALID_PARAMETER_VALUE"):
    """The model cannot be wrapped or served."""


class ConversionError(ModelError):
    """onnxserve cannot convert the model to ONNX."""


class ParityError(ModelError):
    """The outputs of the ONNX form differ from the outputs of the original; the message
    shows the worst rows.

    Attributes:
        brief: how many rows differ, in words; empty if none could be compared.
    """

    brief = ""


class InvalidArtifact(ModelError):
    """A file in the model's folder is missing, or differs from its description in the
    MLmodel file.
    """


class InferenceError(OnnxserveError, http_status=400, error_code="BAD_REQUEST"):
    """ONNX Runtime refused an input that fits the signature (an unseen category, a
    shape the graph cannot take).
    """


class StepFailed(OnnxserveError):
    """A step of the endpoint (`before` or `after` of its steps.py) raised an error, or
    returned values that do not fit; the message has the step and the line.
    """


class StepRefused(StepFailed, http_status=400, error_code="BAD_REQUEST"):
    """A step of the endpoint raised InvalidRequest, because it refuses the request."""


class StepTimeout(StepFailed, http_status=504, error_code="DEADLINE_EXCEEDED"):
    """A step of the endpoint did not return within the time limit of the request."""


class Unauthenticated(OnnxserveError, http_status=401, error_code="UNAUTHENTICATED"):
    """The caller sent no credentials, or credentials that are unknown, expired or
    revoked.
    """


class ScopeMissing(OnnxserveError, http_status=403, error_code="PERMISSION_DENIED"):
    """The caller's credentials are valid, but not for the scope or the endpoint of the
    request.
    """


class GateRefused(OnnxserveError, http_status=403, error_code="PERMISSION_DENIED"):
    """A version cannot be promoted or served, because it has not passed its gate; the
    message contains the reason.
    """


class SignatureRefused(OnnxserveError, http_status=403, error_code="PERMISSION_DENIED"):
    """A version has no signature of the required key or authority over exactly its
    files, or the key cannot be read.
    """


class CallerRefused(OnnxserveError, http_status=403, error_code="PERMISSION_DENIED"):
    """A request that loads or unloads a model comes, or may come, from a web page of
    another site.
    """


class CodeRefused(OnnxserveError, http_status=403, error_code="PERMISSION_DENIED"):
    """A model would run its own code, which is not allowed here."""


class RuntimeMissing(OnnxserveError):
    """ONNX Runtime is not installed (neither the `cpu` nor the `gpu` extra), or is too
    old.
    """


class DeviceUnavailable(OnnxserveError):
    """ONNX Runtime would not use the device that was requested."""


class RegistryUnavailable(OnnxserveError, http_status=503, error_code="TEMPORARILY_UNAVAILABLE"):
    """The MLflow server, or the artifact store behind it, does not respond."""


class RegistryRefused(RegistryUnavailable):
    """The MLflow server rejects the account, or the account lacks a permission; a
    person must correct this.
    """


class StoreUnavailable(OnnxserveError, http_status=503, error_code="TEMPORARILY_UNAVAILABLE"):
    """The database of the store cannot be reached, or does not have the schema of this
    release.
    """


class DeploymentFailed(OnnxserveError):
    """A server did not become ready; the message contains the reason from its log."""


class BuildFailed(OnnxserveError):
    """An image was not built, run or pushed; the message contains the end of Docker's
    output.
    """


class CommandFailed(OnnxserveError):
    """An external program failed. The message is its last line of output; the caller
    adds the context.

    Attributes:
        exit_status: the status with which the program ended itself; None if it was
            killed, did not end in time, or did not start.
    """

    exit_status: int | None = None


class InternalError(OnnxserveError):
    """An unexpected error, whose traceback is in the log and not in the message."""


@dataclass(frozen=True)
class Refused:
    """An expected outcome without a value, such as a failed precondition. Never branch
    on the text of `reason`.
    """

    reason: str


def pass_exit(error: BaseException) -> None:
    """Raise an error that ends the program, thread or generator on purpose; return for
    any other error.

    Every `except BaseException` at a boundary calls this function first. Such a
    boundary is needed around libraries in Rust (tokenizers, cryptography, pydantic),
    which raise `pyo3_runtime.PanicException`: it is not an Exception, and each library
    has its own class of it. A CancelledError does not pass, because no boundary is a
    coroutine.
    """
    if isinstance(error, _EXITS):
        raise error


def error_of_status(status: int) -> type[OnnxserveError]:
    """Return the most general error class with this HTTP status, or OnnxserveError if
    no class has this status.
    """
    level = [OnnxserveError]
    while level:
        if matches := [error for error in level if error.http_status == status]:
            return matches[0]
        level = list(chain.from_iterable(error.__subclasses__() for error in level))
    return OnnxserveError
