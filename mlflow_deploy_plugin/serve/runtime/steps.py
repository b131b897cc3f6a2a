"""Steps: the functions `before` and `after` of a user's file, which run in the worker
around a version (docs/steps.md).

A step may never return. A thread ends late steps by an exception in their threads,
because nothing else ends a thread of CPython. A step that is blocked in a library
receives the exception when the library returns.
"""

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple

import orjson

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    InvalidArtifact,
    InvalidRequest,
    StepFailed,
    StepRefused,
    StepTimeout,
)
from mlflow_deploy_plugin.core.model_code import require_model_code
from mlflow_deploy_plugin.core.spec.steps import STEPS_FILE, steps_digest
from mlflow_deploy_plugin.serve.runtime.artifact import Column, ColumnType

logger = logging.getLogger(__name__)

StepName = Literal["before", "after"]
SENT = "_sent"
"""The captured column of what came in: the columns of the request as JSON, in the first
row of the request.
"""
_CHECK_SECONDS = 0.1
_COLUMN_TYPES: Final[dict[type, ColumnType]] = {
    str: "string",
    bool: "boolean",
    int: "long",
    float: "double",
}


class Request(NamedTuple):
    """A prediction request, as `before` and `after` receive it.

    Attributes:
        inputs: the columns or tensors that the caller sent, by name; each is a list of
            N values or an array [N, …].
        headers: the headers of the request without credentials, with names in lower
            case.
        id: the id of the request (`X-Request-Id`).
        endpoint: the name of the endpoint.
        deadline: the end of the request's time, in `time.perf_counter()`.
    """

    inputs: Mapping[str, Any]
    headers: Mapping[str, str]
    id: str
    endpoint: str
    deadline: float


class RunningStep(NamedTuple):
    """A step that runs in a thread. `chain` has the endpoints that called each other,
    in the `server`. All headers of the caller select variants.
    """

    request: Request
    server: Any
    chain: tuple[str, ...]
    headers: Mapping[str, str]


class _Late(BaseException):
    """The time of a step is over. User code does not catch it with `except
    Exception`.
    """


class _Watch:
    """Raises `_Late` in the threads whose step runs past its deadline. `running` has
    the step of each thread; None for a step that was interrupted and has not ended.
    """

    def __init__(self) -> None:
        self.running: dict[int, RunningStep | None] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._interrupt_late, name="onnxserve-steps", daemon=True
                )
                self._thread.start()

    def run(
        self, step: Callable[..., object], running: RunningStep, arguments: tuple[object, ...]
    ) -> object:
        """Return the result of the step. Raises `_Late` after the deadline, and the
        errors of the step.
        """
        thread = threading.get_ident()
        caller = self.running.get(thread)
        try:
            self.running[thread] = running
            return step(*arguments)
        finally:
            if self.running.pop(thread, None) is None:
                # The exception must not be raised in the code that follows the step.
                with self._lock:
                    _raise_in_thread(thread, None)
            elif caller is not None:
                self.running[thread] = caller

    def _interrupt_late(self) -> None:
        while True:
            time.sleep(_CHECK_SECONDS)
            now = time.perf_counter()
            for thread, running in list(self.running.items()):
                if running is None or now < running.request.deadline:
                    continue
                with self._lock:
                    if self.running.get(thread) is running:
                        self.running[thread] = None
                        _raise_in_thread(thread, ctypes.py_object(_Late))


def _raise_in_thread(thread: int, error: "ctypes.py_object[Any] | None") -> None:
    """Raise the error in a thread; None withdraws an error that was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)


_watch = _Watch()


@dataclass(frozen=True, eq=False)
class Steps:
    """The imported steps of an endpoint. `digest` is the SHA-256 of their source.
    `example` is a row that `before` accepts, or empty; `columns` are its columns.
    """

    digest: str
    module: ModuleType
    example: Mapping[str, Any]
    columns: tuple[Column, ...]
    before: Callable[[Request], object] | None
    after: Callable[[dict[str, Any], Request], object] | None

    def run(self, name: StepName, running: RunningStep, *arguments: Any) -> Any:
        """Return the result of a step.

        Raises:
            StepRefused: the step raises InvalidRequest.
            StepTimeout, DeadlineExceeded: the step has not returned by the deadline of
                the request.
            StepFailed: the step raises another error.
        """
        try:
            return _watch.run(getattr(self, name), running, arguments)
        except (StepTimeout, DeadlineExceeded):
            raise
        except InvalidRequest as error:
            raise StepRefused(f"step {name}: {error.message}", column=error.column) from None
        except _Late:
            raise StepTimeout(
                f"step {name}, {self.module.__file__}: it did not return within the request's time"
            ) from None
        except BaseException as error:  # noqa: BLE001 - it fails only its request, and is logged
            reason = _describe_error(error, self.module)
            raise step_failure(name, running.request, reason, error) from None


def step_failure(
    name: StepName, request: Request, reason: str, error: BaseException, column: str = ""
) -> StepFailed:
    """Log the error of a step, and return an error with the reason for the caller. The
    text of the first error may be secret.
    """
    message = "step %s of endpoint %s failed, X-Request-Id %s"
    logger.error(message, name, request.endpoint, request.id, exc_info=error)
    return StepFailed(
        f"step {name}, {reason}; the log of the server has the error under X-Request-Id "
        f"{request.id}",
        column=column,
    )


def running_step() -> RunningStep | None:
    """Return the step that runs in this thread."""
    return _watch.running.get(threading.get_ident())


def is_late(thread: int) -> bool:
    """Return True if the step of a thread runs although it was interrupted."""
    return thread in _watch.running and _watch.running[thread] is None


def _describe_error(error: BaseException, module: ModuleType) -> str:
    """Return the class of an error of a user's module, and the last line of the module
    that the error has passed.
    """
    line = 0
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_globals is module.__dict__:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    place = f"{module.__file__} line {line}" if line else module.__file__
    return f"{place}: {type(error).__name__}"


def load_steps(source: str, file: str = STEPS_FILE) -> Steps:
    """Import the source of steps in this process. Raises CodeRefused if code is not
    allowed, and InvalidArtifact if it does not import.
    """
    require_model_code("serve.steps")
    digest = steps_digest(source)
    module = ModuleType(f"onnxserve_steps_{digest[:12]}")
    module.__file__ = file
    sys.modules[module.__name__] = module  # Dataclasses look up their module.
    try:
        exec(compile(source, file, "exec"), module.__dict__)
    except BaseException as error:
        logger.error("the steps do not import", exc_info=error)
        reason = _describe_error(error, module)
        raise InvalidArtifact(f"the steps do not import: {reason}, see the log") from None
    example = getattr(module, "INPUT_EXAMPLE", {})
    try:
        example = dict(example)
        orjson.dumps(example)  # It refuses numbers and texts that JSON cannot represent.
        columns = tuple(Column(name, _COLUMN_TYPES[type(example[name])]) for name in example)
    except (TypeError, ValueError, LookupError):
        raise InvalidArtifact(
            "INPUT_EXAMPLE of the steps is not a row: map each column to a text, number or boolean"
        ) from None
    _watch.start()
    before = getattr(module, "before", None)
    return Steps(digest, module, example, columns, before, getattr(module, "after", None))
