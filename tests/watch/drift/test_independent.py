"""Files whose rows do not depend on each other keep the rate of false alarms, also if
they are small.
"""

import numpy as np
import pyarrow as pa
import pytest

from tests.watch.drift.test_verdict import reference_of, verdict_on


def normal_rows(rng: np.random.Generator, rows: int) -> pa.Table:
    return pa.table({"number": rng.normal(0, 1, rows), "name": rng.choice(["a", "b", "c"], rows)})


@pytest.mark.long
@pytest.mark.parametrize(
    ("reference_rows", "rows"),
    [
        (150, 50),
        (400, 400),
        (2_000, 200),
    ],
)
def test_few_calm_files_are_drift(reference_rows: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    states = []
    for _ in range(60):
        reference = reference_of(normal_rows(rng, reference_rows), None)
        verdict = verdict_on(normal_rows(rng, rows), reference, independent_rows=True)
        states.append(verdict.state)

    # At a rate of 5 %, the probability of more than eight is below 1 %.
    assert states.count("drift") <= 8
    assert states.count("not judged") == 0
