"""The limits of single windows: heavy tails have higher limits, and the figures of a
monitor share what is known about their tails.
"""

import numpy as np
import pytest

from mlflow_deploy_plugin.watch.sequential.tails import Tails

FIGURES = 30
KINDS = ["level"] * FIGURES


def innovations(freedom=0, windows=90):
    """Return innovations with a variance of 1 and normal tails, or Student's."""
    rng = np.random.default_rng(0)
    if not freedom:
        return rng.normal(size=(windows, FIGURES))
    return rng.standard_t(freedom, (windows, FIGURES)) * np.sqrt(1 - 2 / freedom)


def limits(values, p_value):
    return Tails(values, 1, KINDS).limits(np.full(FIGURES, p_value))


def test_limits_of_normal_figures_are_quantiles():
    # 3.09 for a known deviation, a little more for one that is estimated
    assert np.median(limits(innovations(), 1e-3)) == pytest.approx(3.2, abs=0.2)
    assert np.median(limits(innovations(), 1e-5)) == pytest.approx(4.6, abs=0.4)


def test_limits_of_heavy_tails_are_rarely_exceeded():
    heavy = limits(innovations(3), 1e-4)

    assert np.median(heavy) > 8
    later = np.random.default_rng(1).standard_t(3, (20_000, FIGURES)) / np.sqrt(3)
    assert 0 < (later > heavy).mean() < 1.5e-4


def test_smaller_reference_has_higher_limits():
    assert (limits(innovations(windows=20), 1e-4) > limits(innovations(), 1e-4)).all()


def test_constant_figure_has_a_limit():
    values = innovations()
    values[:, 0] = 0

    assert limits(values, 1e-5)[0] > 3


@pytest.mark.parametrize("p_value", [1e-2, 1e-4, 1e-6])
def test_limit_has_the_stated_probability(p_value):
    tails = Tails(innovations(5), 7, KINDS)
    found = tails.limits(np.full(FIGURES, p_value))

    assert tails.p_values(found) == pytest.approx(np.full(FIGURES, p_value), rel=0.1)
    grid = np.geomspace(2.0, 500.0, 400)
    logs = np.log(tails.p_values(np.repeat(grid[:, None], FIGURES, axis=1)))
    assert found.tolist() == [np.interp(-np.log(p_value), -each, grid) for each in logs.T]


def test_limits_ignore_tails_of_other_kinds():
    mixed = innovations()
    mixed[:, 15:] = innovations(3)[:, 15:]
    kinds = ["level"] * 15 + ["outside"] * 15

    own = Tails(mixed, 1, kinds).limits(np.full(FIGURES, 1e-5))

    assert np.median(own[:15]) == pytest.approx(4.6, abs=0.5)
    assert np.median(own[15:]) > 10


@pytest.mark.parametrize(("freedom", "limit"), [(0, 4.4), (3, 28)])
def test_quiet_outside_shares_use_level_tails(freedom, limit):
    mixed = innovations(freedom)
    mixed[:, 15:] = 0
    kinds = ["level"] * 15 + ["outside"] * 15

    of_outside = Tails(mixed, 1, kinds).limits(np.full(FIGURES, 1e-5))[15:]

    assert of_outside == pytest.approx(np.full(15, limit), rel=0.3)


@pytest.mark.parametrize("usual", [0.0, 1.0])
@pytest.mark.parametrize(
    ("share", "is_regular", "limit"), [(0.4, False, 0.6), (0.8, False, 0.75), (0.4, True, 0.05)]
)
def test_shares_exceed_bursts_of_others(usual, share, is_regular, limit):
    values = innovations() * np.where(np.arange(FIGURES), usual, 1)
    if not is_regular:
        values[:, 0] /= 5
        values[::30, 0] = 5
    deviations = np.full(FIGURES, 0.005)
    deviations[0] = share / 5

    quiet = Tails(values, 1, ["missing"] * FIGURES, deviations).limits(np.full(FIGURES, 1e-5))

    assert quiet[1] * deviations[1] == pytest.approx(limit, rel=0.8 if is_regular else 0.01)
