import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.errors import InferenceError
from mlflow_deploy_plugin.gate.measure import measure_costs, median_ratio
from tests.support.classifiers import COLUMNS, labelled, write_classifier


@pytest.fixture
def many_open_files() -> Iterator[None]:
    """A process whose next files have numbers above 1,023, as a server with a thousand connections is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    opened: list[int] = []
    try:
        while not opened or opened[-1] < 1024:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_versions_are_measured_in_turns(tmp_path: Path) -> None:
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
    plain, costly = measure_costs([small, slow], rows, 8, rounds=2)
    assert len(plain.rows) == len(plain.batches) == 2
    assert median_ratio(costly.rows, plain.rows) > 5
    assert costly.memory - plain.memory > 10e6  # 32 MB of random numbers


def test_a_model_that_cannot_answer_says_why(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model")
    with pytest.raises(InferenceError, match=r"the model cannot be measured: .*column 'b' is missing"):
        measure_costs([folder], {"a": np.zeros(3)}, 8, rounds=1)


@pytest.mark.usefixtures("many_open_files")
def test_a_model_is_measured_by_a_process_with_more_than_a_thousand_open_files(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "model")
    rows = {name: values for name, values in labelled(3).items() if name in COLUMNS}
    (cost,) = measure_costs([folder], rows, 8, rounds=1)
    assert len(cost.rows) == 1
