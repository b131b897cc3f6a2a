"""The change of the values of a column, or of the rows, in words. It is read from a
sample of the reference and a sample of the window, because the sketches have no single
values.
"""

from collections import Counter
from itertools import product

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues

_FEWEST = 30
_FREQUENT = 0.05
"""The share from which a value is frequent, and below which few rows are repeated."""
_RARE = 0.01
_ERRORS = 4
"""The standard errors by which a share must exceed that in the reference."""
_FEW = 5
"""The number of different numbers that are named like categories."""
_FACTORS = (10, 100, 1_000, 1e6, 12, 24, 60, 3_600, 1.609344, 2.54, 0.45359237, 0.3048)
_UNITS = (
    (1.8, 32.0),
    (1 / 1.8, -32 / 1.8),
    (1.0, 273.15),
    (1.0, -273.15),
    *((float(factor) ** power, 0.0) for factor, power in product(_FACTORS, (1, -1))),
)
"""The common changes of unit: a factor and a number that is added."""
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_FITS = 0.3
"""The largest error of the quantiles, in widths of 90 % of the values; the error
without a change of unit must be ten times larger.
"""
_DECIMALS = (-3, -2, -1, 0, 1, 2)


def describe_values(before: ColumnValues, now: ColumnValues) -> str:
    """Return how the values have changed, such as `rounded to integers`; empty if no
    simple change explains them.
    """
    old, new = (column.values[~pd.isna(column.values)] for column in (before, now))
    if before.kind != now.kind or min(len(old), len(new)) < _FEWEST:
        return ""
    usual = {value: rows / len(old) for value, rows in Counter(old.tolist()).items()}
    values, rows = zip(*Counter(new.tolist()).most_common(), strict=True)
    if len(values) == 1:
        return ""
    if len(usual) == 1:
        return f"constant {old[0]} until now, varies since"
    shares = np.array(rows) / len(new)
    earlier = np.array([usual.get(value, 0.0) for value in values])
    is_number = now.kind == "number"
    if not is_number or len(usual) <= _FEW:
        # New values have a check of their own.
        rises = np.where(earlier > 0, shares - earlier, 0)
        rises[rises < _ERRORS * np.sqrt(earlier / len(new))] = 0
        index = int(np.where(rises >= earlier, rises, 0).argmax())
        if rises[index] > 0:
            name = f"{values[index]:g}" if is_number else repr(values[index])
            return f"{name} {earlier[index]:.1%} → {shares[index]:.1%}, more often"
    if not is_number:
        return ""
    for decimals in _DECIMALS:
        is_round, was_round = (_share_rounded(numbers, decimals) for numbers in (new, old))
        if is_round == 1 and was_round < 0.5:
            unit = f"multiples of {10.0**-decimals:,g}" if decimals else "integers"
            return f"rounded to {unit}"
    if shares[0] > max(_FREQUENT, 3 * shares[1]) and earlier[0] < _RARE:
        return f"frozen at {values[0]:.6g} in {shares[0]:.0%} of the rows"
    return describe_unit(new, old)


def _share_rounded(values: Array, decimals: int) -> float:
    """Return the share of values that have at most this number of decimals, in the
    precision of float32.
    """
    scaled = values * 10.0**decimals
    return float((np.abs(scaled - np.rint(scaled)) < 1e-3).mean())


def describe_unit(new: Array, old: Array) -> str:
    """Return the change of unit, such as `each value × 1.8 + 32`, that explains the
    quantiles of the numbers; empty if none does, or if they have hardly changed.
    """
    before, now = (np.quantile(values, _QUANTILES) for values in (old, new))
    width = max(float(np.ptp(before)), 1e-300)
    errors = {
        (factor, added): float(np.abs(now - factor * before - added).max()) / (factor * width)
        for factor, added in ((1.0, 0.0), *_UNITS)
    }
    factor, added = min(errors, key=lambda unit: errors[unit])
    if errors[factor, added] > min(_FITS, errors[1.0, 0.0] / 10):
        return ""
    text = f"each value × {factor:.6g}"
    if added:
        text += f" {'+' if added > 0 else '-'} {abs(added):.6g}"
    return text.replace("× 1 ", "")


def describe_repeats(before: pd.DataFrame, now: pd.DataFrame) -> str:
    """Return the share of different rows that occur again; empty if they are few, or if
    rows of the reference also do.
    """
    usual, repeated = (
        float((rows.value_counts(dropna=False) > 1).mean()) for rows in (before, now)
    )
    if repeated < _FREQUENT or usual > _FREQUENT / 2:
        return ""
    return f"{repeated:.0%} of the rows twice or more"
