"""SQL over the log can access only the rows, and a mistake gives a helpful one-line
message.
"""

import itertools
import os
import resource
import shutil
import signal
import threading
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.serve.inference_log import log_reader, query
from mlflow_deploy_plugin.serve.inference_log.labels import Label
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log
from mlflow_deploy_plugin.serve.inference_log.query import (
    Query,
    StatementTimeout,
    limit_memory,
    run_query,
)
from mlflow_deploy_plugin.serve.inference_log.windows import parse_time_range
from tests.support.clocks import Clock
from tests.support.inference_log import LogWriter, event_table
from tests.support.refusals import refused

DAY = datetime(2013, 7, 1, tzinfo=UTC)
NOW = datetime(2013, 7, 3, tzinfo=UTC)


@pytest.fixture(scope="module")
def flights(tmp_path_factory):
    """Two hours of version 1, shipped twice, and an hour of version 2 with another
    column and other types.
    """
    writer = LogWriter(tmp_path_factory.mktemp("flights"))
    times = [DAY + timedelta(minutes=minute) for minute in range(120)]
    first = {
        "_event_time": times,
        "x": np.arange(120.0),
        "carrier": ["UA", "AA"] * 60,
        "output.p": pa.array([0.5] * 120, pa.float16()),
        "_prediction_id": [f"p{minute}" for minute in range(120)],
    }
    segment = writer.write(first)
    writer.write(first, segment=segment, suffix="-again")
    later = [DAY + timedelta(days=1, minutes=minute) for minute in range(10)]
    writer.write(
        {"_event_time": later, "x": ["text"] * 10, "probs": [[0.1, 0.9]] * 10}, version="2"
    )
    writer.write({"_event_time": later, "_shadow": [True] * 10, "x": [1.0] * 10}, version="3")
    writer.label(*(Label(f"p{minute}", None, None, minute % 2, 1) for minute in range(0, 120, 10)))
    return open_log(str(writer.root))


def ask(log, since=None, labels=True, shadows=False, **parts):
    full_query = Query(
        View("flights", parse_time_range(since, None, NOW), labels, shadows), **parts
    )
    with run_query(log, full_query) as answer:
        return pa.Table.from_batches(list(answer.batches), answer.schema)


def test_each_row_has_columns_of_every_version(flights):
    table = ask(flights)

    assert table.num_rows == 130
    assert table.column_names[:9] == [
        "_event_time",
        "_prediction_id",
        "_variant",
        "_model",
        "_version",
        "x",
        "carrier",
        "output.p",
        "probs",
    ]
    assert str(table.schema.field("_event_time").type) == "timestamp[us, tz=UTC]"
    # a number in one version and a text in the other
    assert table.column("x").to_pylist()[0] == "0"
    assert ask(flights, shadows=True).num_rows == 140


def test_conditions_expressions_order_and_limit(flights):
    table = ask(
        flights,
        select='_event_time, "output.p" * 2 AS twice',
        where="carrier = 'UA' -- the others are not asked for",
        order_by="_event_time DESC",
        limit=2,
    )

    assert table.to_pylist() == [
        {"_event_time": DAY + timedelta(minutes=minute), "twice": 1.0} for minute in (118, 116)
    ]


def test_labels_are_optional_columns(flights):
    select = "_prediction_id, _label, _label_number"
    table = ask(flights, where="_label IS NOT NULL", select=select, order_by="1")
    assert table.num_rows == 12
    assert table.to_pylist()[1] == {"_prediction_id": "p10", "_label": "0", "_label_number": 0.0}
    assert "_label" not in ask(flights, labels=False, limit=1).column_names


def test_statement_may_group_and_join(flights):
    grouped = ask(
        flights, statement="SELECT carrier, count(*) AS n FROM log GROUP BY ALL ORDER BY 1;"
    )
    assert grouped.to_pylist() == [
        {"carrier": "AA", "n": 60},
        {"carrier": "UA", "n": 60},
        {"carrier": None, "n": 10},
    ]
    joined = "SELECT count(*) AS n FROM log AS a JOIN log AS b USING (_segment, _offset, _row)"
    assert ask(flights, statement=joined, limit=5).to_pylist() == [{"n": 130}]


def test_since_selects_event_or_received_time(flights, log, writer):
    assert ask(flights, since="2013-07-01T01:00/30m").num_rows == 30
    assert ask(flights, since="2013-07-02").num_rows == 10
    shutil.copytree(flights.location.root, writer.root, dirs_exist_ok=True)
    earlier = DAY - timedelta(days=300)
    received = pa.array([NOW], pa.timestamp("us", "UTC"))
    writer.write({"_event_time": [earlier], "_received_time": received})
    assert ask(log, since="1h", select="_event_time").to_pylist() == [{"_event_time": earlier}]


def test_times_are_in_utc(flights, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    (row,) = ask(
        flights, select="hour(_event_time) AS h", where="_event_time = '2013-07-01 01:30'"
    ).to_pylist()
    assert row == {"h": 1}


def test_many_columns_with_unusual_names(log, writer):
    odd = ["Age", "age", 'say "x"', "a\nb", "select", "_own", "ärger"]
    names = [*odd, *(f"c{number}" for number in range(300))]
    columns = {name: [float(number)] for number, name in enumerate(names)}
    writer.write({"_event_time": [DAY], **columns})

    (row,) = ask(log).to_pylist()

    names[1] = "age_1"
    assert [row[name] for name in names] == list(range(len(names)))
    assert ask(log, select='age_1, "say ""x""", "a\nb"').num_rows == 1


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ({"where": "carier = 'UA'"}, ["'carier'", "'carrier'"]),
        ({"order_by": "qqqqqq"}, ["'qqqqqq'", "single quotes", "_event_time"]),
        ({"select": "output.p"}, ["double quotes", '"output.p"']),
        ({"where": "x >"}, ["syntax error"]),
        ({"where": "carrier + 1 = 2"}, ["cannot be run"]),
        ({"select": "nofunction(x)"}, ["nofunction"]),
        ({"select": "CAST(carrier AS INT)"}, ["'UA'", "INT32"]),
        ({"statement": "SELECT * FROM flights"}, ["table 'flights'", "table log"]),
        ({"statement": "SELECT 1; SELECT 2"}, ["single SELECT"]),
        ({"statement": "COPY (SELECT 1) TO 'x.csv'", "limit": 20}, ["single SELECT"]),
        ({"statement": "SET enable_external_access = true"}, ["single SELECT"]),
        ({"where": "_label = '1'", "labels": False}, ["'_label'"]),
        ({"where": "carrier = '\udcff'"}, [r"'\udcff'"]),
        ({"statement": "SELECT '\ud83d' FROM log"}, [r"'\ud83d'"]),
    ],
)
def test_invalid_query_is_one_line(flights, parts, names):
    with refused(InvalidConfig, *names) as caught:
        ask(flights, **parts)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "source",
    [
        "read_csv('/etc/passwd')",
        "'/etc/passwd'",
        "read_text('/etc/hostname')",
        "glob('/etc/*')",
        "read_parquet('s3://bucket/x.parquet')",
        "duckdb_secrets()",
    ],
)
def test_no_other_file_can_be_read(flights, source):
    with pytest.raises(InvalidConfig):
        ask(flights, statement=f"SELECT * FROM {source}")


def test_empty_span_is_an_empty_table(flights):
    table = ask(flights, since="2020-01-01")
    assert (table.num_rows, "_event_time" in table.column_names) == (0, True)


def test_log_failure_during_a_query_is_raised(flights, monkeypatch):
    monkeypatch.setattr(
        log_reader, "scan_hour", Mock(side_effect=OnnxserveError("the inference log is down"))
    )
    with pytest.raises(OnnxserveError, match="inference log"):
        ask(flights)


ENDLESS = "SELECT count(*) FROM log a, log b, log c, log d, log e, log f"


@pytest.fixture
def interrupted():
    """Record that Ctrl-C was handled, and raise KeyboardInterrupt, because a background
    job may ignore the signal.
    """
    met = threading.Event()

    def interrupt(*_):
        met.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    yield met
    signal.signal(signal.SIGINT, before)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before it computes", "while it computes", "while it reads"])
def test_ctrl_c_ends_a_statement(flights, monkeypatch, interrupted, moment):
    plan = query._plan

    def planned(*arguments):
        query_plan = plan(*arguments)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert moment != "before it computes" or interrupted.wait(60)
        return query_plan

    monkeypatch.setattr(query, "_plan", planned)
    options = {"statement": ENDLESS}
    if moment == "while it reads":
        options = {"order_by": "x"}
        endless = itertools.repeat(event_table({"_event_time": [DAY] * 1000, "x": ["1"] * 1000}))
        monkeypatch.setattr(log_reader, "scan_hour", lambda *_: endless)
    with pytest.raises(KeyboardInterrupt):
        ask(flights, **options)


@pytest.mark.long
@pytest.mark.parametrize(
    ("statement", "seconds", "names"),
    [
        (ENDLESS, 1.0, ["1 s"]),
        (
            "SELECT length(string_agg(repeat('x', 1000000), '')) FROM log a, log b",
            60.0,
            ["memory", "disk space"],
        ),
    ],
)
def test_endless_or_oversized_statement_is_ended(flights, monkeypatch, statement, seconds, names):
    monkeypatch.setattr(query, "TIMEOUT_SECONDS", seconds)
    with refused(InvalidConfig, *names) as caught:
        ask(flights, statement=statement)
    assert "\n" not in caught.value.message


@pytest.mark.long
# Each sorting thread takes memory.
@pytest.mark.parametrize(("memory", "cores"), [(128, 4), (512, 64)])
def test_large_answer_and_sort_fit_in_memory(log, writer, monkeypatch, memory, cores):
    monkeypatch.setattr(query, "MEMORY_MB", memory)
    monkeypatch.setattr(query, "available_cores", lambda: cores)
    rng = np.random.default_rng(0)
    for hour in range(12):
        times = [DAY + timedelta(hours=hour)] * 200_000
        writer.write(
            {"_event_time": times, **{f"x{column}": rng.random(200_000) for column in range(10)}}
        )
    view_of_all = View("flights", labels=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for order in ("", "x3"):
        with run_query(
            log, Query(view_of_all, order_by=order, select="* EXCLUDE (_event_time)")
        ) as answer:
            assert sum(len(batch) for batch in answer.batches) == 2_400_000
    # kB; the complete result takes over 300 MB twice
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900_000


def test_timeout_counts_only_time_without_progress():
    clock = Clock(0.0)
    timeout = StatementTimeout(10.0, clock)
    clock.now = 9
    assert not timeout.is_over
    with timeout.reading():
        clock.now = 1000
        assert not timeout.is_over
    clock.now = 2000
    timeout.restart()
    clock.now = 2009
    assert not timeout.is_over
    clock.now = 2011
    assert timeout.is_over


def test_memory_above_the_limit_is_refused():
    with limit_memory(100 * 2**20):
        assert len(bytearray(50 * 2**20))
        with pytest.raises(MemoryError):
            bytearray(200 * 2**20)
    assert len(bytearray(200 * 2**20))
