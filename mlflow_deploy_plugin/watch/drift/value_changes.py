"""The change of the values of a column, or of the rows, in words. It is read from a
sample of the reference and a sample of the window, because the sketches have no single
values.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues

_FEW = 5
"""The number of different numbers that are named like categories."""
_LONGEST = 80
_FREQUENT = 0.05
_RARE = 0.01
"""The share in the reference up to which a frequent number is frozen."""
_ERRORS = 4
"""The standard errors by which a share must exceed that in the reference."""
_FACTORS = (0.001, 0.01, 0.1, 10, 100, 1_000, 60, 3_600, 1.609344, 2.54, 0.45359237, 0.3048)
_UNITS = {
    "": (1.0, 0.0),
    "× 1.8 + 32": (1.8, 32.0),
    "÷ 1.8 - 17.78": (1 / 1.8, -32 / 1.8),
    "+ 273.15": (1.0, 273.15),
    "- 273.15": (1.0, -273.15),
    **{f"× {factor}": (factor, 0.0) for factor in _FACTORS},
}
"""The common changes of unit: a factor and a number that is added."""
_FITS = 0.3
"""The largest error of the quantiles, in widths of 90 % of the values; the error
without a change of unit must be ten times larger.
"""


@np.errstate(all="ignore")
def describe_values(before: ColumnValues, now: ColumnValues) -> str:
    """Return how the values have changed, such as `rounded to integers`; empty if no
    simple change explains them.
    """
    old, new = (pd.Series(column.values).dropna() for column in (before, now))
    usual = old.value_counts(normalize=True)
    shares = new.value_counts(normalize=True)
    if before.kind != now.kind or usual.empty or len(shares) < 2:
        return ""
    if len(usual) == 1:
        return f"constant {str(usual.index[0])[:_LONGEST]} until now, varies since"
    has_few = now.kind == "category" or len(usual) <= _FEW
    earlier = usual.reindex(shares.index, fill_value=0.0)
    # New values have a check of their own, except those between other numbers.
    rises = (shares - earlier)[(earlier > 0) | (not has_few)]
    least = np.maximum(earlier, _ERRORS * np.sqrt(earlier / len(new)))
    rises = rises[rises >= least[rises.index]].nlargest(2)
    named = ""
    if len(rises) and (has_few or rises.iloc[0] > max(_FREQUENT, 3 * rises.iloc[1:].sum())):
        value = rises.index[0]
        named = repr(value[:_LONGEST]) if now.kind == "category" else f"{value:.6g}"
        if has_few or earlier[value] > _RARE:
            named += f" {earlier[value]:.1%} → {shares[value]:.1%}, more often"
        else:
            named = f"frozen at {named} in {(now.values == value).mean():.0%} of the rows"
    if now.kind == "category" or (named and has_few):
        return named
    decimals = _decimals(new.to_numpy())
    if decimals < _decimals(old.to_numpy()):
        if decimals == 0:
            return "rounded to integers"
        return f"rounded to multiples of {10.0**-decimals:,g}"
    return named or describe_unit(old.to_numpy(), new.to_numpy())


def _decimals(values: Array) -> int:
    """Return the smallest number of decimals, from -3 to 3, that nearly all values have
    in the precision of float32.
    """
    for decimals in range(-3, 3):
        scaled = values * 10.0**decimals
        if (np.abs(scaled - np.rint(scaled)) < 1e-3).mean() > 1 - _FREQUENT:
            return decimals
    return 3


def describe_unit(old: Array, new: Array) -> str:
    """Return the change of unit, such as `each value × 1.8 + 32`, that explains the
    quantiles of the numbers; empty if none does.
    """
    before, now = (np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)) for values in (old, new))
    width = max(float(np.ptp(before)), 1e-300)
    errors = {
        unit: float(np.abs(now - factor * before - added).max()) / factor / width
        for unit, (factor, added) in _UNITS.items()
    }
    unit = min(errors, key=errors.__getitem__)
    return f"each value {unit}" if errors[unit] < min(_FITS, errors[""] / 10) else ""


def describe_repeats(before: Mapping[str, ColumnValues], now: Mapping[str, ColumnValues]) -> str:
    """Return the share of different rows that occur again; empty if they are few, or if
    rows of the reference also do.
    """
    shares = []
    for columns in (before, now):
        rows = pd.DataFrame({name: column.values for name, column in columns.items()})
        shares.append(float((rows.value_counts(dropna=False) > 1).mean()))
    usual, repeated = shares
    if repeated < _FREQUENT or usual > _FREQUENT / 2:
        return ""
    return f"{repeated:.0%} of the rows twice or more"
