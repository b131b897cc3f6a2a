"""The connection to MLflow: how long it may take, what it is called in messages, and what its failures mean."""

import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, RegistryUnavailable

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_FOR_A_SERVICE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    _TIMEOUT: "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_MLFLOW_AT = re.compile(r", in MLflow at \S+|(?<=MLflow) at \S+")
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s,;'\"]*")
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]+@")  # up to the last @: a password may hold others


def set_service_timeouts() -> None:
    """Makes MLflow give up on a silent server after seconds, and keep its progress bars out of the log.

    By its defaults one call may take ten minutes. What the environment already says is kept.
    """
    for variable, value in _FOR_A_SERVICE.items():
        os.environ.setdefault(variable, value)


@contextmanager
def no_request_timeout() -> Iterator[None]:
    """Takes back the time limit for as long as files are fetched.

    MLflow's server gets a whole file from its artifact store before it sends the first byte of it. The limit is the
    whole process's: calls made meanwhile are patient too.
    """
    with _patience:
        _patience.ask()
    try:
        yield
    finally:
        with _patience:
            _patience.release()


class _Patience:
    """Counts who needs it: several threads fetch at the same time. To be held while it is changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._needed_by = 0
        self._limit: str | None = None

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def ask(self) -> None:
        if self._needed_by == 0 and os.environ.get(_TIMEOUT) == _FOR_A_SERVICE[_TIMEOUT]:
            self._limit = os.environ.pop(_TIMEOUT)
        self._needed_by += 1

    def release(self) -> None:
        self._needed_by -= 1
        if self._needed_by == 0 and self._limit is not None:
            os.environ[_TIMEOUT], self._limit = self._limit, None


_patience = _Patience()


def child_environment() -> dict[str, str]:
    """The environment of a process that works with the same MLflow for itself, with patience of its own.

    What this process belongs to (a run, an experiment) is left out.
    """
    import mlflow

    environment = {
        variable: value
        for variable, value in os.environ.items()
        if _FOR_A_SERVICE.get(variable) != value and not variable.startswith(("MLFLOW_RUN_", "MLFLOW_EXPERIMENT_"))
    }
    return environment | {
        "MLFLOW_TRACKING_URI": str(mlflow.get_tracking_uri()),
        "MLFLOW_REGISTRY_URI": str(mlflow.get_registry_uri()),
    }


def import_mlflow_without_pandas() -> None:
    """Imports MLflow without pandas, in two thirds of the time: for a process that asks the registry and has no tables.

    MLflow takes that for an installation without pandas (mlflow-skinny), for as long as the process lives.
    """
    if "mlflow" in sys.modules or "pandas" in sys.modules:
        return
    sys.modules["pandas"] = None  # type: ignore[assignment]  # how Python is told that there is none
    try:
        import mlflow  # noqa: F401
    finally:
        del sys.modules["pandas"]


def registry_client() -> "MlflowClient":
    """Return MLflow's client for where the environment says that MLflow is.

    Raises:
        InvalidConfig: MLflow knows no such address.
    """
    from mlflow import MlflowClient  # here and below: a second, and not needed for a model on this disk
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient()
    except MlflowException as error:
        raise InvalidConfig(f"MLFLOW_TRACKING_URI, or MLFLOW_REGISTRY_URI: {_one_line(error)}") from None


def registry_address() -> str:
    """The registry's URI as it may be shown: without user and password."""
    import mlflow

    return redact_credentials(str(mlflow.get_registry_uri()))


def redact_credentials(text: str) -> str:
    return _CREDENTIALS.sub("", text)


def redact_addresses(text: str) -> str:
    """The text as anybody may read it who reaches the server: it does not say where MLflow and its files are."""
    return _ADDRESS.sub("…", _MLFLOW_AT.sub("", text))


@contextmanager
def registry_errors(what: str, where: str = "") -> Iterator[None]:
    """Turns MLflow's failures into ours.

    Args:
        what: names the thing that is asked for, e.g. "run 1a2b".
        where: who is asked, if that is not the registry.

    Raises:
        NotFound: the server answers that it does not exist.
        RegistryUnavailable: it does not answer, refuses us, or fails.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # stages are deprecated upstream, and are what is followed
            yield
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise NotFound(f"{what} does not exist: {_one_line(error)}") from None
        raise RegistryUnavailable(unavailable_message(what, where, error)) from None
    except (RequestException, OSError) as error:
        raise RegistryUnavailable(unavailable_message(what, where, error)) from None


def unavailable_message(what: str, where: str, error: Exception) -> str:
    """The message of a `RegistryUnavailable`, in one line and without credentials."""
    return f"{what}: {where or f'MLflow at {registry_address()}'} does not answer as it should: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    text = redact_credentials(" ".join(str(error).split()))
    if "Max retries exceeded" in text or "Connection refused" in text:
        if "Connection refused" in text:
            return "connection refused"
        return "no answer in time" if "timed out" in text else text[-200:]
    return text if len(text) <= 300 else text[:297] + "…"
