"""Sources whose names, values and positions nobody has checked: a reading ends with a
state, no row is lost without a line, and no fault stops the rows that follow.
"""

import json
import os
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.source_state import (
    delete_source_state,
    describe_problems,
)
from mlflow_deploy_plugin.serve.inference_log.stats import read_watermarks
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.monitors.window_runner import log_readiness
from mlflow_deploy_plugin.watch.observed.reading import read_source
from tests.support.refusals import refused
from tests.watch.observed.test_reading import NOON, ids, lines_of, names, rows, write

KINDS = (
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.datetimes(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(-1000, 1000, places=3),
    st.uuids(),
)
VALUES = st.one_of(KINDS)
NESTED = st.one_of(
    st.lists(st.one_of(VALUES, st.lists(VALUES, max_size=2)), max_size=3),
    st.dictionaries(st.sampled_from("ab"), VALUES, max_size=2),
)


def arrays(count):
    """Return Arrow arrays of one kind of values, where Arrow has a type for them."""
    kinds = [*KINDS, VALUES, NESTED]
    lists = st.one_of([st.lists(kind, min_size=count, max_size=count) for kind in kinds])
    return lists.map(to_array).filter(lambda array: array is not None)


def to_array(values):
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def tables(count=3):
    columns = {name: arrays(count) for name in ("rid", "ts", "score", "x", "output.y")}
    return st.fixed_dictionaries(columns).map(pa.table)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(first=tables(), second=tables(), data=st.data())
def test_any_table_of_a_source_is_read(observed, first, second, data):
    for number, table in enumerate([first, second]):
        for name, array in (("rid", ["a", "b", None]), ("ts", [NOON] * 3)):
            if data.draw(st.booleans(), name):
                at = table.column_names.index(name)
                table = table.set_column(at, name, pa.array(array))
        try:
            write(observed, f"{number}.parquet", table)
        except pa.ArrowException:
            return

    state = observed.read()

    assert state.error == ""


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    records=st.lists(
        st.dictionaries(
            st.sampled_from(["rid", "ts", "score", "x", "_row", "prediction", "a\x1bb"]),
            st.recursive(
                st.one_of(
                    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)
                ),
                lambda inner: (
                    st.lists(inner, max_size=2)
                    | st.dictionaries(st.text(max_size=2), inner, max_size=2)
                ),
                max_leaves=4,
            ),
        ),
        max_size=4,
    )
)
def test_any_json_line_of_a_source_is_read(observed, records):
    lines = [json.dumps(record, default=str) for record in [*rows(0, 1).to_pylist(), *records]]
    (observed.source / "a.jsonl").write_text("\n".join(lines))

    state = observed.read()

    assert "\n" not in state.error


@pytest.fixture
def shop(observed, tmp_path):
    """Insert rows into tables of a database, of which the endpoint observes `first`."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db")
    with engine.begin() as connection:
        for table in ("first", "second"):
            connection.execute(sa.text(f"CREATE TABLE {table} (n, rid, ts, age, score)"))
    observed.observe(source=str(engine.url), query="first", position="n")

    def insert(table, *values):
        with engine.begin() as connection:
            statement = sa.text(f"INSERT INTO {table} VALUES (:n, :rid, :ts, :age, :score)")
            connection.execute(statement, list(values))

    yield insert
    engine.dispose()


def row(number, **columns):
    moment = (NOON + timedelta(minutes=number)).isoformat()
    return {"n": number, "rid": f"r{number}", "ts": moment, "age": 1, "score": 1, **columns}


def test_changed_source_is_read_from_its_start(observed, shop):
    write(observed, "a.parquet", rows(0, 3))
    shop("first", *(row(number) for number in range(2000, 4000)))
    shop("second", *(row(number) for number in range(3, 6)))
    for fields in ({"query": "first"}, {"query": "second"}, {"query": "second", "position": "ts"}):
        observed.observe(**fields)
        assert observed.read().error == ""
    observed.observe(source=str(observed.source), query=None, position=None)

    assert observed.read().error == ""
    assert ids(observed) == sorted([*names(0, 6), *names(2000, 4000)])


def test_files_of_another_folder_are_read(observed, tmp_path):
    write(observed, "a.parquet", rows(0, 3))
    observed.read()
    state = (observed.source / "a.parquet").stat()
    observed.source = tmp_path / "other"
    observed.source.mkdir()
    write(observed, "a.parquet", rows(3, 6))
    os.utime(observed.source / "a.parquet", ns=(state.st_atime_ns, state.st_mtime_ns))
    observed.observe(source=str(observed.source))

    observed.read()

    assert ids(observed) == names(0, 6)


def test_rows_without_a_position_are_read(observed, shop):
    shop("first", row(0), row(1, n=None))
    observed.read()
    shop("first", row(2, n=None), row(3))
    observed.read()
    shop("first", row(4))

    assert (observed.read().rows, ids(observed)) == (5, names(0, 5))


def test_database_column_of_several_types_is_text(observed, shop):
    shop("first", row(0, age=1), row(1, age="old"), row(2, age=b"x"))

    assert observed.read().error == ""
    assert observed.logged("age") == [("1",), ("b'x'",), ("old",)]


@pytest.mark.postgresql
def test_uuids_of_a_database_are_ids_and_positions(observed, postgresql_url, monkeypatch):
    engine = sa.create_engine(postgresql_url)
    keys = [uuid.UUID(int=number) for number in range(3)]
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS keyed"))
        columns = "rid uuid, ts timestamptz, score int, body jsonb"
        connection.execute(sa.text(f"CREATE TABLE keyed ({columns})"))
        statement = sa.text("INSERT INTO keyed VALUES (:rid, :ts, 1, '{}')")
        connection.execute(statement, [{"rid": key, "ts": NOON} for key in keys])
    url = engine.url
    engine.dispose()
    monkeypatch.setenv("ONNXSERVE_SOURCE_SHOP", url.password or "")
    shown = url._replace(password=None).render_as_string()
    password = "ONNXSERVE_SOURCE_SHOP" if url.password else None
    observed.observe(source=shown, query="keyed", position="rid", password=password)
    observed.read()

    state = observed.read()

    assert (state.error, state.rows, state.problems) == ("", 3, {})
    assert ids(observed) == list(map(str, keys))


@pytest.mark.parametrize(
    "time",
    [
        datetime(1, 1, 1),
        datetime(1969, 12, 31),
        "0001-01-01T00:00:00Z",
        pa.scalar(-(2**62), pa.timestamp("us")),
        pa.scalar(-(2**36), pa.timestamp("s")),
    ],
)
def test_time_before_1970_is_not_readable(observed, time):
    write(observed, "a.parquet", rows(0, 1, ts=pa.array([time])))
    write(observed, "b.parquet", rows(1, 3))

    state = observed.read()

    assert (state.rows, state.problems["no_time"].count) == (2, 1)


@pytest.mark.parametrize(
    ("values", "expected", "missing"),
    [
        ([1.0, float("nan"), 3.0], ["1", "3"], 1),
        ([123456789012.0, 2.0, 3.0], ["123456789012", "2", "3"], 0),
        ([Decimal("1"), Decimal("2"), None], ["1", "2"], 1),
        (["a\0b", "", "c"], ["a\0b", "c"], 1),
    ],
)
def test_ids_of_a_source_are_texts(observed, values, expected, missing):
    write(observed, "a.parquet", rows(0, 3, rid=pa.array(values)))

    state = observed.read()

    assert ids(observed) == sorted(expected)
    problems = {kind: problem.count for kind, problem in state.problems.items()}
    assert problems == ({"no_id": missing} if missing else {})


def test_ids_of_csv_files_are_kept_as_written(observed):
    lines = ["rid,ts,score", "1e5,2025-11-01,1", "2.0,2025-11-01,1", "3,2025-11-01,1"]
    (observed.source / "a.csv").write_text("\n".join(lines))

    observed.read()

    assert ids(observed) == ["1e5", "2.0", "3"]


def test_file_that_grows_by_a_column_has_no_conflicts(observed):
    file = observed.source / "a.jsonl"
    file.write_text(lines_of(rows(0, 3, city=[None] * 3)))
    observed.read()
    file.write_text(lines_of(rows(0, 3)) + lines_of(rows(3, 5, city=["x", "y"], plan=[1, 2])))

    state = observed.read()

    assert state.rows == 5
    assert "conflict" not in state.problems


def test_changed_columns_are_counted_once(observed):
    write(observed, "a.parquet", rows(0, 3))
    observed.read()
    for number in range(3):
        first = 3 * number + 3
        table = rows(first, first + 3, city=["x"] * 3, plan=["y"] * 3).drop_columns(["age"])
        write(observed, f"b{number}.parquet", table)

    problems = observed.read().problems

    assert (problems["new_column"].count, problems["lost_column"].count) == (2, 1)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"position": 1}'])
def test_lost_state_gets_the_columns_again(observed, content):
    write(observed, "a.parquet", rows(0, 3))
    before = observed.read()
    (path,) = (observed.log / "_observed").iterdir()
    path.write_bytes(content)

    assert observed.read().columns == before.columns
    assert ids(observed) == names(0, 3)


def test_state_of_a_deleted_endpoint_is_not_used(observed):
    write(observed, "a.parquet", rows(0, 3))
    observed.read()
    created = datetime.now(UTC)
    again = replace(observed.endpoint, created_at=created, rows_since=created)

    assert read_source(observed.settings, again).error == ""

    log = open_log(observed.settings.inference_log, created)
    assert log.count("churn", Window(NOON, NOON + timedelta(days=1))) == 3


def test_texts_of_a_source_are_short_lines(observed):
    write(observed, "a.parquet", rows(0, 2, rid=["x\n" * 10**6, "b"]))
    write(observed, "b.parquet", rows(0, 1, rid=["x\n" * 10**6], age=[7.0]))

    (line,) = describe_problems(observed.read())

    assert len(line) < 2000
    assert "\n" not in line


def test_one_column_has_two_roles(observed):
    observed.observe(version="rid")
    write(observed, "a.parquet", rows(0, 1))

    observed.read()

    assert observed.logged("_prediction_id", "_version") == [("r0", "r0")]


@pytest.mark.parametrize(
    "source",
    [
        "postgresql://u:p/w@h/db",
        "postgresql://h/db?user=u&password=p",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dp",
        "snowflake://h/db?token=p",
        "s3://key:secret@lake/in",
    ],
)
def test_secret_in_an_address_is_refused(observed, source):
    observed.observe(source=source, query=None if source.startswith("s3:") else "t")

    with refused(InvalidConfig, "password"):
        observed.endpoint  # noqa: B018 - the property validates the spec


def test_delta_table_needs_ids(observed):
    observed.observe(source=f"delta:{observed.source}", id=None)

    with refused(InvalidConfig, "id"):
        observed.endpoint  # noqa: B018 - the property validates the spec


def test_readiness_waits_for_a_source_after_a_pause(observed):
    write(observed, "a.parquet", rows(0, 3))
    read_at = observed.read().complete_until
    tomorrow = read_at + timedelta(days=1)

    ready = log_readiness(observed.settings, "churn", tomorrow)

    assert (ready.complete_until, ready.notes) == (read_at, ())


def test_watermark_of_a_deleted_source_is_deleted(observed):
    write(observed, "a.parquet", rows(0, 3))
    observed.read()
    location = locate_log(observed.settings.inference_log)

    for _ in range(2):
        delete_source_state(location, "churn")

    assert read_watermarks(location) == []
