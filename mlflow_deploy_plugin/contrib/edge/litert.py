"""Predict with a TensorFlow Lite file, in the Python of `tflite-requirements.txt`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

Array = npt.NDArray[Any]
_FEW_ROWS = 3


class LiteRTModel:
    """A converted file. Inputs and outputs have the names of its signature."""

    def __init__(self, path: str, threads: int = 1) -> None:
        interpreter = Interpreter(model_path=path, num_threads=threads)
        self._run = interpreter.get_signature_runner()
        details = self._run.get_input_details()
        self._sizes = {
            name: tuple(detail["shape_signature"][:1]) for name, detail in details.items()
        }

    def outputs(self, rows: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs for the rows. The rows are divided into calls with one,
        few and many rows.
        """
        # An input that already has the file's fixed size is not divided, because its
        # first axis is not the rows.
        row_counts = {
            name: len(array)
            for name, array in rows.items()
            if array.shape[:1] not in ((), self._sizes[name])
        }
        if not row_counts:
            return dict(self._run(**rows))
        count = min(row_counts.values())
        ends = [*range(1, count + 1)]
        if any(self._sizes[name] == (-1,) for name in row_counts):  # The number of rows is free.
            ends = sorted({1, min(1 + _FEW_ROWS, count), count})
        parts = []
        start = 0
        for end in ends:
            part = {name: rows[name][start:end] for name in row_counts}
            outputs = self._run(**{**rows, **part})
            parts.append({name: array.copy() for name, array in outputs.items()})
            start = end
        joined = {}
        for name in parts[0]:
            joined[name] = np.concatenate([part[name] for part in parts])
        return joined


Model = LiteRTModel  # The check (exporting.py) uses this name.
