"""Converts a graph to TensorFlow Lite, and answers rows with it. Runs in the environment of `tflite-requirements.txt`.

    python litert.py GRAPH.onnx FOLDER FREE|1       # writes FOLDER/model.tflite; what failed is the last line of stderr

`Model` is for the proof, as that of `runner.py`.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_FEW_ROWS = 3


class LiteRTModel:
    """A converted file, asked by the names of its signature."""

    def __init__(self, path: str, threads: int = 1) -> None:
        self._run = _interpreter(path, threads).get_signature_runner()
        shapes = [details["shape_signature"] for details in self._run.get_input_details().values()]
        self._takes_one_row = all(len(shape) and shape[0] == 1 for shape in shapes)

    def outputs(self, rows: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Return every output for the rows. Calls of one row, of a few and of many have a part of them each."""
        count = min(len(array) for array in rows.values())
        ends = range(1, count + 1) if self._takes_one_row else sorted({1, min(1 + _FEW_ROWS, count), count})
        parts, start = [], 0
        for end in ends:
            outputs = self._run(**{name: array[start:end] for name, array in rows.items()})
            parts.append({name: array.copy() for name, array in outputs.items()})
            start = end
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


Model = LiteRTModel  # the proof asks for this name


def _interpreter(path: str, threads: int = 1) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=path, num_threads=threads)


def convert(graph: str, folder: str, rows: str) -> None:
    """Write FOLDER/model.tflite, with the graph's own names and layouts of inputs and outputs.

    Args:
        rows: "1" for a file that takes one row a call, else any number.
    """
    import onnx
    import onnx2tf

    model = onnx.load(graph)
    if rows == "1":
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        del model.graph.value_info[:]
    _keep_layout(model)
    prepared = Path(folder, "prepared.onnx")
    onnx.save(model, prepared)
    onnx2tf.convert(
        input_onnx_file_path=str(prepared),
        output_folder_path=folder,
        output_signaturedefs=True,
        keep_shape_absolutely_input_names=[value.name for value in model.graph.input],
        non_verbose=True,
        verbosity="error",
    )
    file = Path(folder, "prepared_float32.tflite").rename(Path(folder, "model.tflite"))
    _interpreter(str(file)).allocate_tensors()  # raises if an operator has become a custom one, which nobody has


def _keep_layout(model: Any) -> None:
    """Put two reshapes after each output of three and more dimensions: the converter keeps their layout.

    It would turn such an output of a convolution from NCHW to NHWC.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    for output in graph.output:
        sizes = [size.dim_value for size in output.type.tensor_type.shape.dim]
        if len(sizes) < 3 or not all(sizes[1:]):
            continue
        inner, flat = f"{output.name}__inner", f"{output.name}__flat"
        for node in graph.node:
            node.output[:] = [inner if name == output.name else name for name in node.output]
            node.input[:] = [inner if name == output.name else name for name in node.input]
        for source, target, shape in (
            (inner, flat, [-1, int(np.prod(sizes[1:]))]),
            (flat, output.name, [-1, *sizes[1:]]),
        ):
            graph.initializer.append(numpy_helper.from_array(np.array(shape), f"{target}__shape"))
            graph.node.append(helper.make_node("Reshape", [source, f"{target}__shape"], [target]))


def _reason(error: BaseException) -> str:
    """Return in one line what failed, with the operator if the converter or LiteRT names one."""
    text = " ".join(str(error).split())
    if found := re.search(r"op=(\S+) .*?message=(.*)", text):
        return f"operator {found[1]}: {found[2]}"
    if found := re.search(r"custom op: (?:ONNX_)?(\w+)", text):
        return f"operator {found[1]} has no form there"
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    try:
        convert(*sys.argv[1:])
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the converter raises whatever there is
        sys.exit(_reason(error))
