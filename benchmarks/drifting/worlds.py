"""Simulated rows, and the reference of a monitor."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlflow_deploy_plugin.core.column_names import EVENT_TIME
from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference, cut_pieces
from mlflow_deploy_plugin.watch.drift.sketches.bins import bins_digest

Array = npt.NDArray[Any]

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows and their event times, microseconds since 1970."""

    table: pa.Table
    times: Array


def reference_of(
    rows: Rows, start_us: int, length_us: int, has_times: bool = True
) -> DriftReference:
    """Return the reference of a monitor whose windows have this phase and length."""
    bins, notes = freeze_table(rows.table, (), "the rows")
    times = pa.array(rows.times, pa.timestamp("us", tz="UTC"))
    pieces = cut_pieces(bins, rows.table, rows.times if has_times else None, start_us, length_us)
    logged = rows.table.append_column(EVENT_TIME, times) if has_times else rows.table
    return DriftReference(bins, bins_digest(bins), pieces, logged, notes=tuple(notes))


def independent_rows(rng: np.random.Generator, count: int) -> pa.Table:
    """Return independent rows with eight columns of all kinds,
    two of them correlated.
    """
    first = rng.normal(size=count)
    gaps = rng.normal(size=count)
    gaps[rng.random(count) < 0.05] = np.nan
    return pa.table(
        {
            "normal": first,
            "alike": 0.8 * first + 0.6 * rng.normal(size=count),
            "skewed": rng.lognormal(0, 1, count),
            "count": rng.poisson(3, count),
            "gaps": gaps,
            "four": _texts(rng.choice(4, count, p=[0.4, 0.3, 0.2, 0.1])),
            "many": _texts(np.minimum(rng.zipf(1.7, count), 500)),
            "flag": rng.random(count) < 0.2,
        },
    )


def _texts(codes: Array) -> pa.Array:
    """Return the texts c0, c1, … without a loop over the rows."""
    names, inverse = np.unique(codes, return_inverse=True)
    texts = pa.array([f"c{name}" for name in names], pa.string())
    indices = pa.array(inverse.astype(np.int32))
    return pa.DictionaryArray.from_arrays(indices, texts).dictionary_decode()
