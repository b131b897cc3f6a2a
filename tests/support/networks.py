"""A small network of dense layers as an ONNX graph, an MLmodel folder, and a registered
model.
"""

from itertools import pairwise

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

from tests.support.models import graph_tensor, labels_section, tensor_column, write_model

WIDTHS = (16, 128, 128, 3)


def network(widths=WIDTHS, gain=1.0, seed=0):
    """Return a classifier of x (float[N, widths[0]]): label (int64[N]) and
    probabilities (float[N, widths[-1]]).

    Args:
        gain: the gain of the first layer. The second layer divides by it, so that only
            the numbers in between are large.
    """
    rng = np.random.default_rng(seed)
    nodes = []
    weights = []
    value = "x"
    for place, (before, after) in enumerate(pairwise(widths)):
        scale = {0: gain, 1: 1 / gain}.get(place, 1.0) * 2 / np.sqrt(before)
        matrix = (rng.normal(size=(before, after)) * scale).astype(np.float32)
        weights += [
            numpy_helper.from_array(matrix, f"w{place}"),
            numpy_helper.from_array(np.zeros(after, np.float32), f"b{place}"),
        ]
        nodes.append(
            helper.make_node(
                "Gemm", [value, f"w{place}", f"b{place}"], [f"s{place}"], name=f"layer{place}"
            )
        )
        value = f"s{place}"
        if place < len(widths) - 2:
            nodes.append(helper.make_node("Relu", [value], [f"r{place}"]))
            value = f"r{place}"
    nodes.append(helper.make_node("Softmax", [value], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", [value], ["label"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", widths[0]])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", widths[-1]]),
        ],
        weights,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def network_rows(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, WIDTHS[0])).astype(np.float32)


def write_network(folder, rows=400, graph=None):
    """Write a model of the onnxserve flavor with a parity proof, and a reference with
    this number of rows; 0: no reference.
    """
    section = {
        **labels_section(graph_tensor("x", "float32", -1, WIDTHS[0]), classes=[0, 1, 2]),
        "framework": "torch",
        "parity": {"state": "proven", "rows": 1000},
    }
    if rows:
        section["reference"] = {"data": "reference.parquet"}
    tensor = tensor_column("float32", -1, WIDTHS[0], name="x")
    write_model(folder, signature=[tensor], section=section)
    onnx.save(graph or network(), folder / "model.onnx")
    if rows:
        table = {"x": network_rows(rows).tolist(), "prediction": np.zeros(rows, np.int64)}
        pq.write_table(pa.table(table), folder / "reference.parquet")
    return folder


def write_labelled(path, rows=400, share_wrong=0.0):
    """Write a dataset of `x` and `label`. The labels are the answers of `network()`,
    except for some wrong rows.
    """
    import onnxruntime

    x = network_rows(rows, seed=2)
    session = onnxruntime.InferenceSession(network().SerializeToString())
    label = session.run(["label"], {"x": x})[0]
    label[: int(share_wrong * rows)] = (label[: int(share_wrong * rows)] + 1) % WIDTHS[-1]
    pq.write_table(pa.table({"x": x.tolist(), "label": label}), path)
    return path
