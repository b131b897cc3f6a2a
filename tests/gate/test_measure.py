import numpy as np
import pytest

from mlflow_deploy_plugin.errors import InferenceError
from mlflow_deploy_plugin.gate.measure import measure, ratio
from support.gated import COLUMNS, labelled, write_classifier


def test_two_versions_are_measured_in_turns(tmp_path):
    small = write_classifier(tmp_path / "small")
    slow = write_classifier(
        tmp_path / "slow",
        extra="""zero = Constant <value = int64[1] {0}> ()
        big = RandomNormal <shape = [4000, 1000], dtype = 11> ()
        first = Gather <axis = 0> (x, zero)
        total = ReduceSum <keepdims = 0> (big)
        none = Sub(total, total)
        z = Add(x, none)""",
    )
    rows = {name: values for name, values in labelled(20).items() if name in COLUMNS}
    plain, costly = measure([small, slow], rows, 8, rounds=2)
    assert len(plain.rows) == len(plain.batches) == 2
    assert ratio(costly.rows, plain.rows) > 5
    assert costly.memory - plain.memory > 10e6  # 32 MB of random numbers


def test_a_model_that_cannot_answer_says_why(tmp_path):
    folder = write_classifier(tmp_path / "model")
    with pytest.raises(InferenceError, match=r"that measures the model has ended: .*column 'b' is missing"):
        measure([folder], {"a": np.zeros(3)}, 8, rounds=1)
