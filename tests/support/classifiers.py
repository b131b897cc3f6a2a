"""Small linear models of known quality, as MLmodel folders and as versions of a
registered model.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.models import graph_tensor, labels_section, numbers_section, write_model

COLUMNS = ("a", "b")
TRUTH = (2.0, -1.0)
"""The weights that `labelled` uses to compute the labels."""


def labelled(count, seed=0):
    """Return columns a, b, `label` (0 or 1, from the noisy score) and `value` (the
    noisy score).
    """
    rng = np.random.default_rng(seed)
    a = rng.normal(size=count)
    b = rng.normal(size=count)
    score = TRUTH[0] * a + TRUTH[1] * b + rng.normal(size=count) * 0.5
    return {"a": a, "b": b, "label": (score > 0).astype(np.int64), "value": score}


def write_rows(path, rows):
    pq.write_table(pa.table(rows), path)
    return path


def write_classifier(
    folder,
    weights=TRUTH,
    *,
    parity="proven",
    columns=COLUMNS,
    types=(),
    reference=None,
    extra="",
):
    """Write a model of the onnxserve flavor that returns label (0, 1) and probabilities
    of a weighted sum.

    Args:
        extra: nodes before the sum, which may change `x` into `z`; default: none.
    """
    width = len(columns)
    graph = f"""linear (double[N,{width}] x) => (int64[N] label, float[N,2] probabilities)
      <double[{width},1] w = {{{", ".join(map(str, weights))}}}, double[1] one = {{1.0}}> {{
        {extra or "z = Identity(x)"}
        s = MatMul(z, w)
        p = Sigmoid(s)
        q = Sub(one, p)
        wide = Concat <axis = 1> (q, p)
        probabilities = Cast <to = 1> (wide)
        label = ArgMax <axis = 1, keepdims = 0> (wide)
      }}"""
    section = {
        **labels_section(
            graph_tensor("x", "float64", -1, width, columns=list(columns)), classes=[0, 1]
        ),
        "framework": "sklearn",
        "parity": {"state": parity, "rows": 1000},
    }
    return _write(folder, graph, section, columns, types, reference)


def write_regressor(folder, weights=TRUTH, reference=None):
    """Write a model of the onnxserve flavor that returns the weighted sum."""
    graph = f"""linear (double[N,2] x) => (double[N,1] y) \
<double[2,1] w = {{{weights[0]}, {weights[1]}}}> {{
      y = MatMul(x, w) }}"""
    section = {
        **numbers_section(
            graph_tensor("x", "float64", -1, 2, columns=list(COLUMNS)), dtype="float64"
        ),
        "framework": "sklearn",
        "parity": {"state": "proven", "rows": 1000},
    }
    return _write(folder, graph, section, COLUMNS, (), reference)


def _write(
    folder,
    graph,
    section,
    columns,
    types,
    reference,
):
    signature = [
        {"name": name, "type": kind, "required": True}
        for name, kind in zip(columns, types or ("double",) * len(columns), strict=True)
    ]
    if reference is not None:
        section["reference"] = {"data": "reference.parquet"}
    write_model(folder, graph, signature, section)
    if reference is not None:
        write_rows(folder / "reference.parquet", reference)
    return folder


def registered_toy(client, folder):
    """Register `toy`: version 1 (the best possible) is in Production, 2 gives equal
    answers, 3 has no parity proof.
    """
    client.create_registered_model("toy")
    for number, (weights, parity) in enumerate(
        [(TRUTH, "proven"), ((4.0, -2.0), "proven"), (TRUTH, "warned")]
    ):
        client.create_model_version(
            "toy", write_classifier(folder / str(number), weights, parity=parity).as_uri()
        )
    client.transition_model_version_stage("toy", "1", "Production")
