"""Tests of Keras 3 with the torch backend. For another backend, run
`KERAS_BACKEND=tensorflow pytest …`.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tests.support.refusals import mentions, refused

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
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap
from tests.wrap.conftest import cases, proven

pytestmark = pytest.mark.filterwarnings("ignore")
layers = keras.layers


def _floats(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(8, activation="relu")
        self.drop = layers.Dropout(0.5)
        self.head = layers.Dense(2)

    def call(self, rows, training=False):
        return self.head(self.drop(self.hidden(rows), training=training))


class TwoSubclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, rows):
        return self.head(rows["left"]) + rows["right"]


class NamedSubclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, left, right):
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


LEFT = _floats(20, 4)
PAIR = {"left": LEFT, "right": _floats(20, 2)}
TRIPLE = {"right": _floats(20, 3), "left": LEFT}
CASES = {
    "subclassed": (Subclassed, LEFT),
    "several subclassed": (TwoSubclassed, PAIR),
    "several parameters": (NamedSubclassed, PAIR),
    "functional": (_two_inputs, TRIPLE),
    "normalised": (_normalised, LEFT.astype(np.float64)),
    "masked tokens": (_masked, np.random.default_rng(0).integers(0, 20, (20, 6))),
    "table": (_normalised, pd.DataFrame(LEFT, columns=list("abcd"))),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.long] if case == "masked tokens" else [])
        for case in CASES
    ],
)
def test_model_answers_every_batch_size(case, saved):
    make, example = CASES[case]
    keras.utils.set_random_seed(0)
    net = make()

    model = saved(net, example)

    assert model.artifact.framework == "keras"
    assert model.artifact.parity_state == "proven"
    for rows in (1, 2, 7):
        if isinstance(example, dict):
            few = {name: part[:rows] for name, part in example.items()}
        else:
            few = example[:rows]
        match case:
            case "functional":
                answer = net([few["left"], few["right"]])
            case "several parameters":
                answer = net(**few)
            case "table":
                answer = net(np.asarray(few))
            case _:
                answer = net(few)
        feeds = {"": few} if isinstance(few, np.ndarray) else {n: np.asarray(few[n]) for n in few}
        outputs = model.run(model.schema.from_columns(feeds))
        names = ["mean", "spread"] if case == "functional" else ["output"]
        for wanted, name in zip(keras.tree.flatten(answer), names, strict=True):
            array = keras.ops.convert_to_numpy(wanted)
            np.testing.assert_allclose(outputs[name], array, atol=1e-5)


class OfAMapping(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, rows):
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
    "functional": (_of_mappings, TRIPLE, ("twice", "both")),
    "subclassed": (OfAMapping, {"left": LEFT}, ("output",)),
}


@pytest.mark.long
@pytest.mark.parametrize(("make", "example", "outputs"), cases(MAPPINGS))
def test_mapping_is_an_input(make, example, outputs):
    assert proven(make(), example).converted.prediction == outputs


@pytest.mark.long
def test_outputs_of_one_name_are_numbered():
    steps = keras.Input((5, 3))
    net = keras.Model(steps, layers.GRU(4, return_sequences=True, return_state=True)(steps))

    converted = wrap(net, _floats(20, 5, 3)).converted

    assert [output.shape for output in converted.outputs] == [(-1, 5, 4), (-1, 4)]
    assert converted.prediction == ("output_0", "output_1")


@pytest.mark.long
def test_free_sizes_stay_free():
    tokens = keras.Input((None, 8))
    attended = layers.LayerNormalization()(tokens + layers.MultiHeadAttention(2, 4)(tokens, tokens))

    wrapped = wrap(keras.Model(tokens, attended), _floats(20, 5, 8))

    assert wrapped.converted.inputs[0].shape == (-1, -1, 8)
    assert wrapped.signature.outputs.inputs[0].shape == (-1, -1, 8)
    assert wrapped.report.sources["other sizes"] > 0


@pytest.mark.long
def test_keras_file_is_a_model(tmp_path):
    _two_inputs().save(tmp_path / "net.keras")

    wrapped = proven(load_file(tmp_path / "net.keras"), [LEFT, TRIPLE["right"]])

    assert [entry.name for entry in wrapped.converted.inputs] == ["left", "right"]


@pytest.mark.parametrize(
    ("make", "example", "function", "words"),
    [
        (_two_inputs, {"left": LEFT, "middle": LEFT}, "predict", ("['left', 'middle']",)),
        (_normalised, None, "predict", ("example",)),
        (_normalised, LEFT, "predict_proba", ("only predict",)),
    ],
)
def test_invalid_example_or_function_is_refused(make, example, function, words):
    with refused(InvalidConfig, *words):
        wrap(make(), example, WrapOptions(predict_fn=function))


@pytest.mark.long
@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_missing_backend_names_the_extra(tmp_path):
    code = (
        "import sys; from mlflow_deploy_plugin.wrap.convert.converters import load_file; "
        "load_file(sys.argv[1])"
    )
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}

    command = [sys.executable, "-c", code, str(tmp_path / "net.keras")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert mentions(done.stderr, "net.keras", "'mlflow-onnxserve[tensorflow]'", "another backend")
