"""Tests of Keras 3 with the torch backend. For another backend, run
`KERAS_BACKEND=tensorflow pytest …`.
"""

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.wrap.convert.converters import load_file
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap
from tests.support.refusals import mentions, refused
from tests.wrap.conftest import cases, proven

pytestmark = [
    pytest.mark.long,  # Importing Keras and exporting a net takes seconds.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def nets():
    pytest.importorskip(os.environ["KERAS_BACKEND"])
    pytest.importorskip("keras")
    return import_module("tests.support.keras_nets")


def _floats(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


LEFT = _floats(20, 4)
PAIR = {"left": LEFT, "right": _floats(20, 2)}
TRIPLE = {"right": _floats(20, 3), "left": LEFT}
CASES = {
    "subclassed": ("Subclassed", LEFT),
    "several subclassed": ("TwoSubclassed", PAIR),
    "several parameters": ("NamedSubclassed", PAIR),
    "functional": ("two_inputs", TRIPLE),
    "masked tokens": ("masked", np.random.default_rng(0).integers(0, 20, (20, 6))),
    "table": ("normalised", pd.DataFrame(LEFT, columns=list("abcd"))),
}


@pytest.mark.parametrize("case", CASES)
def test_model_answers_every_batch_size(case, nets, saved):
    name, example = CASES[case]
    keras = nets.keras
    keras.utils.set_random_seed(0)
    net = getattr(nets, name)()

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


MAPPINGS = {
    "functional": ("of_mappings", TRIPLE, ("both", "twice")),
    "subclassed": ("OfAMapping", {"left": LEFT}, ("output",)),
}


@pytest.mark.parametrize(("name", "example", "outputs"), cases(MAPPINGS))
def test_mapping_is_an_input(name, example, outputs, nets):
    assert proven(getattr(nets, name)(), example).converted.prediction == outputs


def test_outputs_of_one_name_are_numbered(nets):
    keras = nets.keras
    steps = keras.Input((5, 3))
    net = keras.Model(steps, keras.layers.GRU(4, return_sequences=True, return_state=True)(steps))

    converted = wrap(net, _floats(20, 5, 3)).converted

    assert [output.shape for output in converted.outputs] == [(-1, 5, 4), (-1, 4)]
    assert converted.prediction == ("output_0", "output_1")


def test_free_sizes_stay_free(nets):
    keras = nets.keras
    tokens = keras.Input((None, 8))
    attended = keras.layers.LayerNormalization()(
        tokens + keras.layers.MultiHeadAttention(2, 4)(tokens, tokens)
    )

    wrapped = wrap(keras.Model(tokens, attended), _floats(20, 5, 8))

    assert wrapped.converted.inputs[0].shape == (-1, -1, 8)
    assert wrapped.signature.outputs.inputs[0].shape == (-1, -1, 8)
    assert wrapped.report.sources["other sizes"] > 0


def test_keras_file_is_a_model(nets, tmp_path):
    nets.two_inputs().save(tmp_path / "net.keras")

    wrapped = proven(load_file(tmp_path / "net.keras"), [LEFT, TRIPLE["right"]])

    assert [entry.name for entry in wrapped.converted.inputs] == ["left", "right"]


@pytest.mark.parametrize(
    ("name", "example", "function", "words"),
    [
        ("two_inputs", {"left": LEFT, "middle": LEFT}, "predict", ("['left', 'middle']",)),
        ("normalised", None, "predict", ("example",)),
        ("normalised", LEFT, "predict_proba", ("only predict",)),
    ],
)
def test_invalid_example_or_function_is_refused(name, example, function, words, nets):
    with refused(InvalidConfig, *words):
        wrap(getattr(nets, name)(), example, WrapOptions(predict_fn=function))


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
