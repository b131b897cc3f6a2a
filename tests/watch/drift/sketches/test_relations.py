"""Relations between columns: projections of rows, their findings, and the two columns
whose correlation changed.
"""

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.watch.drift.references.load import freeze_table
from mlflow_deploy_plugin.watch.drift.sketches.relations import (
    PROJECTIONS,
    RELATIONS,
    correlation_change,
    relation_tables,
    without_projections,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import encode_columns, sketch_batches
from tests.support.refusals import mentions
from tests.watch.drift.test_verdict import DAY, reference_of, replaced, verdict_on

DAYS = 30
ROWS = 200


def rows(seed, count=ROWS, **others):
    """Return rows in which the humidity, the delay and the carrier follow the
    temperature.
    """
    rng = np.random.default_rng(seed)
    temp = rng.normal(size=count)
    columns = {
        "temp": temp,
        "humid": -0.8 * temp + 0.6 * rng.normal(size=count),
        "delay": np.where(rng.random(count) < 0.1, np.nan, temp + 0.3 * rng.normal(size=count)),
        "carrier": np.where(temp + rng.normal(size=count) > 0, "AA", "UA"),
        "noise": rng.normal(size=count),
    }
    return pa.table(columns | others)


def in_another_order(table, name):
    order = np.random.default_rng(1).permutation(len(table))
    return replaced(table, name, table.column(name).to_numpy()[order])


TIMES = np.repeat(np.arange(DAYS) * DAY, ROWS)


@pytest.fixture(scope="module")
def days():
    return reference_of(rows(0, DAYS * ROWS), TIMES)


def about_relations(verdict):
    return [finding for finding in verdict.findings if finding.subject == RELATIONS]


def test_changed_relation_is_one_finding(days):
    calm = verdict_on(rows(1), days)
    changed = verdict_on(in_another_order(rows(1), "temp"), days)

    assert [(verdict.state, len(about_relations(verdict))) for verdict in (calm, changed)] == [
        ("no drift", 1),
        ("drift", 1),
    ]
    assert {finding.subject for finding in changed.findings if finding.is_alarm} == {RELATIONS}
    assert changed.figures[f"drift_score/{RELATIONS}"] == changed.figures["statistic"]
    assert changed.figures["share_of_drifted_columns"] == 0
    assert not any(name.partition("/")[2] in PROJECTIONS for name in changed.figures)


def test_changed_column_raises_no_relation_alarm(days):
    (relations,) = about_relations(
        verdict_on(rows(1, temp=np.random.default_rng(2).normal(0, 5, ROWS)), days)
    )

    assert relations.state == "no drift"
    assert mentions(relations.reason, "temp")


def test_column_with_the_reserved_name_is_judged():
    def named(seed, count):
        values = pa.array(np.random.default_rng(seed + 20).normal(size=count))
        return rows(seed, count).append_column(RELATIONS, values)

    reference = reference_of(named(0, DAYS * ROWS), TIMES)
    verdict = verdict_on(in_another_order(named(1, ROWS), "temp"), reference)

    states = [finding.state for finding in about_relations(verdict)]
    assert states == ["drift", "no drift"]


def test_relations_need_all_their_columns(days):
    (relations,) = about_relations(verdict_on(rows(1).drop_columns(["temp"]), days))

    assert relations.state == "not judged"
    assert mentions(relations.reason, "temp")


@pytest.mark.parametrize(
    ("columns", "left_out", "included"),
    [
        ((), (), {"temp", "humid", "delay", "carrier", "noise"}),
        (("temp", "noise"), (), {"temp", "noise"}),
        ((), ("temp", "carrier"), {"humid", "delay", "noise"}),
        (("temp",), (), set()),
        (("temp", "noise"), ("noise",), set()),
    ],
)
def test_relations_need_two_judged_columns(columns, left_out, included):
    bins, _ = freeze_table(rows(0), columns, "the rows", left_out)

    assert relation_tables(bins).keys() == included
    assert bins.keys() == {*without_projections(bins), *(PROJECTIONS if included else ())}


@pytest.mark.parametrize(
    "rearranged",
    [
        lambda table: [table.select(table.column_names[::-1])],
        lambda table: table.to_batches(max_chunksize=7),
        lambda table: [table.set_column(3, "carrier", table.column("carrier").dictionary_encode())],
    ],
    ids=["columns in another order", "small batches", "dictionary"],
)
def test_projections_depend_only_on_row_values(days, rearranged):
    table = rows(3)

    once = sketch_batches(days.bins, [table])
    again = sketch_batches(days.bins, rearranged(table))

    for name in PROJECTIONS:
        np.testing.assert_array_equal(once.columns[name].counts, again.columns[name].counts)


def test_sentinel_and_missing_value_are_limited(days):
    table = relation_tables(days.bins)["temp"]
    far, limit, missing = encode_columns(days.bins, pa.table({"temp": [-9999.0, -5.0, None]}))[
        "temp"
    ]

    assert table[far].tolist() == table[limit].tolist()
    assert not table[missing].any()


def test_constant_columns_have_no_relations():
    columns = {
        "one": np.ones(ROWS),
        "nothing": pa.nulls(ROWS, pa.float64()),
        "id": [f"id{n}" for n in range(ROWS)],
        "x": np.arange(ROWS),
        "y": np.arange(ROWS)[::-1],
    }

    bins, _ = freeze_table(pa.table(columns), (), "the rows")

    assert relation_tables(bins).keys() & columns.keys() - {"id"} == {"x", "y"}


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ("humid", ("temp", "humid", "-0.79", "-0.01")),
        ("carrier", ("temp", "carrier", "UA", "-0.56", "+0.00")),
    ],
)
def test_columns_with_changed_correlation_are_named(days, changed, names):
    window = in_another_order(rows(5, 2000), changed)

    change = correlation_change(
        days.bins, *(encode_columns(days.bins, table) for table in (days.sample, window))
    )

    assert mentions(change, "correlation", *names)


def test_few_rows_have_no_correlation(days):
    codes = [encode_columns(days.bins, table) for table in (days.sample, rows(5, 20))]

    assert correlation_change(days.bins, *codes) == ""
