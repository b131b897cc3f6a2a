"""Tests that need TensorFlow, which is not a development dependency: run `pip install
tensorflow-cpu tf2onnx` first.
"""

import os
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
import pytest

if TYPE_CHECKING:
    import tensorflow as tf
else:
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("tf2onnx")

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.wrap.convert.converters import load_file
from mlflow_deploy_plugin.wrap.flavor.wrap import WrapOptions, wrap
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused
from tests.wrap.conftest import proven

ROWS = normal_rows(20, 4).astype(np.float32)
SPEC = tf.TensorSpec([None, 4], tf.float32, name="rows")


class Linear(tf.Module):
    def __init__(self):
        super().__init__()
        self.weights = tf.Variable(tf.random.stateless_normal([4, 2], [0, 1]))
        self.shift = tf.constant([3.0, -3.0])

    @tf.function(input_signature=[SPEC])
    def __call__(self, rows):
        return {"sum": tf.reduce_sum(rows, 1), "scores": rows @ self.weights + self.shift}


def _saved(tmp_path):
    tf.saved_model.save(Linear(), str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.mark.parametrize("form", ["module", "folder", "loaded"])
@pytest.mark.parametrize(
    "example", [ROWS, pd.DataFrame(ROWS, columns=list("abcd"))], ids=["array", "table"]
)
def test_module_is_proven_in_every_form(form, example, tmp_path):
    model = Linear() if form == "module" else _saved(tmp_path)
    model = tf.saved_model.load(str(model)) if form == "loaded" else load_file(model)

    converted = proven(model, example).converted

    assert [output.name for output in converted.outputs] == ["scores", "sum"]
    assert converted.inputs[0].shape == (-1, 4)


def test_function_takes_named_arrays():
    @tf.function
    def scaled(text, factor):
        return tf.cast(text, tf.float32) * factor

    def data(length):
        return {
            "text": np.arange(20 * length).reshape(20, length),
            "factor": np.ones((20, 1), np.float32),
        }

    wrapped = wrap(scaled, data(5), WrapOptions(parity_data=data(3)))

    assert {entry.name: (entry.dtype, entry.shape) for entry in wrapped.converted.inputs} == {
        "text": ("int64", (-1, -1)),
        "factor": ("float32", (-1, 1)),
    }


def test_unsupported_operation_is_named():
    @tf.function
    def cleaned(texts):
        return tf.strings.length(tf.strings.regex_replace(texts, "[0-9]+", "#"))

    with refused(ConversionError, "RegexReplace"):
        wrap(cleaned, np.array(["a1", "b22"] * 5, dtype=object))


def test_missing_input_is_named(tmp_path):
    with refused(InvalidConfig, "'rows' is missing"):
        wrap(load_file(_saved(tmp_path)), {"columns": ROWS})
