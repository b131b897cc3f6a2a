"""What a side process calls a refusal (`pyfunc/refusal.py`), and what it is here."""

from mlflow_deploy_plugin.errors import (
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    OnnxserveError,
    SchemaMismatch,
    UnsupportedMediaType,
)
from mlflow_deploy_plugin.server.frames import Message

_REFUSALS: dict[str, type[OnnxserveError]] = {
    "request": InvalidRequest,
    "schema": SchemaMismatch,
    "media type": UnsupportedMediaType,
    "model": InferenceError,
    "time": DeadlineExceeded,
}


def unless_refused(answer: Message) -> Message:
    """The answer of a side process.

    Raises:
        InvalidRequest, SchemaMismatch, UnsupportedMediaType, InferenceError, DeadlineExceeded: it is a refusal.
    """
    if answer.kind == "refused":
        raise _REFUSALS[answer.fields["what"]](answer.fields["message"])
    return answer
