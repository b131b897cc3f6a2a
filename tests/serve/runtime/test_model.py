"""Tests of models from folders on disk: reading, binding, refusals and answers."""

from resource import RUSAGE_THREAD, getrusage

import numpy as np
import psutil
import pytest

from mlflow_deploy_plugin.core.errors import BodyTooLarge, InferenceError, InvalidArtifact
from mlflow_deploy_plugin.serve.runtime.model import RUN_ROWS, OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import limit_memory
from tests.support.models import columns, graph_tensor, tensor_column, write_model
from tests.support.waiting import wait_until

SUM = (
    "g (float[N,2] X) => (float[N] y) <int64[1] axis = {1}> { y = ReduceSum<keepdims=0>(X, axis) }"
)


TWO = "g (float[N] a, int64[N] b) => (float[N] y, int64[N] n) { y = Neg(a) \n n = Neg(b) }"


TEXT = "g (string[N,1] s) => (string[N,1] t) { t = Identity(s) }"


ZIPMAP = (
    "g (float[N,2] p) => (seq(map(string, float)) probability)"
    '{ probability = ai.onnx.ml.ZipMap<classlabels_strings = ["no", "yes"]>(p) }'
)


FIXED = "g (float[2,2] X) => (float[2,2] y) { y = Neg(X) }"


RECURRENT = """g (float[N,L,1] x) => (float[1,N,1] h) <float[1,3,1] w = {1, 1, 1}> {
  steps = Transpose<perm = [1, 0, 2]>(x)
  every, h = GRU<hidden_size = 1>(steps, w, w)
}"""


@pytest.mark.parametrize(
    ("graph", "signature", "data", "answer"),
    [
        (SUM, [], {"X": [[1, 2]]}, {"y": [3.0]}),
        (SUM, columns(p="double", q="double"), {"q": [2], "p": [1]}, {"y": [3.0]}),
        (SUM, [tensor_column("float64", -1, 2)], {"anything": [[1, 2]]}, {"y": [3.0]}),
        (TWO, [], {"b": [2], "a": [1]}, {"y": [-1.0], "n": [-2]}),
        (TEXT, [tensor_column("object", -1, 1)], {"s": [["a"]]}, {"t": [["a"]]}),
        (ZIPMAP, [], {"p": [[0.25, 0.75]]}, {"probability": [{"no": 0.25, "yes": 0.75}]}),
        (FIXED, [], {"X": [[1, 2], [3, 4]]}, {"y": [[-1, -2], [-3, -4]]}),
    ],
)
def test_stock_model_answers_by_graph_names(tmp_path, graph, signature, data, answer):
    model = OnnxModel.load(write_model(tmp_path, graph, signature or None))
    outputs = model.run(model.schema.from_columns(data))
    assert {name: array.tolist() for name, array in outputs.items()} == answer


@pytest.mark.parametrize(
    ("graph", "signature", "data", "prediction"),
    [
        (SUM, [], {"X": [[1, 2], [3, 4]]}, {"y": [3.0, 7.0]}),
        (
            SUM,
            columns(a="double", b="double"),
            {"a": [1, 3], "b": [2, 4]},
            [{"y": 3.0}, {"y": 7.0}],
        ),
        (TWO, columns(b="long", a="double"), {"b": [2], "a": [1]}, [{"y": -1.0, "n": -2}]),
        (TEXT, columns(s="string"), {"s": ["a"]}, [{"t": "a"}]),
        (
            FIXED,
            columns(a="double", b="double"),
            {"a": [1, 3], "b": [2, 4]},
            {"y": [[-1, -2], [-3, -4]]},
        ),
    ],
)
def test_stock_prediction_has_the_form_of_mlflow(tmp_path, graph, signature, data, prediction):
    model = OnnxModel.load(write_model(tmp_path, graph, signature or None))
    answer = model.prediction(model.run(model.schema.from_columns(data)))
    assert prediction == (
        {name: array.tolist() for name, array in answer.items()}
        if isinstance(answer, dict)
        else answer.tolist()
    )


def test_graph_error_is_raised_and_not_printed(tmp_path, capfd):
    graph = "g (string[N,1] s) => (float[N,1] y) { y = Cast<to = 1>(s) }"
    model = OnnxModel.load(write_model(tmp_path, graph, [tensor_column("str", -1, 1)]))
    for rows in (1, 100):
        with pytest.raises(InferenceError, match="running Cast node") as caught:
            model.run({"s": np.full((rows, 1), "no number", dtype=object)})
        assert "\n" not in caught.value.message
    # Otherwise callers could fill the log with lines in another format.
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("shape", [(0, 5, 1), (2, 0, 1)], ids=["no rows", "no steps"])
def test_empty_input_that_would_crash_is_refused(tmp_path, shape):
    model = OnnxModel.load(write_model(tmp_path, RECURRENT))

    with pytest.raises(InferenceError, match=r"'x' .*GRU"):
        model.run({"x": np.zeros(shape, np.float32)})
    assert model.run({"x": np.zeros((2, 5, 1), np.float32)})["h"].shape == (1, 2, 1)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_invalid_graph_file_is_refused(tmp_path, content):
    folder = write_model(tmp_path, SUM)
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(InvalidArtifact, match=r"model\.onnx") as caught:
        OnnxModel.load(folder)
    assert str(tmp_path) not in caught.value.message


def test_sequence_output_is_refused_with_advice(tmp_path):
    sequence = "g (float[N,2] x) => (seq(float[1,2]) s) { s = SplitToSequence<axis = 0>(x) }"
    with pytest.raises(InvalidArtifact, match=r"'s' .*seq\(.*ConcatFromSequence"):
        OnnxModel.load(write_model(tmp_path, sequence))


COUNTED = """counted (float[N,1] x) => (float[N,1] rows) <float[1] zero = {0.0}> {
  shape = Shape<start = 0, end = 1>(x)
  count = Cast<to = 1>(shape)
  nothing = Mul(x, zero)
  rows = Add(nothing, count)
}"""
"""The model answers each row with the number of rows in its run."""


@pytest.mark.parametrize(
    ("state", "most", "runs"),
    [
        ("proven", RUN_ROWS, [1, 2 * RUN_ROWS]),
        ("no-original", 2 * RUN_ROWS + 1, [2 * RUN_ROWS + 1]),
        ("warned", 2 * RUN_ROWS + 1, [2 * RUN_ROWS + 1]),
        ("", 2 * RUN_ROWS + 1, [2 * RUN_ROWS + 1]),
    ],
)
def test_large_table_is_computed_in_parts_if_proven(tmp_path, state, most, runs):
    """The rows of a graph without a proof may be related."""
    section = {
        "inputs": [graph_tensor("x", "float32", -1, 1, columns=["x"])],
        "outputs": [graph_tensor("rows", "float32", -1, 1, role="prediction")],
        "parity": {"state": state},
    }
    model = OnnxModel.load(
        write_model(tmp_path, COUNTED, columns(x="double"), section if state else None)
    )
    rows = model.run(model.schema.from_columns({"x": [1.0] * (2 * RUN_ROWS + 1)}))["rows"]
    assert np.unique_counts(rows).counts.tolist() == runs
    assert rows.max() == most


MARKED = """g (float[N,1] x) => (float[N,1] y, float[N] onnxserve_refused_rows) \
<int64[1] axis = {1}> {
  y = Log(x)
  mark = Sub(y, y)
  onnxserve_refused_rows = ReduceSum<keepdims=0>(mark, axis)
}"""


@pytest.mark.parametrize("row", [0, 1, RUN_ROWS + 1, 2 * RUN_ROWS])
def test_marked_row_is_refused(tmp_path, row):
    section = {
        "inputs": [graph_tensor("x", "float32", -1, 1, columns=["x"])],
        "outputs": [graph_tensor("y", "float32", -1, 1, role="values")],
        "parity": {"state": "proven"},
    }
    model = OnnxModel.load(write_model(tmp_path, MARKED, columns(x="double"), section))
    numbers = np.ones(row + 2, np.float32)

    assert list(model.run({"x": numbers[:, None]})) == ["y"]
    numbers[row:] = -1.0
    with pytest.raises(InferenceError, match=f"^row {row}: "):
        model.run({"x": numbers[:, None]}, ["y"])
    with pytest.raises(InferenceError, match=f"^row {row}: "):
        model.try_out({"x": numbers[:, None]}, seconds=10)


WIDE = "g (float[N,1] x) => (float[N,3] y) <float[1,3] w = {1, 2, 3}> { y = MatMul(x, w) }"


FREE = "g (float[N,M] x) => (float[N,M] y) { y = Neg(x) }"


FIXED_ROWS = "g (float[2,M] x) => (float[2,M] y) { y = Neg(x) }"


UNKNOWN = "g (float[N] x, int64[K] size) => (float[] y) { y = Expand(x, size) }"


FRAMES = """g (float[samples] x) => (float[frames,3] y)
<float[1,3] w = {1, 2, 3}, int64[1] one = {1}, int64[1] step = {5}> {
  start = Sub(one, one)
  end = Shape(x)
  found = Slice(x, start, end, start, step)
  frames = Unsqueeze(found, one)
  y = MatMul(frames, w)
}"""


@pytest.mark.parametrize(
    ("graph", "shapes", "message"),
    [
        (WIDE, [(4, 1), (5, 1)], "^the answer to 5 rows has 15 values, .* send at most 4 "),
        (FRAMES, [(20,), (21,)], "^the answer has more than 12 values, "),
        (FREE, [(4, 3), (1, 12), (4, 4)], "^the answer has more than 12 values, "),
        (FIXED_ROWS, [(2, 6), (2, 7)], "^the answer has more than 12 values, "),
    ],
)
def test_too_many_output_values_are_refused(tmp_path, graph, shapes, message):
    model = OnnxModel.load(write_model(tmp_path, graph))
    model.limit_values(12)

    *answered, refused = ({"x": np.ones(shape, np.float32)} for shape in shapes)

    for feeds in answered:
        assert model.run(feeds)["y"].size == 12
    with pytest.raises(BodyTooLarge, match=message):
        model.run(refused)


WRAPPED = {
    "inputs": [graph_tensor("x", "float32", -1, 1)],
    "outputs": [graph_tensor("y", "float32", -1, 3, role="values")],
}


@pytest.mark.parametrize(
    ("graph", "section", "limits", "fitting", "refused"),
    [
        (
            WIDE.replace("N,1", "?,1").replace("N,3", "batch,3"),
            WRAPPED,
            (12,),
            (4, 1),
            (5, 1),
        ),
        (WIDE, None, (2, 4), (4, 1), (5, 1)),
    ],
    ids=["wrapped", "batched"],
)
def test_too_many_rows_are_refused_before_computing(
    tmp_path, graph, section, limits, fitting, refused
):
    signature = [tensor_column("float32", -1, 1)]
    model = OnnxModel.load(write_model(tmp_path, graph, signature, section))
    model.limit_values(*limits)

    assert model.run({"x": np.ones(fitting, np.float32)})["y"].size == 12
    with pytest.raises(BodyTooLarge, match="at most 4"):
        model.run({"x": np.ones(refused, np.float32)})


def test_texts_count_by_their_memory(tmp_path):
    model = OnnxModel.load(write_model(tmp_path, TEXT))
    model.limit_values(8)

    with pytest.raises(BodyTooLarge, match="at most 2"):
        model.run({"s": np.array([["a"]] * 3, object)})


def test_output_of_unknown_rank_is_limited(tmp_path):
    model = OnnxModel.load(write_model(tmp_path, UNKNOWN))
    model.limit_values(12)
    x = np.ones(1, np.float32)

    assert model.run({"x": x, "size": np.array([3, 4])})["y"].size == 12
    with pytest.raises(BodyTooLarge, match="12 values"):
        model.run({"x": x, "size": np.array([13, 1])})


THICK = """g (float[N,1] x) => (float[N] y) <int64[2] size = {1, 16384}, int64[1] axis = {1}> {
  layer = Expand(x, size)
  y = ReduceSum<keepdims=0>(layer, axis)
}"""
"""The layer takes 64 KiB per row."""
MIB = 2**20
LAYER_BYTES = 64 * MIB
LAYER_PAGES = LAYER_BYTES // 4096


@pytest.fixture
def run_large(tmp_path):
    """Return a run whose layer takes 64 MiB. The run returns the pages that the system
    gave to the process in the meantime.
    """
    model = OnnxModel.load(write_model(tmp_path, THICK))
    model.run({"x": np.ones((1, 1), np.float32)})  # ONNX Runtime keeps the memory of the first run.
    feeds = {"x": np.ones((LAYER_BYTES // 2**16, 1), np.float32)}

    def run():
        before = getrusage(RUSAGE_THREAD).ru_minflt
        assert model.run(feeds)["y"][-1] == 16384
        return getrusage(RUSAGE_THREAD).ru_minflt - before

    return run


@pytest.fixture
def short_memory():
    limit_memory(1)
    yield
    limit_memory(None)


def resident():
    return psutil.Process().memory_info().rss


def test_memory_is_kept_for_the_next_run(run_large):
    before = resident()
    run_large()
    assert resident() > before + LAYER_BYTES / 2
    run_large()  # ONNX Runtime plans its memory again.
    assert run_large() < LAYER_PAGES / 8


def test_memory_is_released_when_idle(run_large):
    before = resident()
    run_large()
    wait_until(lambda: resident() < before + LAYER_BYTES / 4, seconds=20)


@pytest.mark.usefixtures("short_memory")
def test_scarce_memory_is_released_at_once(run_large):
    before = resident()
    run_large()
    assert resident() < before + LAYER_BYTES / 4
