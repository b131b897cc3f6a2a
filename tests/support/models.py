"""Tiny ONNX graphs, and the MLmodel folders around them as MLflow writes them."""

import hashlib
import json
from typing import Any

import numpy as np
import onnx
import yaml

from mlflow_deploy_plugin.serve.runtime.guard import RANGES_FILE

HEADER = '<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]>\n'
IDENTITY = "same (float[N,1] x) => (float[N,1] y) { y = Identity(x) }"
FAILING = """fails (float[N,1] x) => (float[N,1] y) \
<float[4] table = {1, 1, 1, 1}, float[1] one = {1}> {
  place = Cast<to = 7>(x)
  found = Gather(table, place)
  nothing = Sub(found, found)
  more = Add(x, one)
  y = Add(more, nothing)
}"""
"""Adds 1 as `adder(1.0)` does, and fails for an x of 4 or more."""


def parse_graph(text):
    """Return the model of a graph in ONNX's text form, without its header."""
    return onnx.parser.parse_model(HEADER + text)


def save_graph(folder, graph):
    """Write a graph, or its text form, to a file in the folder, and return the file."""
    file = folder / "model.onnx"
    onnx.save(parse_graph(graph) if isinstance(graph, str) else graph, file)
    return file


def dense_layer(side):
    """Return a layer of a network with random weights,
    from x [N, side] to y [N, side].
    """
    nodes = "m = MatMul(x, w) a = Add(m, b) y = Relu(a)"
    random = np.random.default_rng(0)
    model = parse_graph(f"layer (float[N,{side}] x) => (float[N,{side}] y) {{ {nodes} }}")
    for name, shape in (("w", (side, side)), ("b", (side,))):
        weights = random.random(shape, dtype=np.float32) - 0.5
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    return model


def adder(amount):
    """Return the model y = x + amount, whose answers identify the version."""
    return parse_graph(
        f"adder (float[N,1] x) => (float[N,1] y) <float[1] amount = {{{amount}}}> {{ y = Add(x, "
        "amount) }"
    )


def write_model(
    folder,
    graph=IDENTITY,
    signature=None,
    section=None,
    model_id="m-1",
):
    """Write an MLmodel folder; `section`: the rest of flavors.onnxserve, None for a
    model of the stock onnx flavor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(parse_graph(graph), folder / "model.onnx")
    flavors = {"onnx": {"data": "model.onnx", "onnx_version": "1.23.2"}}
    if section is not None:
        flavors["onnxserve"] = {"data": "model.onnx", "onnxserve_version": "0.1.0", **section}
    document: dict[str, Any] = {
        "flavors": flavors,
        "mlflow_version": "3.17.2",
        "model_id": model_id,
        "run_id": "r-1",
    }
    if signature is not None:
        document["signature"] = {"inputs": json.dumps(signature), "outputs": None, "params": None}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


def write_pyfunc(
    folder,
    module,
    code,
    signature=None,
    **loader,
):
    """Write the folder of a pyfunc whose loader module has this code."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / f"{module}.py").write_text(code)
    flavor = {"loader_module": module, "code": "code", **loader}
    document: dict[str, Any] = {"flavors": {"python_function": flavor}}
    if signature is not None:
        document["signature"] = {"inputs": json.dumps(signature)}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


COLUMN_TYPES = {
    "double": "float64",
    "long": "int64",
    "boolean": "bool",
    "string": "str",
    "float": "float32",
}

MIXED = """
mixed (string[N,1] carrier, double[N,1] distance, int64[N,1] hour, bool[N,1] late)
  => (string[N] label, float[N,2] probabilities)
<string[1] aa = {"AA"}, double[1] scale = {0.001}, int64[1] one = {1}, float[1] bound = {0.5}, \
float[1] unit = {1.0},
 string[1] yes = {"yes"}, string[1] no = {"no"}> {
  is_aa = Equal(carrier, aa)
  a = Cast<to=11>(is_aa)
  b = Mul(distance, scale)
  c = Cast<to=11>(hour)
  c2 = Mul(c, scale)
  d = Cast<to=11>(late)
  ab = Add(a, b)
  abc = Add(ab, c2)
  score = Add(abc, d)
  p64 = Sigmoid(score)
  p = Cast<to=1>(p64)
  q = Sub(unit, p)
  probabilities = Concat<axis=1>(q, p)
  is_yes = Greater(p, bound)
  flat = Squeeze(is_yes, one)
  label = Where(flat, yes, no)
}"""


TENSOR = """
tensor (float[N,2,2] image) => (float[N,2,2] doubled, float[N] total) \
<int64[2] axes = {1, 2}, float[1] two = {2.0}> {
  doubled = Mul(image, two)
  total = ReduceSum<keepdims=0>(image, axes)
}"""


def graph_tensor(name, dtype, *shape, **more):
    """Return an input or output of a graph, as flavors.onnxserve describes it."""
    return {"name": name, "dtype": dtype, "shape": list(shape), **more}


def numbers_section(*inputs, dtype="float32", shape=(1,)):
    """Describe a graph that returns the numbers y [N, *shape] for these inputs."""
    return {
        "inputs": list(inputs),
        "outputs": [graph_tensor("y", dtype, -1, *shape, role="values")],
        "prediction": ["y"],
    }


def labels_section(*inputs, classes, dtype="int64"):
    """Describe a graph that returns the labels [N] and probabilities [N, K] of these
    classes.
    """
    return {
        "inputs": list(inputs),
        "outputs": [
            graph_tensor("label", dtype, -1, role="label"),
            graph_tensor("probabilities", "float32", -1, len(classes), role="probabilities"),
        ],
        "prediction": ["label"],
        "classes": classes,
    }


def tensor_column(dtype, *shape, **name):
    """Return a tensor of a signature."""
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}, **name}


def columns(**types):
    return [{"name": name, "type": kind, "required": True} for name, kind in types.items()]


def mixed_model(folder):
    types = {"carrier": "string", "distance": "double", "hour": "long", "late": "boolean"}
    inputs = [
        graph_tensor(name, COLUMN_TYPES[kind], -1, 1, columns=[name], missing=None)
        for name, kind in types.items()
    ]
    section = labels_section(*inputs, classes=["no", "yes"], dtype="str")
    return write_model(folder, MIXED, columns(**types), section)


def guarded_model(folder):
    """Make the mixed model with the ranges of training rows; distances were missing."""
    columns = {"carrier": ["AA", "UA"], "distance": [5.0, 2500.0], "hour": [0, 23]}
    ranges = {"columns": columns, "complete": ["carrier", "hour"]}
    return with_ranges(mixed_model(folder), ranges)


def with_ranges(folder, ranges):
    """Add the file of the ranges to a model."""
    content = json.dumps(ranges).encode()
    (folder / RANGES_FILE).write_bytes(content)
    document = yaml.safe_load((folder / "MLmodel").read_text())
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    document["flavors"]["onnxserve"]["digests"] = {RANGES_FILE: digest}
    (folder / "MLmodel").write_text(yaml.safe_dump(document))
    return folder


def tensor_model(folder):
    """Make a model with one tensor and two outputs, both of which are predictions."""
    signature = [tensor_column("float32", -1, 2, 2)]
    section = {
        "inputs": [graph_tensor("image", "float32", -1, 2, 2)],
        "outputs": [
            graph_tensor("doubled", "float32", -1, 2, 2, role="values"),
            graph_tensor("total", "float32", -1, role="values"),
        ],
        "prediction": ["doubled", "total"],
    }
    return write_model(folder, TENSOR, signature, section)
