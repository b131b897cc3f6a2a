import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlflow_deploy_plugin.serve.runtime.agreement import EXACT, LABELS, Tolerance, compare

SHAPES = arrays.array_shapes(max_dims=3, max_side=4)
FLOATS = arrays.arrays(st.sampled_from([np.float16, np.float32, np.float64]), SHAPES)
OBJECTS = st.sampled_from(["a", "b", None, float("nan")])
TEXTS = arrays.arrays(np.dtype(object), SHAPES, elements=OBJECTS)
INTEGERS = arrays.arrays(st.sampled_from([np.int64, np.uint8]), SHAPES)
SHARES = st.sampled_from([0.0, 1e-6, 1e-2])
KINDS = st.sampled_from(["f", "fiu", "fiub", ""])
TOLERANCES = st.builds(Tolerance, SHARES, SHARES, SHARES, st.booleans(), st.booleans(), KINDS)
ORDINARY = st.floats(-1e6, 1e6).filter(lambda number: abs(number) > 1e-3)
ROWS = arrays.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 3)), elements=ORDINARY)


@given(FLOATS | TEXTS | INTEGERS, TOLERANCES)
def test_output_agrees_with_itself(output, tolerance):
    agreement = compare(output, output.copy(), tolerance)
    assert agreement.is_same
    assert agreement.largest == 0.0
    assert agreement.differing_rows == 0


@given(
    ROWS,
    st.data(),
    st.sampled_from([(1e-6, 0.0, 0.0), (0.0, 1e-2, 0.0), (0.0, 0.0, 1e-2), (1e-3, 1e-4, 1e-5)]),
)
def test_change_is_allowed_within_tolerance(want, data, parts):
    row, column = data.draw(st.tuples(*[st.integers(0, size - 1) for size in want.shape]))
    allowed = parts[0] + parts[1] * abs(want[row, column]) + parts[2] * np.abs(want[row]).max()
    for factor in (0.9, -0.9, 1.1, -1.1):
        got = want.copy()
        got[row, column] += factor * allowed
        agreement = compare(want, got, Tolerance(*parts))
        assert agreement.excess[row, column] == pytest.approx(abs(factor), rel=1e-3)
        assert agreement.differing_rows == (abs(factor) > 1)
        assert agreement.is_same or agreement.worst == (row, column)


@given(ROWS, TOLERANCES, st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans())
def test_number_differs_from_nan_and_infinity(output, tolerance, value, is_expected):
    other = output.copy()
    other[0, 0] = value
    want, got = (other, output) if is_expected else (output, other)
    agreement = compare(want, got, tolerance)
    assert agreement.same.sum() == output.size - 1
    assert not agreement.same[0, 0]
    assert agreement.largest == (np.inf if tolerance.numbers else 1.0)


@pytest.mark.parametrize(
    ("want", "got", "tolerance", "differences", "same"),
    [
        ([0.0, 1.0], [-0.0, 1.0], EXACT, [0.0, 0.0], [True, True]),
        ([0.0, 1.0], [-0.0, 1.0], Tolerance(has_signed_zeros=True), [0.0, 0.0], [False, True]),
        ([np.inf, np.inf], [np.inf, -np.inf], Tolerance(1.0, 1.0), [0.0, np.inf], [True, False]),
        ([3, 5], [3, 9], EXACT, [0.0, 1.0], [True, False]),
        ([3, 5], [3, 9], Tolerance(numbers="fiu"), [0.0, 4.0], [True, False]),
        (
            [100.0, 102.0],
            [102.0, 100.0],
            Tolerance(relative=0.0197, is_symmetric=True),
            [2.0, 2.0],
            [True, True],
        ),
        ([3, 5], [3.0, 5.5], Tolerance(0.5), [0.0, 0.5], [True, True]),
        ([2**60], [2**60 + 1], Tolerance(numbers="fiu"), [0.0], [False]),
        (["a", "b"], ["a", "c"], Tolerance(1.0), [0.0, 1.0], [True, False]),
        ([1.0, 2.0], [1.0, 2.5], LABELS, [0.0, 1.0], [True, False]),
        ([1, 2], ["1", "2"], EXACT, [1.0, 1.0], [False, False]),
        (1.0, 1.5, EXACT, [0.5], [False]),
        (
            [[1.0], [2.0]],
            [[1.0, 1.0], [2.0, 2.0]],
            Tolerance(9.0),
            [np.inf, np.inf],
            [False, False],
        ),
        ([], [1.0, 2.0], Tolerance(9.0), [np.inf], [False]),
    ],
)
def test_values_are_numbers_or_labels(want, got, tolerance, differences, same):
    agreement = compare(np.array(want), np.array(got), tolerance)
    assert agreement.differences.tolist() == differences
    assert agreement.same.tolist() == same


def test_row_has_its_largest_difference():
    want = np.zeros((2, 3))
    got = np.array([[0.0, 0.5, 0.1], [0.0, 0.0, 0.25]])
    rows = compare(want, got, Tolerance(0.25)).by_row()
    assert rows.differences.tolist() == [0.5, 0.25]
    assert rows.excess.tolist() == [2.0, 1.0]
    assert rows.by_row() is rows
    assert compare(np.zeros((2, 0)), np.zeros((2, 0))).by_row().same.tolist() == [True, True]


def test_tolerance_may_differ_per_column():
    tolerance = Tolerance(absolute=np.array([1.0, 0.1]))
    agreement = compare(np.zeros((2, 2)), np.full((2, 2), 0.5), tolerance)
    assert agreement.same.tolist() == [[True, False], [True, False]]
