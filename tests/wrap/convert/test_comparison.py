import numpy as np
import pandas as pd
import pytest

from mlflow_deploy_plugin.serve.runtime.agreement import compare
from mlflow_deploy_plugin.wrap.convert.batch import Batch
from mlflow_deploy_plugin.wrap.convert.comparison import (
    answer_spread,
    changes_within_one_step,
    parity_tolerance,
    relative_errors,
    top_margins,
)
from tests.wrap.conftest import cases

CASES = {
    "equal labels": ("label", ["a", "b"], ["a", "b"], [0, 0]),
    "another label": ("label", ["a", "b"], ["a", "c"], [0, np.inf]),
    "several labels a row": ("label", [[1, 0], [1, 1]], [[1, 0], [1, 0]], [0, np.inf]),
    "labels that are floats": ("label", [1.0, 2.0], [1.0, 2.00001], [0, np.inf]),
    "probabilities within": ("probabilities", [[0.5, 0.5]], [[0.50005, 0.49995]], [0.5]),
    "probabilities beyond": ("probabilities", [[0.5, 0.5]], [[0.5003, 0.4997]], [3]),
    "small_probabilities": ("probabilities", [[0.0, 4e-10, 1.0]], [[0.0, 0.0, 1.0]], [997.78447]),
    "small_probabilities that 32 bits round": (
        "probabilities",
        np.array([[0.0, 1.0]], np.float32),
        [[2.0**-22, 1.0]],
        [0.5],
    ),
    "values by their size": ("values", [1000.0], [1000.05], [0.5]),
    "values that are integers": ("values", [1000, 1000], [1000, 1001], [0, 10]),
    "16-bit floats": (
        "values",
        np.array([1000.0], np.float16),
        np.array([1005.0], np.float16),
        [0.5],
    ),
    "one wrong value among many": ("values", [[1.0, 1000.0]], [[1.0, 1001.0]], [10]),
}


@pytest.mark.parametrize(("role", "want", "got", "excess"), cases(CASES))
def test_error_is_measured_in_tolerances(role, want, got, excess):
    agreement = compare(
        np.array(want), np.array(got), parity_tolerance(role, np.array(want), spread=0.0)
    )

    np.testing.assert_allclose(agreement.by_row().excess, excess, rtol=1e-5)


def test_small_values_are_measured_by_spread():
    want = np.array([0.0])

    agreement = compare(want, np.array([1e-3]), parity_tolerance("values", want, spread=10.0))

    assert agreement.excess[0] == pytest.approx(1.0)


@pytest.mark.filterwarnings("error")
def test_relative_errors_are_shares():
    want = np.array([[100.0, 2.0], [np.nan, 5.0]])
    got = np.array([[101.0, 2.5], [3.0, 5.0]])

    errors = relative_errors(compare(want, got), want)

    np.testing.assert_allclose(errors, [0.25, np.inf])
    tiny = np.array([0.0])
    huge = np.array([1e300])
    assert relative_errors(compare(tiny, huge), tiny).tolist() == [np.inf]
    labels = np.array([[1, 0], [1, 1]])
    assert relative_errors(compare(labels, labels[::-1]), labels).tolist() == [1.0, 1.0]


def test_margin_is_the_lead_of_the_best_label():
    np.testing.assert_allclose(
        top_margins(np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])), [0.2, 0.0]
    )
    np.testing.assert_allclose(top_margins(np.array([-0.3, 0.1])), [0.3, 0.1])


def test_spread_is_measured_per_value():
    answers = np.c_[np.arange(100.0), np.arange(100.0) / 10, np.full(100, 7.0)]

    by_value = answer_spread(answers)

    assert by_value[:2] == pytest.approx([np.std(answers[:, 0]), np.std(answers[:, 1])])
    # This is the resolution of 32-bit floats.
    assert by_value[2] == pytest.approx(np.std(answers) / 1000)


def test_spread_of_few_rows_is_common():
    assert answer_spread(np.array([[1.0, 3.0]])) == 1.0
    assert answer_spread(np.array([np.nan, np.inf])) == 0.0
    assert answer_spread(np.array(["a", "b"])) == 0.0


UNSTABLE = {
    "a table": (
        pd.DataFrame({"a": [0.5, 0.6, 0.5], "b": [1.0, 1.0, -1.0], "text": ["x", "y", "z"]}),
        [True, False, True],
    ),
    "nullable numbers": (
        pd.DataFrame({"a": pd.array([0.5, 0.6, None], dtype="Float64")}),
        [True, False, False],
    ),
    "a matrix": ({"": np.array([[0.5, 2.0], [0.7, 2.0]])}, [True, False]),
}


@pytest.mark.parametrize(("rows", "unstable"), cases(UNSTABLE))
def test_rows_on_an_edge_are_unstable(rows, unstable):
    def is_large(batch):
        if isinstance(batch.data, pd.DataFrame):
            assert batch.data.a.dtype == rows.a.dtype
            return (batch.data.a > 0.5).fillna(False).to_numpy(bool)
        return batch.data[""][:, 0] > 0.5

    original = is_large(Batch(rows))
    found = changes_within_one_step(
        Batch(rows), lambda moved, origin: is_large(moved) != original[origin]
    )

    assert found.tolist() == unstable


@pytest.mark.parametrize("values", [[1, 2], [3, 4, 5, 6, 999_999_999]])
def test_small_integers_are_not_moved(values):
    table = pd.DataFrame({"n": values})

    def answers_otherwise(moved, origin):
        small = np.array(values)[origin] < 1000
        return small & (moved.data.n.to_numpy() != np.array(values)[origin])

    assert not changes_within_one_step(Batch(table), answers_otherwise).any()


@pytest.mark.parametrize(
    ("dtype", "values", "down", "up"),
    [
        ("Int64", [5, 5, 100_000_000], [5, 5, 99_999_984], [5, 5, 100_000_016]),
        (
            "int64[pyarrow]",
            [5, 5, None, 100_000_000],
            [5, 5, None, 99_999_984],
            [5, 5, None, 100_000_016],
        ),
        (
            "Int64",
            [5, 5, None, 2**63 - 1],
            [5, 5, None, 2**63 - 1 - 2**41],
            [5, 5, None, 2**63 - 1],
        ),
        ("int32", [2**31 - 1, -(2**31)], [2**31 - 513, -(2**31)], [2**31 - 1, 512 - 2**31]),
        (
            "uint32",
            [0, 2**31, 2**32 - 1],
            [0, 2**31 - 512, 2**32 - 1025],
            [512, 2**31 + 512, 2**32 - 1],
        ),
    ],
)
def test_large_integers_stay_within_types(dtype, values, down, up):
    table = pd.DataFrame({"id": pd.Series(values, dtype=dtype)})
    tried = []

    def answers_otherwise(moved, origin):
        assert moved.data.id.dtype == table.id.dtype
        tried.extend(None if pd.isna(value) else int(value) for value in moved.data.id)
        return np.zeros(len(origin), bool)

    changes_within_one_step(Batch(table), answers_otherwise)

    assert tried == down + up


def test_wide_rows_are_moved_in_parts():
    sizes = []

    def answers_otherwise(moved, origin):
        sizes.append(len(origin))
        return moved.data[""][:, -1] > 1

    assert changes_within_one_step(Batch({"": np.ones((3, 500))}), answers_otherwise).all()
    assert sum(sizes) == 3 * 2 * 500
    assert max(sizes) <= 100
