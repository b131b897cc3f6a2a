"""The result of a converter, run in this process."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import pandas as pd

from projects.converters.served import Refused

_TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(string)": object}
_TYPES |= {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}

Converted: TypeAlias = onnx.ModelProto | bytes | Callable[[Any], Any]
Converter: TypeAlias = Callable[[Any, Any], Converted]
"""A fitted model and its example → its ONNX form, or a function that answers rows of
the example's form with a list of outputs: labels and probabilities, or predictions.
"""


def load_converter(name: str) -> Converter:
    """Return the function that `module:function` names."""
    module, _, function = name.partition(":")
    found: Converter = getattr(import_module(module), function)
    return found


class ConvertedModel:
    """An ONNX graph in ONNX Runtime with its default options, or a function of rows.

    A graph with one input receives a table as a matrix, and a graph with several one
    column each. A graph for single rows receives them one by one. A column of
    categories is sent as its codes if the graph asks for numbers.
    """

    def __init__(self, converted: Converted) -> None:
        if isinstance(converted, onnx.ModelProto):
            converted = converted.SerializeToString()
        self._run = converted if callable(converted) else _graph(converted)

    def answers(self, rows: Any, own: Any, want: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs in their order under the names of `want`, and in its
        shapes if they have as many elements.

        Raises:
            Refused: the rows cannot be sent, ONNX Runtime refuses them, or an output is
                missing or of another kind.
        """
        try:
            outputs = self._run(own)
            outputs = [outputs] if isinstance(outputs, np.ndarray) else list(outputs)
            pairs = zip(want.items(), outputs[: len(want)], strict=True)
            return {name: _like(like, output) for (name, like), output in pairs}
        except Exception as error:  # the graph, or the function, may raise any error
            raise Refused(f"{type(error).__name__}: {error}") from error


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in the main thread if the block takes more CPU time."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _graph(content: bytes) -> Callable[[Any], Any]:
    onnxruntime.set_default_logger_severity(4)  # its warnings would hide the progress
    session = onnxruntime.InferenceSession(content)
    inputs = session.get_inputs()

    def run(own: Any) -> Any:
        parts = [own[[name]] for name in own] if len(inputs) > 1 else [own]
        feeds = {
            one.name: _tensor(part, _TYPES[one.type])
            for one, part in zip(inputs, parts, strict=True)
        }
        if inputs[0].shape[0] != 1:
            return session.run(None, feeds)
        rows = range(len(own))
        single = [session.run(None, {k: v[[row]] for k, v in feeds.items()}) for row in rows]
        return [np.concatenate(parts) for parts in zip(*single, strict=True)]

    return run


def _tensor(part: Any, dtype: type) -> np.ndarray:
    """Return rows as a tensor [N, …] of this type."""
    if isinstance(part, pd.DataFrame) and dtype is not object:
        part = part.apply(lambda column: column.cat.codes if hasattr(column, "cat") else column)
    array: np.ndarray = np.asarray(part, dtype=dtype)
    return array[:, None] if array.ndim == 1 else array


def _like(like: np.ndarray, output: Any) -> np.ndarray:
    """Return an output in the shape of the original's if it has as many elements."""
    if isinstance(output, list) and isinstance(output[0], dict):  # ZipMap's rows
        output = [list(row.values()) for row in output]
    array = np.asarray(output)
    if like.dtype.kind == "f":
        array = array.astype(np.float64)
    return array.reshape(like.shape) if array.size == like.size else array
