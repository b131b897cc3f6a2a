"""The bounds of shares equal scipy's for whole numbers of rows,
and accept fractions.
"""

import pytest
from scipy.stats import binomtest

from mlflow_deploy_plugin.wrap.evaluation.proportions import clopper_pearson_bounds, wilson_bounds


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (3, 200), (50, 100), (1_000, 1_000)])
@pytest.mark.parametrize("confidence", [0.9, 0.9995])
def test_bounds_are_those_of_scipy(hits, count, confidence):
    test = binomtest(hits, count)

    wilson = test.proportion_ci(confidence, "wilson")
    exact = test.proportion_ci(confidence, "exact")
    assert wilson_bounds(hits / count, count, confidence) == pytest.approx(
        (wilson.low, wilson.high)
    )
    assert clopper_pearson_bounds(hits, count, confidence) == pytest.approx((exact.low, exact.high))


def test_fractions_have_bounds_between():
    low, high = clopper_pearson_bounds(1.5, 30.5, 0.95)

    assert clopper_pearson_bounds(1, 30.5, 0.95)[0] < low < clopper_pearson_bounds(2, 30.5, 0.95)[0]
    assert (
        clopper_pearson_bounds(1, 30.5, 0.95)[1] < high < clopper_pearson_bounds(2, 30.5, 0.95)[1]
    )
