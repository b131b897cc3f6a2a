"""Convert a graph to TensorFlow Lite, and predict with it. `tflite-requirements.txt`
lists the required packages.

    python litert.py GRAPH.onnx FOLDER FREE|1

The command writes FOLDER/model.tflite. The last line of stderr is the error.
"""

import re
import sys
from collections.abc import Mapping, MutableSequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, helper, numpy_helper

Array = npt.NDArray[Any]
_FEW_ROWS = 3


class LiteRTModel:
    """A converted file. Inputs and outputs have the names of its signature."""

    def __init__(self, path: str, threads: int = 1) -> None:
        self._run = _interpreter(path, threads).get_signature_runner()
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


def _interpreter(path: str, threads: int = 1) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=path, num_threads=threads)


def convert(graph: str, folder: str, rows: str) -> None:
    """Write FOLDER/model.tflite with the graph's names and layouts. The file takes a
    row per call if `rows` is "1".
    """
    import onnx2tf

    model = onnx.shape_inference.infer_shapes(onnx.load(graph), data_prop=True)
    _unroll(model.graph)
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
        not_use_onnxsim=True,  # onnxsim would run a program from the PATH.
        keep_shape_absolutely_input_names=[value.name for value in model.graph.input],
        non_verbose=True,
        verbosity="error",
    )
    file = Path(folder, "prepared_float32.tflite").rename(Path(folder, "model.tflite"))
    _restore_names(
        file,
        [
            value.name
            for value in (
                *model.graph.input,
                *model.graph.output,
            )
        ],
    )
    _interpreter(str(file)).allocate_tensors()  # This call fails for custom operators.


def _restore_names(file: Path, names: list[str]) -> None:
    """Restore the signature names that onnx2tf changes, such as "input:0" (tf2onnx) and
    "/output".
    """
    original_names = {}
    for name in names:
        changed = re.sub("^/", "wa/", name.replace(":", "__"))
        original_names[changed.encode()] = name
    if all(changed == name.encode() for changed, name in original_names.items()):
        return
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    for signature in content.signatureDefs:
        for entry in (*signature.inputs, *signature.outputs):
            entry.name = original_names[entry.name]
    builder = flatbuffers.Builder(1024)
    builder.Finish(content.Pack(builder), b"TFL3")
    file.write_bytes(builder.Output())


def _unroll(graph: GraphProto) -> None:
    """Unroll LSTM and GRU layers, because LiteRT's layers keep state between calls and
    have a fixed batch size.
    """
    values = {
        value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.input)
    }
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        inputs = [
            *node.input,
            *[""] * (8 - len(node.input)),
        ]
        steps = values[inputs[0]][0].dim_value if values.get(inputs[0]) else 0
        if node.op_type in _STEPS and steps and _is_plain_layer(node.op_type, inputs, attributes):
            _unroll_layer(graph, node, inputs, steps, attributes)
        else:
            graph.node.append(node)


def _is_plain_layer(
    operator: str,
    inputs: list[str],
    attributes: Mapping[str, onnx.AttributeProto],
) -> bool:
    """Return True for a layer with biases and without other options, as torch and Keras
    write it: without lengths, peepholes, other activations or another layout.
    """
    _, _, _, biases, lengths, _, _, peepholes = inputs
    if not biases or lengths or peepholes:
        return False
    if "activations" in attributes or "clip" in attributes:
        return False
    numbers = {name: attribute.i for name, attribute in attributes.items()}
    if numbers.get("layout") or numbers.get("input_forget"):
        return False
    return operator != "GRU" or numbers.get("linear_before_reset") == 1


class _Operations:
    """A builder that appends operations to a graph. The names of the operations begin
    with the layer's name.
    """

    def __init__(self, graph: GraphProto, layer: str) -> None:
        self.graph = graph
        self._layer = layer

    def add(self, operator: str, *names: str, **attributes: object) -> str:
        output = f"{self._layer}__{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def constant(self, values: npt.ArrayLike) -> str:
        name = f"{self._layer}__constant{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.array(values), name))
        return name

    def parts(
        self,
        name: str,
        count: int,
        size: int,
    ) -> list[str]:
        """Split a value [rows, count * size] into `count` parts."""
        parts = []
        for start in range(0, count * size, size):
            begin = self.constant([start])
            end = self.constant([start + size])
            parts.append(
                self.add(
                    "Slice",
                    name,
                    begin,
                    end,
                    self.constant([1]),
                )
            )
        return parts


def _add_lstm_step(
    ops: _Operations,
    input_sums: str,
    state_sums: str,
    state: str,
    cell: str,
    size: int,
) -> tuple[str, str]:
    """Return the new state and cell (https://onnx.ai/onnx/operators/onnx__LSTM.html).

    Args:
        ops: the builder of the graph.
        input_sums: the weighted sums of the inputs, [N, 4 * size].
        state_sums: the weighted sums of the state, [N, 4 * size].
        state: the state, which an LSTM reads only through its sums.
        cell: the cell; "" for zeros.
        size: the number of values of the state.
    """
    enter, leave, forget, candidate = ops.parts(
        ops.add("Add", input_sums, state_sums),
        4,
        size,
    )
    enter = ops.add("Sigmoid", enter)
    leave = ops.add("Sigmoid", leave)
    forget = ops.add("Sigmoid", forget)
    new_cell = ops.add("Mul", enter, ops.add("Tanh", candidate))
    if cell:
        new_cell = ops.add("Add", ops.add("Mul", forget, cell), new_cell)
    return ops.add("Mul", leave, ops.add("Tanh", new_cell)), new_cell


def _add_gru_step(
    ops: _Operations,
    input_sums: str,
    state_sums: str,
    state: str,
    cell: str,
    size: int,
) -> tuple[str, str]:
    """Return the new state, and "" because a GRU has no cell
    (https://onnx.ai/onnx/operators/onnx__GRU.html).

    Args:
        ops: the builder of the graph.
        input_sums: the weighted sums of the inputs, [N, 3 * size].
        state_sums: the weighted sums of the state, [N, 3 * size].
        state: the state; "" for zeros.
        cell: not used.
        size: the number of values of the state.
    """
    update, reset, new = ops.parts(input_sums, 3, size)
    state_update, state_reset, state_new = ops.parts(state_sums, 3, size)
    update = ops.add("Sigmoid", ops.add("Add", update, state_update))
    reset = ops.add("Sigmoid", ops.add("Add", reset, state_reset))
    new = ops.add(
        "Tanh",
        ops.add("Add", new, ops.add("Mul", reset, state_new)),
    )
    change = ops.add("Sub", state, new) if state else ops.add("Neg", new)
    return ops.add("Add", new, ops.add("Mul", update, change)), ""


# number of gates, and the function that adds a step; by operator
_STEPS = {
    "LSTM": (4, _add_lstm_step),
    "GRU": (3, _add_gru_step),
}
# per value of `direction`
_IS_REVERSE = {
    b"forward": [False],
    b"reverse": [True],
    b"bidirectional": [False, True],
}


def _unroll_layer(
    graph: GraphProto,
    node: onnx.NodeProto,
    inputs: list[str],
    steps: int,
    attributes: Mapping[str, onnx.AttributeProto],
) -> None:
    """Append operations that replace a layer.

    Args:
        graph: the graph, without the layer.
        node: the layer.
        inputs: its eight inputs; "" for an omitted input.
        steps: the number of steps of the series.
        attributes: the attributes of the layer by name.
    """
    ops = _Operations(graph, node.output[0] or node.output[1])
    direction = attributes["direction"].s if "direction" in attributes else b"forward"
    size = attributes["hidden_size"].i
    sides = []
    for number, is_reverse in enumerate(_IS_REVERSE[direction]):
        layer = _Direction(ops, node.op_type, inputs, ops.constant(number), size)
        sides.append(layer.unroll(steps, is_reverse))
    parts_by_output = zip(*sides, strict=True)
    # The last tuple has the axis of the directions in each output.
    for name, parts, axis in zip(node.output, parts_by_output, (1, 0, 0), strict=False):
        if name:
            joined = ops.add("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]
            graph.node.append(helper.make_node("Identity", [joined], [name]))


class _Unrolled(NamedTuple):
    """The outputs of one direction of a layer.

    Attributes:
        states: the state after each step, [steps, 1, N, size].
        last: the state after the last step, [1, N, size].
        last_cell: the cell after the last step, [1, N, size]; "" for a GRU.
    """

    states: str
    last: str
    last_cell: str


class _Weights(NamedTuple):
    """The weights of one direction of a layer, [values, gates * size] and
    [1, gates * size].
    """

    input: str
    recurrent: str
    bias: str
    recurrent_bias: str


class _Direction(NamedTuple):
    """One direction of a recurrent layer; `number` is the constant that selects its
    weights.
    """

    ops: _Operations
    kind: str
    inputs: list[str]
    number: str
    size: int

    def unroll(self, steps: int, is_reverse: bool) -> _Unrolled:
        """Add the steps of the direction."""
        ops = self.ops
        order = -1 if is_reverse else 1
        weights = self._weights()
        state, cell = map(self._initial, self.inputs[5:7])
        states = []
        for step in range(steps)[::order]:
            state, cell = self._add_step(weights, step, state, cell)
            states.append(
                ops.add(
                    "Unsqueeze",
                    state,
                    ops.constant([0, 1]),
                )
            )
        joined = ops.add("Concat", *states[::order], axis=0)
        last = ops.add("Unsqueeze", state, ops.constant([0]))
        last_cell = (
            ops.add(
                "Unsqueeze",
                cell,
                ops.constant([0]),
            )
            if cell
            else ""
        )
        return _Unrolled(joined, last, last_cell)

    def _weights(self) -> _Weights:
        """Add operations that select the weights of the direction, and return their
        names.
        """
        ops = self.ops
        weights = ops.add(
            "Transpose",
            self._gather(self.inputs[1]),
            perm=[1, 0],
        )
        recurrent = ops.add(
            "Transpose",
            self._gather(self.inputs[2]),
            perm=[1, 0],
        )
        biases = ops.add(
            "Unsqueeze",
            self._gather(self.inputs[3]),
            ops.constant([0]),
        )
        gates, _ = _STEPS[self.kind]
        bias, recurrent_bias = ops.parts(biases, 2, gates * self.size)
        return _Weights(weights, recurrent, bias, recurrent_bias)

    def _add_step(
        self,
        weights: _Weights,
        step: int,
        state: str,
        cell: str,
    ) -> tuple[str, str]:
        """Return the state and the cell after a step; "" stands for zeros."""
        ops = self.ops
        values = ops.add(
            "Gather",
            self.inputs[0],
            ops.constant(step),
            axis=0,
        )
        input_sums = ops.add(
            "Add",
            ops.add("MatMul", values, weights.input),
            weights.bias,
        )
        state_sums = weights.recurrent_bias
        if state:
            state_sums = ops.add(
                "Add",
                ops.add("MatMul", state, weights.recurrent),
                state_sums,
            )
        _, add_step = _STEPS[self.kind]
        return add_step(ops, input_sums, state_sums, state, cell, self.size)

    def _gather(self, name: str) -> str:
        """Return the part of a tensor that belongs to the direction."""
        return self.ops.add("Gather", name, self.number, axis=0)

    def _initial(self, name: str) -> str:
        """Return the state before the first step; "" stands for zeros."""
        return "" if _is_zero(self.ops.graph, name) else self._gather(name)


def _is_zero(graph: GraphProto, name: str) -> bool:
    """Return True if a value is omitted or all zeros. torch expands such a constant to
    the batch size.
    """
    if not name:
        return True
    for initializer in graph.initializer:
        if initializer.name == name:
            return not numpy_helper.to_array(initializer).any()
    for node in graph.node:
        if name in node.output:
            return _is_zero_node(graph, node)
    return False


def _is_zero_node(graph: GraphProto, node: onnx.NodeProto) -> bool:
    """Return True if a node returns zeros: a constant, or another shape of zeros."""
    if node.op_type in ("Constant", "ConstantOfShape"):
        return all(
            entry.HasField("t") and not numpy_helper.to_array(entry.t).any()
            for entry in node.attribute
        )
    keeps = ("Expand", "Reshape", "Slice", "Split", "Transpose", "Unsqueeze", "Squeeze", "Identity")
    return node.op_type in keeps and _is_zero(graph, node.input[0])


def _keep_layout(model: onnx.ModelProto) -> None:
    """Add two reshapes after each output with 3 or more dimensions, which prevents a
    conversion to NHWC.
    """
    graph = model.graph
    for output in graph.output:
        sizes = [size.dim_value for size in output.type.tensor_type.shape.dim]
        if len(sizes) < 3 or not all(sizes[1:]):
            continue
        inner = f"{output.name}__inner"
        flat = f"{output.name}__flat"
        for node in graph.node:
            _rename(node.output, output.name, inner)
            _rename(node.input, output.name, inner)
        for source, target, shape in (
            (
                inner,
                flat,
                [-1, int(np.prod(sizes[1:]))],
            ),
            (flat, output.name, [-1, *sizes[1:]]),
        ):
            graph.initializer.append(numpy_helper.from_array(np.array(shape), f"{target}__shape"))
            graph.node.append(
                helper.make_node(
                    "Reshape",
                    [source, f"{target}__shape"],
                    [target],
                )
            )


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for position, name in enumerate(names):
        if name == old:
            names[position] = new


def _reason(error: BaseException) -> str:
    """Return an error in one line, with the operator if the message names an
    operator.
    """
    text = " ".join(str(error).split())
    if match := re.search(r"op=(\S+) .*?message=(.*)", text):
        return f"operator {match[1]}: {match[2]}"
    if match := re.search(r"custom op: (?:ONNX_)?(\w+)", text):
        return f"operator {match[1]} is not supported in tflite"
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    try:
        convert(*sys.argv[1:])
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the converter may raise any error.
        sys.exit(_reason(error))
