"""Readings of sources: each row is in the log once, and what is wrong is reported."""

import gzip
import json
import shutil
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from deltalake import write_deltalake

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError, TooManyRequests
from mlflow_deploy_plugin.core.store import inbox
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.serve.inference_log.source_state import describe_problems
from mlflow_deploy_plugin.serve.inference_log.stats import read_watermarks
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.watch.observed import sources
from mlflow_deploy_plugin.watch.observed.reading import read_again
from mlflow_deploy_plugin.watch.observed.source_rows import exchange_rows
from tests.support.clocks import Clock
from tests.support.guides import ROOT
from tests.support.refusals import mentions, refused

NOON = datetime(2025, 11, 1, 12, tzinfo=UTC)


def rows(first, last, **columns):
    """Return rows whose ids count from `first`, one per minute."""
    numbers = range(first, last)
    table = {
        "rid": [f"r{number}" for number in numbers],
        "ts": [NOON + timedelta(minutes=number) for number in numbers],
        "age": [float(number) for number in numbers],
        "score": [number % 2 for number in numbers],
    }
    return pa.table({**table, **columns})


def write(observed, name, table):
    pq.write_table(table, observed.source / name)


def lines_of(table):
    return "".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist())


def ids(observed):
    return [row[0] for row in observed.logged("_prediction_id")]


def names(first, last):
    return sorted(f"r{number}" for number in range(first, last))


def test_observed_rows_are_those_of_the_files(observed):
    write(observed, "a.parquet", rows(0, 60))
    pyarrow.csv.write_csv(rows(60, 100), observed.source / "b.csv")
    (observed.source / "c.jsonl.gz").write_bytes(gzip.compress(lines_of(rows(100, 150)).encode()))

    state = observed.read()

    assert (state.rows, state.newest) == (150, NOON + timedelta(minutes=149))
    assert state.problems == {}
    columns = ("_event_time", "_prediction_id", "age", "prediction", "_model", "_version")
    expected = [
        (NOON + timedelta(minutes=number), f"r{number}", float(number), number % 2)
        for number in range(150)
    ]
    assert observed.logged(*columns) == [(*row, "churn", "unknown") for row in expected]


def test_observed_source_is_read_from_its_position(observed):
    write(observed, "a.parquet", rows(0, 10))
    observed.read()
    write(observed, "b.parquet", rows(10, 20))

    state = observed.read()

    assert (state.rows, ids(observed)) == (20, names(0, 20))


def test_observed_row_is_read_once_in_a_growing_file(observed):
    file = observed.source / "log.jsonl"
    file.write_text(lines_of(rows(0, 10)) + "{broken\n")
    observed.read()
    file.write_text(file.read_text() + lines_of(rows(10, 15)))

    state = observed.read()

    assert (state.rows, ids(observed)) == (15, names(0, 15))
    assert state.problems["bad_row"].count == 1


def test_observed_rows_without_an_id_column_have_the_place(observed):
    del observed.fields["id"]
    write(observed, "a.parquet", rows(0, 2).drop_columns(["rid"]))

    observed.read()
    read_again(observed.settings, observed.endpoint)

    assert observed.read().rows == 2
    assert ids(observed) == ["a.parquet#0", "a.parquet#1"]


def test_observed_rows_before_a_broken_file_are_kept(observed):
    write(observed, "a.parquet", rows(0, 10))
    (observed.source / "b.parquet").write_bytes(b"PAR1 but not really")
    write(observed, "c.parquet", rows(20, 30))

    state = observed.read()

    assert mentions(state.error, "b.parquet")
    assert (state.rows, state.complete_until) == (10, None)
    write(observed, "b.parquet", rows(10, 20))
    state = observed.read()
    assert (state.error, state.rows, ids(observed)) == ("", 30, names(0, 30))


def test_observed_source_without_a_role_waits(observed):
    write(observed, "a.parquet", rows(0, 10))
    observed.read()
    write(observed, "b.parquet", rows(10, 20).rename_columns(["rid", "time", "age", "score"]))

    state = observed.read()

    assert mentions(state.error, "b.parquet", "ts", "observe.time")
    observed.observe(time="time")
    state = observed.read()
    assert (state.error, state.rows) == ("", 20)


def test_new_and_lost_columns_of_a_source_are_reported(observed):
    write(observed, "a.parquet", rows(0, 10))
    observed.read()
    changed = rows(10, 20, city=["Wien"] * 10).drop_columns(["age"])
    write(observed, "b.parquet", changed)

    state = observed.read()

    assert state.problems["new_column"].last == "city in b.parquet"
    assert state.problems["lost_column"].last == "age in b.parquet"
    assert state.rows == 20


@pytest.mark.parametrize(
    ("kind", "faulty"),
    [
        ("no_id", {"rid": [None, " "]}),
        ("no_time", {"ts": pa.array([None, None], pa.timestamp("us"))}),
        ("no_time", {"ts": ["yesterday", "2025-13-01"]}),
        ("future", {"ts": [datetime(2099, 1, 1), datetime(2262, 1, 1)]}),
    ],
)
def test_observed_rows_with_faults_are_counted(observed, kind, faulty):
    write(observed, "a.parquet", rows(0, 10))
    write(observed, "b.parquet", rows(10, 12, **faulty))

    observed.read()
    read_again(observed.settings, observed.endpoint)
    state = observed.read()

    assert (state.rows, state.problems[kind].count) == (10, 2)
    (line,) = describe_problems(state)
    assert mentions(line, "b.parquet", "2")


@pytest.mark.parametrize("time", [NOON, NOON + timedelta(days=20)])
def test_second_row_with_an_observed_id_is_a_conflict(observed, time):
    write(observed, "a.parquet", rows(0, 10))
    observed.read()
    write(observed, "b.parquet", rows(3, 4, age=[99.0], ts=[time]))

    state = observed.read()

    assert (state.rows, ids(observed)) == (10, names(0, 10))
    assert (state.problems["conflict"].count, state.problems["conflict"].last) == (1, "id r3")
    assert (3.0,) in observed.logged("age")


def test_late_observed_rows_are_in_their_hours(observed):
    write(observed, "a.parquet", rows(600, 1200))
    observed.read()
    write(observed, "b.parquet", rows(0, 600))

    observed.read()

    hours = {
        path.parent.name for path in (observed.settings.home_path.parent / "log").rglob("*.parquet")
    }
    assert len(hours) == 20
    assert ids(observed) == names(0, 1200)


def test_observed_rows_before_since_are_left_out(observed):
    write(observed, "a.parquet", rows(0, 100))
    observed.observe(since="2025-11-01T13:00Z")

    observed.read()

    assert ids(observed) == names(60, 100)


def test_captured_columns_of_observed_rows_are_dropped_and_masked(observed):
    observed.capture = {"drop": "age", "mask": "customer", "keys": "customer"}
    write(observed, "a.parquet", rows(0, 3, customer=["ann", "ben", "ann"]))

    observed.read()

    masked = [row[0] for row in observed.logged("customer")]
    assert len({*masked}) == 2
    assert not {"ann", "ben"} & {*masked}
    assert observed.logged("age") == []


def test_reserved_columns_of_a_source_are_left_out(observed):
    write(
        observed, "a.parquet", rows(0, 3, _shadow=[True] * 3, _tried=[True] * 3, _model=["x"] * 3)
    )

    observed.read()

    assert observed.logged("_model") == [("churn",)] * 3


def test_versions_of_observed_rows_are_those_of_the_column(observed):
    observed.observe(version="v")
    write(observed, "a.parquet", rows(0, 2, v=[7, None]))

    observed.read()

    assert observed.logged("_version") == [("7",), ("unknown",)]


def test_observed_log_is_complete_until_the_last_whole_reading(observed):
    begun = datetime.now(UTC)
    write(observed, "a.parquet", rows(0, 10))

    observed.read()

    (mark,) = read_watermarks(locate_log(observed.settings.log_uri))
    assert mark.endpoints == ("churn",)
    assert mark.complete_until >= begun
    assert mark.shipped_rows == {"churn": 10}


def test_delta_table_is_observed(observed):
    table = observed.source / "delta"
    write_deltalake(table, rows(0, 10))
    observed.observe(source=f"delta:{table}")
    observed.read()
    write_deltalake(table, rows(10, 20), mode="append")

    assert observed.read().rows == 20
    assert ids(observed) == names(0, 20)
    observed.observe(source=f"delta:{table}-gone")
    assert mentions(observed.read().error, f"{table}-gone")


def test_bucket_is_observed(observed, bucket):
    observed.observe(source="s3://lake/in")
    bucket.objects["lake/in/day=1/a.csv"] = lines_of_csv(rows(0, 10))
    observed.read()
    bucket.objects["lake/in/day=2/b.csv"] = lines_of_csv(rows(10, 20))

    assert observed.read().rows == 20
    assert ids(observed) == names(0, 20)


def lines_of_csv(table):
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database(request, tmp_path):
    """An engine of a database with an empty table `churn_log`."""
    url = f"sqlite:///{tmp_path}/shop.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    engine = sa.create_engine(url)
    table = sa.Table(
        "churn_log",
        sa.MetaData(),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("rid", sa.String),
        sa.Column("ts", sa.DateTime(timezone=True)),
        sa.Column("age", sa.Numeric(10, 2)),
        sa.Column("score", sa.Integer),
    )
    table.drop(engine, checkfirst=True)
    table.create(engine)
    yield engine, table
    engine.dispose()


def insert(database, first, last):
    engine, table = database
    with engine.begin() as connection:
        values = [{**row, "number": int(row["rid"][1:])} for row in rows(first, last).to_pylist()]
        connection.execute(table.insert(), values)


@pytest.fixture
def shop(observed, database, monkeypatch):
    """The table as the source of the endpoint."""
    url = database[0].url
    monkeypatch.setenv("ONNXSERVE_SOURCE_SHOP", url.password or "")
    shown = url._replace(password=None).render_as_string()
    password = "ONNXSERVE_SOURCE_SHOP" if url.password else None
    observed.observe(source=shown, query="churn_log", password=password)
    return observed


@pytest.mark.parametrize("position", [None, "number"])
def test_database_is_observed_from_its_position(shop, database, position):
    shop.observe(position=position)
    insert(database, 10, 3000)
    shop.read()
    insert(database, 3000, 3010)

    state = shop.read()

    assert (state.rows, state.problems) == (3000, {})
    assert ids(shop) == names(10, 3010)


def test_rows_that_a_database_commits_late_are_observed(shop, database):
    shop.observe(position="number")
    insert(database, 0, 500)
    insert(database, 501, 1000)
    shop.read()
    insert(database, 500, 501)

    assert shop.read().rows == 1000


def test_dropped_table_is_one_line(shop, database):
    insert(database, 0, 10)
    shop.read()
    engine, table = database
    table.drop(engine)

    state = shop.read()

    assert mentions(state.error, "churn_log")
    assert "\n" not in state.error
    assert state.rows == 10


def test_password_of_a_database_is_not_in_the_error(observed, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_SOURCE_SHOP", "s3cret")
    url = "postgresql+psycopg://reader@127.0.0.1:1/shop"
    observed.observe(source=url, query="churn_log", password="ONNXSERVE_SOURCE_SHOP")

    error = observed.read().error

    assert mentions(error, "127.0.0.1:1")
    assert "s3cret" not in error


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"source": "postgresql://u:pw@h/db", "query": "t"}, ["password"]),
        ({"source": "postgresql://u:p/w@h/db", "query": "t"}, ["password"]),
        ({"source": "postgresql://h/db?sslpassword=pw", "query": "t"}, ["password"]),
        ({"source": "s3://key:secret@bucket/logs"}, ["password"]),
        ({"source": "postgresql://h/db"}, ["query"]),
        ({"query": "t"}, ["query"]),
        ({"time": None}, ["time"]),
        ({"source": "sqlite:///x.db", "query": "t", "id": None}, ["id"]),
        ({"since": "soon"}, ["since"]),
        ({"password": "SECRET"}, ["observe.password", "ONNXSERVE_SOURCE_"]),
    ],
)
def test_invalid_source_is_refused(observed, fields, named):
    observed.observe(**fields)

    with refused(InvalidConfig, *named):
        observed.endpoint  # noqa: B018 - the property validates the spec


def test_unknown_format_is_one_line(observed):
    observed.observe(format="sagemakers")

    assert mentions(observed.read().error, "sagemakers", "sagemaker")


def test_observed_rows_are_kept_once_with_many_repeats(observed):
    rng = np.random.default_rng(0)
    for number in range(5):
        part = rows(0, 400).take(rng.integers(0, 400, 300))
        write(observed, f"{number}.parquet", part)

    state = observed.read()

    assert state.problems == {}
    assert len(ids(observed)) == len({*ids(observed)}) == state.rows


def test_unreachable_log_is_an_error(observed, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    observed.settings = observed.settings.model_copy(update={"log_uri": "s3://gone/log"})

    with refused(OnnxserveError, "s3://gone/log"):
        observed.read()


RECORDINGS = ROOT / "tests" / "contrib" / "sources"


@pytest.mark.parametrize("format_", ["databricks", "kserve"])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_recording_of_another_server_is_observed(observed, format_, suffix):
    observed.observe(format=format_, id=None, time=None, prediction=None)
    recording = (RECORDINGS / f"{format_}.jsonl").read_bytes()
    file = observed.source / f"log.{suffix}"
    if suffix == "parquet":
        records = [json.loads(line) for line in recording.splitlines()]
        pq.write_table(pa.Table.from_struct_array(pa.array(records)), file)
    else:
        file.write_bytes(gzip.compress(recording) if suffix.endswith("gz") else recording)

    state = observed.read()

    assert (state.error, state.problems) == ("", {})
    assert state.rows == 3


def test_lines_of_bentoml_are_observed_as_columns(observed):
    """BentoML 1.4.40 has written the file. The rows of one `log_batch` share an id."""
    observed.observe(id="request_id", time="timestamp", prediction="delay")
    observed.capture = {"drop": "trace_id"}
    folder = observed.source / "flights" / "data"
    folder.mkdir(parents=True)
    shutil.copy(RECORDINGS / "bentoml.jsonl", folder / "data.1.log")

    state = observed.read()

    assert (state.rows, state.problems.keys()) == (2, {"conflict"})
    first = ("2606471233404509521", "UA", 1400.0, 200.0)
    assert observed.logged("_prediction_id", "carrier", "distance", "prediction")[0] == first
    assert state.columns == ("carrier", "distance", "prediction")


def pushed(observed, *events):
    store = open_store(observed.settings.store_url)
    if store.endpoint("churn") is None:
        store.add_endpoint("onnxserve:/observed", observed.endpoint.spec)
    inbox.add_events(store, "churn", events)
    return store


def test_pushed_events_are_observed_in_pairs(observed):
    observed.observe(source="push:", format="kserve", id=None, time=None, prediction=None)
    body = b'{"instances": [{"age": 1}, {"age": 2}]}'
    request = inbox.PushedEvent("a", "request", NOON, body)
    answer = b'{"predictions": [0.5, 0.25]}'
    response = inbox.PushedEvent("a", "response", NOON, answer)
    half = replace(request, id="b")
    broken = [replace(each, id="c", body=b"no") for each in (request, response)]
    store = pushed(observed, request, response, half, *broken)

    state = observed.read()

    assert (state.rows, state.error) == (2, "")
    assert (state.problems["bad_row"].count, state.problems.keys()) == (1, {"bad_row"})
    assert observed.logged("_prediction_id", "_row", "age", "prediction") == [
        ("a", 0, 1, 0.5),
        ("a", 1, 2, 0.25),
    ]
    pushed(observed, request, response).close()
    assert observed.read().rows == 2
    assert inbox.exchanges(store, "churn") == []
    store.close()


def test_request_without_a_response_is_reported_after_a_day(observed, monkeypatch):
    observed.observe(source="push:", format="kserve", id=None, time=None, prediction=None)
    clock = Clock(datetime.now(UTC) - timedelta(hours=25))
    event = inbox.PushedEvent("late", "request", NOON, b"{}")
    with closing(open_store(observed.settings.store_url, clock)) as store:
        store.add_endpoint("onnxserve:/observed", observed.endpoint.spec)
        inbox.add_events(store, "churn", [event])

    observed.read()
    state = observed.read()

    assert state.problems["unanswered"].count == 1
    assert state.problems["unanswered"].last == "id late"


def test_unanswered_requests_do_not_fill_the_inbox(observed, monkeypatch):
    """KServe's logger sends no response of a request that fails, so any caller of the
    model can send such requests.
    """
    monkeypatch.setattr(inbox, "MOST_BYTES", 4000)
    observed.observe(source="push:", format="kserve", id=None, time=None, prediction=None)
    clock = Clock(datetime.now(UTC) - timedelta(minutes=5))
    halves = [inbox.PushedEvent(identity, "request", NOON, b"{}") for identity in "abc"]
    with closing(open_store(observed.settings.store_url, clock)) as store:
        store.add_endpoint("onnxserve:/observed", observed.endpoint.spec)
        inbox.add_events(store, "churn", halves)
        clock.now += timedelta(minutes=5)
        late = inbox.PushedEvent("d", "request", NOON, b"")
        with refused(TooManyRequests, "churn"):
            inbox.add_events(store, "churn", [late])

        state = observed.read()

        assert state.problems["unanswered"].count == 3
        inbox.add_events(store, "churn", [late])
        assert observed.read().problems["unanswered"].count == 3


def test_wide_requests_take_little_memory(observed, monkeypatch):
    """A column of one request must not be stored as null for each other request."""
    monkeypatch.setattr(sources, "_PIECE_CELLS", 50)
    observed.observe(source="push:", format="kserve", id=None, time=None, prediction=None)
    wide = {f"x{number}": 1 for number in range(20)}
    halves = []
    for identity, record in zip("abcdef", [{"age": 1}, wide] * 3, strict=True):
        request = inbox.PushedEvent(identity, "request", NOON, json.dumps([record]).encode())
        halves += [request, replace(request, part="response", body=b"[0.5]")]
    pushed(observed, *halves).close()
    sizes = []

    def measured(exchanges):
        table = exchange_rows(exchanges)
        sizes.append(table.shape)
        return table

    monkeypatch.setattr(sources, "exchange_rows", measured)
    assert observed.read().rows == 6
    assert sum(rows for rows, _ in sizes) == 6
    assert all(rows * (columns - 4) <= 50 for rows, columns in sizes)


def test_times_of_the_future_do_not_move_the_position(shop, database):
    insert(database, 0, 10)
    engine, table = database
    ahead = datetime.now(UTC) + timedelta(days=400)
    with engine.begin() as connection:
        faulty = [
            {"number": number, "rid": f"r{number}", "ts": ahead, "age": 1, "score": 0}
            for number in range(5000, 6500)
        ]
        connection.execute(table.insert(), faulty)
    assert shop.read().problems["future"].count == 1500
    insert(database, 10, 20)

    state = shop.read()

    assert (state.rows, ids(shop)) == (20, names(0, 20))


def test_source_with_too_many_columns_is_refused(observed):
    wide = {f"x{number}": [1.0] for number in range(5001)}
    write(observed, "a.parquet", rows(0, 1, **wide))

    state = observed.read()

    assert mentions(state.error, "a.parquet", "5,000")
    assert (state.rows, state.columns) == (0, ())
