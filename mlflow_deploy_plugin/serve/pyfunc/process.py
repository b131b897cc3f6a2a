"""The main loop of a side process: report that the process is ready, and answer
requests until the worker has ended.

The worker passes connections over a socket, and a thread serves each connection. If the
worker ends, another thread ends this process and its children. Errors are sent by class
name, and unknown exceptions as InferenceErrors.
"""

import contextlib
import gc
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    InferenceError,
    InvalidArtifact,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.logs import configure_logging
from mlflow_deploy_plugin.core.processes.child import die_with_parent, requests_of_parent
from mlflow_deploy_plugin.core.processes.memory import limit_growth, memory_limit
from mlflow_deploy_plugin.serve.protocols.side_messages import (
    FAILED_MESSAGE,
    SideMessage,
    receive_connection,
    receive_message,
    send_message,
)

_log = logging.getLogger(__name__)

Answer = Callable[[SideMessage], SideMessage | Iterator[SideMessage]]
"""A thread-safe function that returns a response, or yields its parts and an end
message. May raise OnnxserveError.
"""

_END_SECONDS = 5.0
_NO_THREAD_SECONDS = 0.1
_MAX_CHARACTERS = 500
_MAX_BEFORE_VERSIONS = 150
_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.@+~-]+){2,}")
_TAILS = ("\nInput: ", " IMPORTANT: The MLflow Model scoring protocol", "\nStack trace:")
"""Texts at which a message is cut off: they introduce a copy of the body, MLflow's
advice and XGBoost's stack.
"""


def answer_all(descriptor: int, name: str, start: Callable[[], tuple[SideMessage, Answer]]) -> None:
    """Answer requests until the worker has ended, or return if `start` raises
    InvalidArtifact. `name` is for the log.

    The process ends normally, so that exit handlers run. An exit handler of MLflow
    sends the pending traces.
    """
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    die_with_parent()  # This also ends code that never releases the GIL.
    limit_growth(memory_limit())  # It has inherited the worker's limit.
    connections = requests_of_parent(lambda: receive_connection(control), _END_SECONDS)
    # The worker has checked its settings, whose module needs pydantic.
    configure_logging(os.environ.get("ONNXSERVE_LOG_FORMAT", "text"), name)
    gc.disable()  # A collection would scan all imported modules.
    try:
        ready, answer = start()
    except InvalidArtifact as error:
        send_message(control, SideMessage(FAILED_MESSAGE, {"message": error.message}))
        return
    gc.collect()
    gc.freeze()  # Collections during requests must not scan MLflow and the model's library.
    gc.enable()
    send_message(control, ready)
    for connection in connections:
        arguments = connection, answer
        while True:
            thread = threading.Thread(target=_answer_connection, args=arguments, daemon=True)
            try:
                thread.start()
                break
            except RuntimeError:  # The limit of threads (`ulimit -u`, a container's pids).
                _log.warning(
                    "a thread cannot be started; requests wait until a thread is available"
                )
                time.sleep(_NO_THREAD_SECONDS)


def _answer_connection(connection: socket.socket, answer: Answer) -> None:
    """Answer the requests of a connection until the worker closes it."""
    with connection, contextlib.suppress(OSError):  # The worker may have closed the connection.
        while (request := receive_message(connection)) is not None:
            with contextlib.closing(_messages(request, answer)) as messages:
                for message in messages:
                    try:
                        send_message(connection, message)
                    except ValueError as error:
                        too_large = BodyTooLarge(f"the answer is too large: {error}")
                        send_message(connection, _refusal(too_large))
                        break


def _messages(request: SideMessage, answer: Answer) -> Generator[SideMessage, None, None]:
    """Yield the messages of a response. The last message may be a refusal."""
    try:
        reply = answer(request)
        if isinstance(reply, SideMessage):
            yield reply
        else:
            yield from reply
    except OnnxserveError as error:
        yield _refusal(error)
    except GeneratorExit:  # The worker has stopped reading.
        raise
    except BaseException as error:  # noqa: BLE001 - the model's code may also raise CancelledError
        _log.exception("answering failed")
        yield _refusal(InferenceError(f"the model cannot answer: {error_summary(error)}"))


def _refusal(error: OnnxserveError) -> SideMessage:
    return SideMessage(
        "refused", {"error": type(error).__name__, "message": error.message, "column": error.column}
    )


def error_summary(error: BaseException, most: int = _MAX_CHARACTERS) -> str:
    """Return the class of an error and its message in one line, of at most `most`
    characters.
    """
    text = clean_message(str(error), most)
    if text:
        return f"{type(error).__name__}: {text}"
    return type(error).__name__


def load_failure(error: BaseException, folder: Path) -> str:
    """Return the message of a failed load, with the version differences, which often
    make a pickle unreadable.
    """
    differences = ", ".join(version_differences(folder).values())
    if differences:
        return (
            f"{error_summary(error, _MAX_BEFORE_VERSIONS)}; install the versions it was logged "
            f"with: {differences}"
        )
    return error_summary(error)


def version_differences(folder: Path) -> dict[str, str]:
    """Return a text like `torch 2.1.0 (2.13.0 is installed)` for each package of a
    model's requirements.txt with another version.

    Packages for other platforms are omitted. MLflow is omitted because it can read
    models of its older versions.
    """
    # a dependency of mlflow, which may be missing
    from packaging.requirements import InvalidRequirement, Requirement

    requirements = folder / "requirements.txt"
    differences: dict[str, str] = {}
    if not requirements.is_file():
        return differences
    for line in requirements.read_text(errors="replace").splitlines():
        try:
            requirement = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:
            continue  # The line is empty or a pip option.
        if requirement.name == "mlflow" or (
            requirement.marker and not requirement.marker.evaluate()
        ):
            continue
        required = f"{requirement.name} {str(requirement.specifier).removeprefix('==')}".rstrip()
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:  # The package xgboost-cpu may have the module xgboost.
            distributions = packages_distributions().get(requirement.name)
            installed = version(distributions[0]) if distributions else ""
        if not installed:
            differences[requirement.name] = f"{required} (not installed)"
        elif not requirement.specifier.contains(installed, prereleases=True):
            differences[requirement.name] = f"{required} ({installed} is installed)"
    return differences


def clean_message(text: str, most: int = _MAX_CHARACTERS) -> str:
    """Return a message in one line without paths. Lone surrogates are escaped, since
    JSON cannot contain them.
    """
    if text.startswith("Failed to enforce schema of data"):  # Omit the data and the signature.
        text = text.rpartition("'. Error: ")[2]
    for tail in _TAILS:
        text = text.partition(tail)[0]
    text = " ".join(_PATH.sub("…", text[: 4 * _MAX_CHARACTERS]).split())
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= most else text[: most - 1] + "…"
