"""A reference without windows, whose rows do not depend on each other: its windows are
random rows.

It is used if the monitor's spec declares that rows are independent, or for two files
without event times.
"""

from dataclasses import replace

import numpy as np

from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US
from mlflow_deploy_plugin.serve.runtime.feeds import sample_positions
from mlflow_deploy_plugin.watch.drift.references.windows import (
    DriftReference,
    ReferencePieces,
    WindowGrid,
    cut_windows,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile

RANDOM_WINDOWS = 90
"""The number of random windows, which begin one hour apart."""
END_US = RANDOM_WINDOWS * HOUR_US
"""The end of the last random window."""
_MOST_ROWS = 200_000
"""The maximum number of rows that are divided, which takes about three seconds."""
_FEWEST_PARTS = 8
_SEED = 0
"""The seed of the division, so that a reference always has the same windows."""


def with_random_windows(reference: DriftReference, rows: int) -> DriftReference:
    """Return the reference with windows of `rows` random rows. The values of a window
    are compared with all other rows, so a window has at most an eighth of the rows. A
    sample with few rows is divided repeatedly.
    """
    positions = sample_positions(len(reference.sample), _MOST_ROWS, _SEED)
    sample = reference.sample.take(positions)
    size = max(min(rows, len(sample) // _FEWEST_PARTS), 1)
    parts = len(sample) // size
    rng = np.random.default_rng(_SEED)
    windows: list[Profile] = []
    while len(windows) < RANDOM_WINDOWS:
        part_of_row = rng.permutation(len(sample)) % parts
        selected = np.arange(min(parts, RANDOM_WINDOWS - len(windows)))
        windows += cut_windows(reference.bins, sample, part_of_row, selected)
    grid = WindowGrid(
        start_us=0,
        length_us=HOUR_US,
        windows=RANDOM_WINDOWS,
        window_steps=1,
        max_windows=RANDOM_WINDOWS,
        keeps_steps=False,
    )
    starts_us = grid.starts_us(np.arange(RANDOM_WINDOWS))
    pieces = ReferencePieces(tuple(windows), starts_us, (), grid, reference.pieces.total)
    return replace(reference, pieces=pieces)
