"""The verdicts that others give of the same rows: Evidently's defaults, PSI and two-sample tests."""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from benchmarks.drifting.worlds import Array

PSI_LIMIT, P_LIMIT = 0.2, 0.05
"""PSI above 0.2 is customarily called a significant shift; p below 0.05 needs no source."""
_CELLS, _FLOOR, _CATEGORIES = 10, 1e-4, 50


def evidently(reference: pa.Table, current: pa.Table) -> tuple[bool, bool]:
    """Its preset with its own tests: half of the columns drifted (its verdict on the data set), any column drifted."""
    from evidently import DataDefinition, Dataset, Report  # takes seconds, and most of the benchmark does without
    from evidently.presets import DataDriftPreset

    left, right = _frames(reference, current)
    texts = [name for name in left if left[name].dtype == object]
    definition = DataDefinition(
        numerical_columns=[name for name in left if name not in texts], categorical_columns=texts
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snapshot = Report([DataDriftPreset()], include_tests=True).run(
            Dataset.from_pandas(right, data_definition=definition),
            Dataset.from_pandas(left, data_definition=definition),
        )
        value = snapshot.dict()["metrics"][0]["value"]
    return value["share"] >= 0.5, value["count"] >= 1


def psi(reference: pa.Table, current: pa.Table) -> bool:
    """The population stability index of some column is above 0.2: tenths of the reference, categories as they are."""
    left, right = _frames(reference, current)
    return any(_index(left[name], right[name]) > PSI_LIMIT for name in left)


def smallest_p(reference: pa.Table, current: pa.Table) -> tuple[float, int]:
    """Kolmogorov–Smirnov (numbers), chi-squared (categories): the smallest p-value and the number of columns."""
    left, right = _frames(reference, current)
    return min(_p_value(left[name], right[name]) for name in left), len(left.columns)


def _frames(reference: pa.Table, current: pa.Table) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both with the columns that have values on either side: one column of nothing ends the others' whole verdict."""
    left, right = _frame(reference), _frame(current)
    names = [name for name in left if name in right]
    return left[names], right[names]


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas()
    for name in frame:
        is_text = frame[name].dtype == bool or not pd.api.types.is_numeric_dtype(frame[name])
        frame[name] = frame[name].astype(str).astype(object) if is_text else frame[name].astype(float)
    filled = [name for name in frame if frame[name].dtype == object or frame[name].notna().any()]
    return frame[filled]


def _index(left: pd.Series, right: pd.Series) -> float:
    if left.dtype == object:
        counts = _counts(left, right)
    else:
        edges = np.unique(np.nanquantile(left, np.linspace(0, 1, _CELLS + 1)[1:-1]))
        counts = np.stack(
            [np.bincount(np.searchsorted(edges, one.dropna()), minlength=len(edges) + 1) for one in (left, right)]
        )
    shares = np.maximum(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), _FLOOR)
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def _p_value(left: pd.Series, right: pd.Series) -> float:
    if left.dtype == object:
        counts = _counts(left, right)
        counts = counts[:, counts.sum(axis=0) > 0]
        return float(stats.chi2_contingency(counts).pvalue) if counts.shape[1] > 1 else 1.0
    known = left.dropna().to_numpy(), right.dropna().to_numpy()
    return float(stats.ks_2samp(*known).pvalue) if min(map(len, known)) else 1.0


def _counts(left: pd.Series, right: pd.Series) -> Array:
    """[2, K] of the reference's most frequent categories and all others."""
    frequent = left.value_counts().index[:_CATEGORIES]
    counts = np.array([one.value_counts().reindex(frequent).fillna(0).to_numpy() for one in (left, right)])
    rest = [[len(one) - part.sum()] for one, part in zip((left, right), counts, strict=True)]
    return np.concatenate([counts, rest], axis=1)
