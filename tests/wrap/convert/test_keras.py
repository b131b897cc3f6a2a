"""Tests of Keras 3 with the torch backend. For another backend, run
`KERAS_BACKEND=tensorflow pytest …`.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from tests.support.refusals import mentions

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pandas as pd
import pytest

if TYPE_CHECKING:
    import keras
else:
    pytest.importorskip(os.environ["KERAS_BACKEND"])
    keras = pytest.importorskip("keras")

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.wrap.convert.converters import load_file
from mlflow_deploy_plugin.wrap.flavor.save import load_model, save_model
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap

pytestmark = pytest.mark.filterwarnings("ignore")
layers = keras.layers


def _floats(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(8, activation="relu")
        self.drop = layers.Dropout(0.5)
        self.head = layers.Dense(2)

    def call(self, rows: Any, training: bool = False) -> Any:
        return self.head(self.drop(self.hidden(rows), training=training))


class TwoSubclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, rows: Any) -> Any:
        return self.head(rows["left"]) + rows["right"]


class NamedSubclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, left: Any, right: Any) -> Any:
        return self.head(left) + right


def _sequential(shape, *parts, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *parts])


def _two_inputs():
    left = keras.Input((4,), name="left")
    right = keras.Input((3,), name="right")
    both = layers.Concatenate()([layers.Dense(5, activation="relu")(left), right])
    return keras.Model(
        [left, right], [layers.Dense(2, name="mean")(both), layers.Dense(1, name="spread")(both)]
    )


def _normalised():
    scaled = layers.Normalization()
    scaled.adapt(_floats(50, 4) * 7 + 3)
    return _sequential((4,), scaled, layers.Dense(2))


def _masked():
    return _sequential(
        (6,),
        layers.Embedding(20, 4, mask_zero=True),
        layers.LSTM(5),
        layers.Dense(2),
        dtype="int64",
    )


CASES: dict[str, tuple[Callable[[], Any], Any]] = {
    "subclassed": (Subclassed, _floats(20, 4)),
    "several subclassed": (TwoSubclassed, {"left": _floats(20, 4), "right": _floats(20, 2)}),
    "several parameters": (NamedSubclassed, {"left": _floats(20, 4), "right": _floats(20, 2)}),
    "functional": (_two_inputs, {"right": _floats(20, 3), "left": _floats(20, 4)}),
    "normalised": (_normalised, _floats(20, 4).astype(np.float64)),
    "masked tokens": (_masked, np.random.default_rng(0).integers(0, 20, (20, 6))),
    "table": (_normalised, pd.DataFrame(_floats(20, 4), columns=list("abcd"))),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.long] if case == "masked tokens" else [])
        for case in CASES
    ],
)
def test_a_model_is_served_as_onnx_and_answers_every_batch_size(case, tmp_path):
    make, example = CASES[case]
    keras.utils.set_random_seed(0)
    net = make()

    save_model(net, tmp_path / "model", input_example=example)

    model = load_model(str(tmp_path / "model"))
    assert model.artifact.framework == "keras"
    assert model.artifact.parity_state == "proven"
    for rows in (1, 2, 7):
        few = (
            {name: part[:rows] for name, part in example.items()}
            if isinstance(example, dict)
            else example[:rows]
        )
        inputs = few.to_numpy() if isinstance(few, pd.DataFrame) else few
        inputs = [few["left"], few["right"]] if case == "functional" else inputs
        answer = net(**few) if case == "several parameters" else net(inputs)
        wanted = [keras.ops.convert_to_numpy(array) for array in keras.tree.flatten(answer)]
        feeds = (
            {"": few}
            if isinstance(few, np.ndarray)
            else {name: np.asarray(few[name]) for name in few}
        )
        outputs = model.run(model.schema.from_columns(feeds))
        for array, name in zip(
            wanted, ["mean", "spread"] if case == "functional" else ["output"], strict=True
        ):
            np.testing.assert_allclose(outputs[name], array, atol=1e-5)


class OfAMapping(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, rows: Any) -> Any:
        return self.head(rows["left"])


def _of_mappings():
    inputs = {"right": keras.Input((3,), name="right"), "left": keras.Input((4,), name="left")}
    return keras.Model(
        inputs,
        {
            "twice": layers.Dense(2)(inputs["left"]),
            "both": layers.Concatenate()([*inputs.values()]),
        },
    )


MAPPINGS = {
    "functional": (_of_mappings, {"left": _floats(20, 4), "right": _floats(20, 3)}),
    "subclassed": (OfAMapping, {"left": _floats(20, 4)}),
}


@pytest.mark.long
@pytest.mark.parametrize("case", MAPPINGS)
def test_a_mapping_is_taken_as_the_model_takes_it(case):
    make, example = MAPPINGS[case]
    net = make()
    wanted = net(example)

    wrapped = wrap(net, example)

    assert wrapped.report.state == "proven"
    assert wrapped.converted.prediction == (tuple(wanted) if case == "functional" else ("output",))


@pytest.mark.long
def test_outputs_of_one_name_are_all_answered():
    steps = keras.Input((5, 3))
    net = keras.Model(steps, layers.GRU(4, return_sequences=True, return_state=True)(steps))

    wrapped = wrap(net, _floats(20, 5, 3))

    assert [output.shape for output in wrapped.converted.outputs] == [(-1, 5, 4), (-1, 4)]
    assert wrapped.converted.prediction == ("output_0", "output_1")


@pytest.mark.long
def test_sizes_that_the_model_leaves_free_are_free():
    tokens = keras.Input((None, 8))
    attended = layers.LayerNormalization()(tokens + layers.MultiHeadAttention(2, 4)(tokens, tokens))

    wrapped = wrap(keras.Model(tokens, attended), _floats(20, 5, 8))

    assert wrapped.converted.inputs[0].shape == (-1, -1, 8)
    assert wrapped.signature.outputs.inputs[0].shape == (-1, -1, 8)
    assert wrapped.report.sources["other sizes"] > 0


@pytest.mark.long
def test_a_file_of_keras_is_a_model(tmp_path):
    _two_inputs().save(tmp_path / "net.keras")

    wrapped = wrap(load_file(tmp_path / "net.keras"), [_floats(20, 4), _floats(20, 3)])

    assert wrapped.report.state == "proven"
    assert [entry.name for entry in wrapped.converted.inputs] == ["left", "right"]


def test_unknown_inputs_are_named():
    with pytest.raises(InvalidConfig, match=r"\['left', 'middle'\].*\['left', 'right'\]"):
        wrap(_two_inputs(), {"left": _floats(4, 4), "middle": _floats(4, 3)})


@pytest.mark.parametrize(
    ("example", "function", "said"),
    [
        (None, "predict", "needs an example for the shapes"),
        (_floats(4, 4), "predict_proba", "has only predict"),
    ],
)
def test_a_missing_example_or_predict_function_is_refused(example, function, said):
    with pytest.raises(InvalidConfig, match=said):
        wrap(_normalised(), example, WrapOptions(predict_fn=function))


@pytest.mark.long
@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_a_missing_keras_backend_names_the_extra_to_install(tmp_path):
    code = (
        "import sys; from mlflow_deploy_plugin.wrap.convert.converters import load_file; "
        "load_file(sys.argv[1])"
    )
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}

    command = [sys.executable, "-c", code, str(tmp_path / "net.keras")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert mentions(done.stderr, "net.keras", "'mlflow-onnxserve[tensorflow]'", "another backend")
