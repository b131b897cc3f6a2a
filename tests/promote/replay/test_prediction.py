"""Tests of a captured prediction that is computed again by its version."""

import numpy as np
import onnx
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest, NotFound, Refused
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.promote.replay.prediction import OutputComparison, find_request
from tests.support.classifiers import labelled, write_classifier, write_regressor
from tests.support.models import (
    graph_tensor,
    mixed_model,
    numbers_section,
    tensor_model,
    write_model,
)
from tests.support.pyfuncs import save_pyfuncs
from tests.support.refusals import mentions, refused
from tests.support.servers import single_model

ROWS = {name: labelled(3)[name] for name in ("a", "b")}
MIXED_ROWS = {
    "carrier": ["AA", "UA"],
    "distance": [1400.5, float("nan")],
    "hour": [7, 8],
    "late": [True, False],
}


def test_replay_is_exact(answering):
    model = write_classifier(answering.folder / "model")

    replayed = answering.replayed(model, ROWS)

    assert replayed.is_equal
    assert replayed.outputs == [
        OutputComparison("prediction", True),
        OutputComparison("output.probabilities", True),
    ]
    assert replayed.inputs == {name: values.tolist() for name, values in ROWS.items()}


@pytest.mark.parametrize(
    ("write", "rows"),
    [
        (mixed_model, MIXED_ROWS),  # text, missing number, integer, boolean
        # The graph takes 32 bits.
        (single_model, {"a": [0.1, 0.2], "b": [1.0, 2.0], "c": [3.0, 1e300 / 1e298]}),
        # an unnamed tensor
        (tensor_model, {"": np.arange(8, dtype=np.float32).reshape(2, 2, 2) / 3}),
    ],
)
def test_inputs_of_every_type_are_replayed(answering, write, rows):
    model = write(answering.folder / "model")
    assert answering.replayed(model, rows).is_equal


def test_missing_text_is_fed_as_in_the_server(answering):
    section = numbers_section(
        graph_tensor("x", "str", -1, 1, columns=["x"], missing="⟨missing⟩"), dtype="str"
    )
    graph = "texts (string[N,1] x) => (string[N,1] y) { y = Identity(x) }"
    signature = [{"name": "x", "type": "string", "required": False}]
    model = write_model(answering.folder / "model", graph, signature, section)

    assert answering.replayed(model, {"x": ["a", None]}, nodes=1).is_equal


def test_nodes_of_a_text_model(answering):
    from tests.support.texts import text_model  # This module imports tokenizers.

    model = text_model(answering.folder / "model")
    replayed = answering.replayed(model, {"text": ["an apple", "a pear"]}, nodes=99, row=1)
    assert replayed.is_equal
    assert isinstance(replayed.nodes, list)
    assert replayed.nodes[-1].type == "float32 [1, 1]"


def test_graph_without_rows_is_one_row(answering):
    graph = "still (float[3] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }"
    model = write_model(answering.folder / "model", graph)

    replayed = answering.replayed(model, {"x": np.array([0.1, 0.2, 0.3], np.float32)}, nodes=5)

    assert replayed.is_equal
    assert isinstance(replayed.nodes, list)
    (total,) = replayed.nodes
    assert total.operator == "ReduceSum"
    assert total.output == "y"
    assert total.type == "float32 []"
    assert total.values == [pytest.approx(0.6)]


def test_largest_difference_has_its_index(answering):
    def change(outputs):
        outputs["label"][2] = 1 - outputs["label"][2]
        outputs["probabilities"][0, 1] = np.nextafter(outputs["probabilities"][0, 1], np.float32(2))
        outputs["probabilities"][1, 0] += np.float32(0.25)

    model = write_classifier(answering.folder / "model")

    label, probabilities = answering.replayed(model, ROWS, change=change).outputs
    assert (label.is_equal, label.index, {label.captured, label.computed}) == (False, (2,), {0, 1})
    assert (probabilities.is_equal, probabilities.index) == (False, (1, 0))
    assert np.subtract(probabilities.captured, probabilities.computed) == pytest.approx(0.25)  # type: ignore[call-overload]


def test_nan_is_equal_but_signed_zeros_differ(answering):
    model = answering.register(write_regressor(answering.folder / "model"))

    def negate(outputs):
        outputs["y"][1, 0] = -0.0

    rows = {"a": [float("nan"), 0.0], "b": [1.0, 0.0]}
    assert answering.replay(answering.answer(model, rows)).is_equal
    (compared,) = answering.replay(answering.answer(model, rows, change=negate)).outputs
    assert (compared.is_equal, compared.index, str(compared.captured)) == (False, (1, 0), "-0.0")


def test_numbers_widened_by_the_log_are_equal(answering):
    def widen(outputs):  # A compacted file of several versions has the wider type.
        outputs["probabilities"] = outputs["probabilities"].astype(np.float64)

    model = write_classifier(answering.folder / "model")
    assert answering.replayed(model, ROWS, change=widen).is_equal


def test_output_of_another_shape_differs(answering):
    model = write_regressor(answering.folder / "model")

    by_name = {
        output.column: output
        for output in answering.replayed(
            model, ROWS, change=lambda outputs: outputs.update(y=np.zeros(3), z=np.zeros(3))
        ).outputs
    }
    assert by_name["prediction"].captured == "float64 [3]"
    assert by_name["prediction"].computed == "not computed"
    assert not by_name["output.z"].is_equal


@pytest.mark.long
def test_contributions_of_a_sum_are_its_summands(answering):
    reference = {name: labelled(80, seed=5)[name] for name in ("a", "b")}
    model = write_regressor(answering.folder / "model", reference=reference)

    explanation = answering.replayed(model, ROWS, row=2).explanation

    assert explanation is not None
    assert not isinstance(explanation, Refused)
    assert [feature.name for feature in explanation.features] == ["a", "b"]
    assert explanation.values[0, 0, 0] == pytest.approx(2 * (ROWS["a"][2] - reference["a"].mean()))


def test_model_without_sample_rows_is_not_explained(answering):
    model = write_regressor(answering.folder / "model")
    replayed = answering.replayed(model, ROWS)
    assert replayed.is_equal
    assert isinstance(replayed.explanation, Refused)
    assert mentions(replayed.explanation.reason, "reference_data")


def test_intermediate_values_are_in_graph_order(answering):
    model = write_classifier(answering.folder / "model")

    replayed = answering.replayed(model, ROWS, row=1, nodes=3)

    assert isinstance(replayed.nodes, list)
    assert [(node.operator, node.output) for node in replayed.nodes] == [
        ("Identity", "z"),
        ("MatMul", "s"),
        ("Sigmoid", "p"),
    ]
    assert replayed.left_out == 4
    assert replayed.nodes[1].values == [pytest.approx(2 * ROWS["a"][1] - ROWS["b"][1])]


def test_loops_optional_outputs_and_external_weights(answering):
    graph = """deep (float[N,2] x) => (float[N,2] y) <float[2] w = {1.5, 2.5}, int64 three = {3}, \
bool go = {1}> {
      half = Dropout(x)
      best = Mul(half, w)
      y = Loop(three, go, best) <body = step (int64 i, bool c, float[N,2] s) => \
(bool d, float[N,2] t)
        { d = Identity(c)
          t = Add(s, s) }>
    }"""
    model = write_model(answering.folder / "model", graph)
    proto = onnx.load(model / "model.onnx")
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == "w")
    (model / "w.bin").write_bytes(np.array([1.5, 2.5], np.float32).tobytes())
    tensor.CopyFrom(
        onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    )
    tensor.external_data.add(key="location", value="w.bin")
    next(node for node in proto.graph.node if node.op_type == "Dropout").output.append("")
    onnx.save(proto, model / "model.onnx")
    answering.register(model)
    identity = answering.answer(model, {"x": np.array([[1.0, np.inf]], np.float32)})

    replayed = answering.replay(identity, nodes=20)

    assert replayed.is_equal
    assert isinstance(replayed.nodes, list)
    assert [node.output for node in replayed.nodes] == ["half", "best", "y"]
    assert replayed.nodes[2].values == [12.0, np.inf]
    assert replayed.nodes[2].infinite == 1
    assert not (model / "all-outputs.onnx").exists()


def test_masked_and_dropped_columns_are_refused(answering):
    model = answering.register(mixed_model(answering.folder / "model"))
    dropped = answering.answer(model, MIXED_ROWS, drop=("hour",))
    masked = answering.answer(model, MIXED_ROWS, mask=("carrier", "distance"))

    with refused(InvalidConfig, "hour", "capture.drop", "toys"):
        answering.replay(dropped)
    with refused(InvalidConfig, "carrier, distance", "capture.mask"):
        answering.replay(masked, CaptureSpec(mask=("carrier", "distance")))
    with refused(InvalidRequest, "distance"):  # The endpoint no longer masks any column.
        answering.replay(masked)


def test_dropped_column_is_not_a_missing_value(answering):
    optional = [
        {"name": "a", "type": "double"},
        {"name": "b", "type": "double", "required": False},
    ]
    graph = (
        "sum (double[N,2] x) => (double[N] y) <int64[1] one = {1}> { y = ReduceSum <keepdims = 0> "
        "(x, one) }"
    )
    section = numbers_section(
        graph_tensor("x", "float64", -1, 2, columns=["a", "b"]), dtype="float64", shape=()
    )
    model = answering.register(write_model(answering.folder / "model", graph, optional, section))
    identity = answering.answer(model, ROWS, drop=("b",))
    with refused(InvalidConfig, "b", "capture.drop"):
        answering.replay(identity, CaptureSpec(drop=("b",)))


def test_masked_and_dropped_outputs_are_not_compared(answering):
    model = answering.register(write_classifier(answering.folder / "model"))
    masked = answering.answer(model, ROWS, mask=("output.label",))  # The log names it `prediction`.
    mask = CaptureSpec(mask=("output.label",))
    assert answering.replay(masked, mask).outputs == [
        OutputComparison("output.probabilities", True)
    ]
    dropped = answering.replay(
        answering.answer(model, ROWS, drop=("prediction", "output.probabilities"))
    )
    assert (dropped.outputs, dropped.is_equal) == ([], False)


def test_unknown_prediction_id_lists_causes(answering):
    with refused(NotFound, "p-1", "capture.retention", "capture.fraction", "--failed"):
        find_request(answering.log, "p-1")


@pytest.mark.parametrize(
    ("prediction_id", "quoted"), [("", "''"), ("\x1b[31mx\ny", r"'\x1b[31mx\ny'")]
)
def test_hostile_id_is_quoted(answering, prediction_id, quoted):
    with refused(NotFound, quoted) as caught:
        find_request(answering.log, prediction_id)
    assert caught.value.message.isprintable()


def test_request_is_found_in_any_endpoint(answering):
    model = answering.register(write_regressor(answering.folder / "model"))
    identities = {name: answering.answer(model, ROWS, endpoint=name) for name in ("b", "a", "c")}
    for name, identity in identities.items():
        assert find_request(answering.log, identity)[0] == name
        assert len(find_request(answering.log, identity, name)[1]) == 3
    with refused(NotFound, identities["a"], "c"):
        find_request(answering.log, identities["a"], "c")


def test_unknown_row_is_refused(answering):
    model = write_regressor(answering.folder / "model")
    with refused(InvalidConfig, "--row 3", "0 to 2"):
        answering.replayed(model, ROWS, row=3)


def test_missing_versions_are_named(answering):
    model = answering.register(write_regressor(answering.folder / "model"))
    of_folder = answering.answer(model, ROWS, name="folder", version="unknown")
    deleted = answering.answer(model, ROWS)
    with refused(NotFound, "folder", "registry"):
        answering.replay(of_folder)
    with refused(InvalidConfig, "models:/toy/1", "--nodes"):
        answering.replay(deleted, debug=True)
    answering.client.delete_registered_model("toy")
    with refused(NotFound, "toy"):
        answering.replay(deleted)


@pytest.fixture(scope="module")
def pyfuncs(tmp_path_factory):
    return save_pyfuncs(
        tmp_path_factory.mktemp("pyfuncs"), ["days", "gaps", "bytes", "tensors", "nested"]
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("days", {"when": ["2013-07-01", "2013-07-02"], "name": ["a", "b"]}),
        ("gaps", {"text": ["a", None], "when": ["2013-07-01", None]}),
        ("bytes", {"blob": ["AAEC", "AA=="], "extra": [1.5, None]}),
        ("tensors", {"a": np.ones((2, 2), np.float32), "b": np.array([1, 2])}),
    ],
)
def test_pyfunc_is_replayed(answering, pyfuncs, name, rows):
    model = answering.register(pyfuncs[name], name)
    replayed = answering.replay(answering.answer(model, rows, name=name), nodes=5)
    assert replayed.is_equal
    assert isinstance(replayed.explanation, Refused)
    assert isinstance(replayed.nodes, Refused)


@pytest.mark.long
def test_pyfunc_of_objects_is_refused(answering, pyfuncs):
    model = pyfuncs["nested"]
    rows = {"points": [[1.0, 2.0]], "place": [{"name": "x", "height": 2}], "tags": [["u", "v"]]}
    with refused(InvalidConfig, "signature"):
        answering.replayed(model, rows)


def test_graph_of_constants_has_no_nodes(answering):
    graph = "still (float[N,1] x) => (float[1] y) { y = Constant <value_floats = [1.0]> () }"
    model = write_model(answering.folder / "model", graph)
    replayed = answering.replayed(model, {"x": np.zeros((1, 1), np.float32)})
    assert replayed.nodes == []


def test_empty_output_is_equal(answering):
    graph = """boxes (float[N,2] x) => (float[N,0,4] y) <int64[1] zero = {0}, int64[1] one = {1}> {
      none = Slice(x, zero, zero, one)
      two = Constant <value_ints = [2]> ()
      wide = Unsqueeze(none, two)
      size = Constant <value_ints = [1, 1, 4]> ()
      y = Expand(wide, size)
    }"""
    model = write_model(answering.folder / "model", graph)
    assert answering.replayed(model, {"x": np.ones((2, 2), np.float32)}).is_equal
