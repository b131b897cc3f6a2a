"""Files whose rows do not depend on each other keep the rate of false alarms, also if
they are small.
"""

import numpy as np
import pyarrow as pa
import pytest

from tests.watch.drift.test_verdict import reference_of, verdict_on


def normal_rows(rng, rows):
    return pa.table({"number": rng.normal(0, 1, rows), "name": rng.choice(["a", "b", "c"], rows)})


@pytest.mark.long
@pytest.mark.parametrize(("reference_rows", "rows"), [(150, 50), (400, 400), (2_000, 200)])
def test_few_calm_files_are_drift(reference_rows, rows):
    rng = np.random.default_rng(0)
    states = []
    for _ in range(60):
        reference = reference_of(normal_rows(rng, reference_rows), None)
        verdict = verdict_on(normal_rows(rng, rows), reference, independent_rows=True)
        states.append(verdict.state)

    # At a rate of 5 %, the probability of more than eight is below 1 %.
    assert states.count("drift") <= 8
    assert states.count("not judged") == 0


def short_texts(rng, rows, values):
    numbers = rng.integers(0, values, rows).tolist()
    return pa.table({"text": [f"{'ab' * (number % 7)} {number}" for number in numbers]})


@pytest.mark.parametrize("values", [100, 343, 10**9])
def test_new_texts_after_a_tiny_reference_are_no_drift(values):
    rng = np.random.default_rng(0)
    states = []
    for _ in range(20):
        reference = reference_of(short_texts(rng, 50, values), None)
        verdict = verdict_on(short_texts(rng, 343, values), reference, independent_rows=True)
        states.append(verdict.state)

    # At a rate of 5 %, the probability of more than four is below 1 %.
    assert states.count("drift") <= 4


@pytest.mark.parametrize("text", ["", "ab 7", "a much longer text {}", "7"])
def test_other_texts_after_a_tiny_reference_are_drift(text):
    rng = np.random.default_rng(0)
    reference = reference_of(short_texts(rng, 50, 10**9), None)
    texts = [text.format(number) for number in range(300)]
    table = pa.table({"text": [*texts, *short_texts(rng, 43, 10**9)["text"].to_pylist()]})

    assert verdict_on(table, reference, independent_rows=True).state == "drift"
