"""Models for the pages and the OpenAPI document, each with an example: pictures, and
names that contain HTML.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.support.models import columns, graph_tensor, labels_section, tensor_column, write_model

DIGITS = """
digits (float[N,1,8,8] image) => (int64[N] label, float[N,3] probabilities)
<int64[2] left = {0, 0}, int64[2] right = {0, 4}, int64[1] axis = {1}, int64[2] flat = {-1, 64}, \
float[1] unit = {1.0},
 int64[1] half = {32}, int64[1] zero = {0}, int64[1] full = {64}, int64[1] one = {1}, \
float[1] third = {0.1}> {
  pixels = Reshape(image, flat)
  top = Slice(pixels, zero, half, one)
  bottom = Slice(pixels, half, full, one)
  a = ReduceMean(top, axis)
  b = ReduceMean(bottom, axis)
  zeros = Mul(a, third)
  scores = Concat<axis=1>(a, b, zeros)
  probabilities = Softmax<axis=1>(scores)
  label = ArgMax<axis=1, keepdims=0>(scores)
}"""
"""0: the upper half of the picture is brighter, 1: the lower half."""

HOSTILE = "<script>alert(1)</script>"
QUOTED = 'it\'s "quoted" & <b>bold</b>'


def with_example(folder, document):
    (folder / "serving_input_example.json").write_text(json.dumps(document))
    return folder


def with_reference(folder, columns):
    """Write the reference sample that the flavor saves with a model
    (`wrap/flavor/saved_model.py`).
    """
    pq.write_table(pa.table(columns), folder / "reference.parquet")
    file = folder / "MLmodel"
    document = yaml.safe_load(file.read_text())
    document["flavors"]["onnxserve"]["reference"] = {"data": "reference.parquet"}
    file.write_text(yaml.safe_dump(document))
    return folder


def with_categories(folder, **categories):
    """Write the values of these columns into the MLmodel file."""
    file = folder / "MLmodel"
    document = yaml.safe_load(file.read_text())
    document["flavors"]["onnxserve"]["categories"] = categories
    file.write_text(yaml.safe_dump(document))
    return folder


def digits_model(folder):
    signature = [tensor_column("float32", -1, 1, 8, 8)]
    section = labels_section(graph_tensor("image", "float32", -1, 1, 8, 8), classes=[0, 1, 2])
    picture = [[[[row / 8] * 8 for row in range(8)]]]
    return with_example(write_model(folder, DIGITS, signature, section), {"inputs": picture})


def wide_model(folder):
    """Write a model of 30 columns, which answers the number of the largest one."""
    graph = """
wide (double[N,30] X) => (int64[N] largest) {
  largest = ArgMax<axis=1, keepdims=0>(X)
}"""
    names = [f"measure {number}" for number in range(30)]
    section = {
        "inputs": [graph_tensor("X", "float64", -1, 30, columns=names)],
        "outputs": [graph_tensor("largest", "int64", -1, role="values")],
        "prediction": ["largest"],
    }
    signature = columns(**dict.fromkeys(names, "double"))
    return write_model(folder, graph, signature, section)


def hostile_model(folder):
    """Write a model whose column names and classes contain HTML."""
    graph = f"""
hostile (double[N,2] X) => (string[N] label, float[N,2] probabilities)
<int64[1] first = {{0}}, int64[1] second = {{1}}, int64[1] axis = {{1}}, double[1] zero = {{0.0}},
 float[1] unit = {{1.0}},
 string[1] yes = {{"{HOSTILE}"}}, string[1] no = {{"<img src=x onerror=alert(2)>"}}> {{
  x = Slice(X, first, second, axis)
  p64 = Sigmoid(x)
  p = Cast<to=1>(p64)
  q = Sub(unit, p)
  probabilities = Concat<axis=1>(p, q)
  positive = Greater(x, zero)
  flat = Squeeze(positive, axis)
  label = Where(flat, yes, no)
}}"""
    names = [HOSTILE, QUOTED]
    section = labels_section(
        graph_tensor("X", "float64", -1, 2, columns=names),
        classes=[HOSTILE, "<img src=x onerror=alert(2)>"],
        dtype="str",
    )
    signature = [{"name": name, "type": "double", "required": True} for name in names]
    example = {"dataframe_split": {"columns": names, "data": [[1.5, 2.0]]}}
    return with_example(write_model(folder, graph, signature, section), example)
