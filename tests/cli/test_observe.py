"""Tests of `onnxserve observe`. See tests/watch/observed for the readings."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from mlflow.deployments.cli import commands

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import add_variant
from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.commands import done, onnxserve, said, told
from tests.support.deployments import empty_home
from tests.support.refusals import mentions
from tests.support.stores import own_store
from tests.support.tracking import tracking_at

ROLES = "--column id=rid,time=ts,prediction=score"
NOW = datetime.now(UTC)


@pytest.fixture
def source(tmp_path):
    """A folder with a file of 10 rows, and an empty home."""
    folder = tmp_path / "source"
    folder.mkdir()
    write(folder, "a", 0, 10)
    with empty_home(tmp_path / "home"):
        yield folder


@pytest.fixture
def model(registered, mlflow_server):
    """The URI of a registered version."""
    with tracking_at(mlflow_server.url):
        yield f"models:/{registered}/1"


def write(folder, name, first, last):
    numbers = range(first, last)
    rows = {
        "rid": [f"r{number}" for number in numbers],
        "ts": [NOW - timedelta(minutes=number) for number in numbers],
        "x": [float(number) for number in numbers],
        "score": [0.5 for _ in numbers],
    }
    pq.write_table(pa.table(rows), folder / f"{name}.parquet")


def observed(*options):
    result = onnxserve(" ".join(["observe", "churn", *options, "-o json"]))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_observed_endpoint_is_made_and_read(source, model):
    made = observed(f"--model {model} --from {source}", ROLES)
    write(source, "b", 10, 15)
    again = observed()

    assert (made["rows"], again["rows"]) == (10, 15)
    (listed,) = told("list")
    assert (listed["target"], listed["state"]) == ("onnxserve:/observed", "observed")
    stats = told("log stats churn")
    assert stats["by_version"] == {"adder version 1": 15}


def test_model_of_an_observed_endpoint_may_follow(source, model):
    assert observed(f"--from {source}", ROLES)["rows"] == 10
    write(source, "b", 10, 15)

    assert observed(f"--model {model}")["rows"] == 15
    assert told("log stats churn")["by_version"] == {
        "adder version 1": 5,
        "churn version unknown": 10,
    }


def test_changed_source_of_an_observed_endpoint_is_read(source):
    observed(f"--from {source}", ROLES)
    since = (NOW - timedelta(minutes=4, seconds=30)).isoformat()

    assert observed("--every 1h")["rows"] == 10
    assert observed(f"--since {since}")["rows"] == 10
    spec = open_store(load_settings().store_url).require_endpoint("churn").spec
    assert spec.observe is not None
    assert (spec.observe.every, spec.observe.since) == ("1h", since)


def test_deleted_observed_endpoint_begins_anew(source):
    observed(f"--from {source}", ROLES)
    done("endpoint delete churn")

    assert observed(f"--from {source}", ROLES)["rows"] == 10


def test_rows_of_an_observed_endpoint_are_queried(source):
    observed(f"--from {source}", ROLES)

    lines = done("log query churn -o jsonl --select _prediction_id,x,prediction").splitlines()

    assert json.loads(lines[-1]) == {"_prediction_id": "r0", "x": 0.0, "prediction": 0.5}


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("observe churn", ["observe.source"]),
        ("observe churn --from /nowhere {roles}", ["/nowhere"]),
        ("observe churn --from {source} --column id=rid", ["time"]),
        (
            "observe churn --from {source} --column key=rid,time=ts,prediction=score",
            ["observe.key"],
        ),
        ("observe churn --from {source} --column time=no,prediction=score", ["no", "observe.time"]),
        ("observe churn --from {source} --since soon {roles}", ["observe.since", "soon"]),
        ("observe churn --from {source} --format onnx {roles}", ["onnx", "columns"]),
        ("observe churn --from {source} {roles} -C capture.fraction=0.5", ["capture.fraction"]),
        ("observe churn --from mysql://u:p@h/db --query t {roles}", ["password"]),
        ("observe churn --from nosuch://h/db --query t {roles}", ["nosuch"]),
        ("endpoint create churn -C observe.source={source}", ["time"]),
    ],
)
def test_source_that_cannot_be_read_is_one_line(source, command, names):
    result = onnxserve(command.format(source=source, roles=ROLES))

    assert result.exit_code == 1
    assert mentions(said(result), *names)
    assert "Traceback" not in result.output


@pytest.mark.parametrize("options", ["", f"--from logs {ROLES}", "-C capture.fraction=0.5"])
def test_served_endpoint_is_neither_observed_nor_changed(source, options):
    done("endpoint create churn")

    result = onnxserve(f"observe churn {options}")

    assert result.exit_code == 1
    assert mentions(said(result), "churn")
    spec = open_store(load_settings().store_url).require_endpoint("churn").spec
    assert spec.capture.fraction == 1


MLFLOW = "-t onnxserve:/observed -m {model} --name"


@pytest.mark.parametrize(
    ("command", "variants"),
    [
        (f"create {MLFLOW} c --endpoint churn", 1),
        ("rollout start churn --to {model} --wait", 1),
        (f"create {MLFLOW} c --endpoint churn", 2),
        (f"update {MLFLOW} b", 2),
        ("observe churn", 2),
        ("endpoint update churn -C observe.every=1h", 2),
        ("endpoint traffic churn churn=50 b=50", 2),
        ("rollout start churn --to {model} --wait", 2),
    ],
)
def test_second_variant_of_an_observed_endpoint_is_refused(source, model, command, variants):
    """Earlier builds stored a second variant, and gave rows its version."""
    observed(f"--model {model} --from {source}", ROLES)
    write(source, "b", 10, 15)
    with own_store() as store:
        one = store.require_endpoint("churn").spec
        kept = one if variants == 1 else add_variant(one, "b", model)
        store.replace_spec(kept)

        is_of_mlflow = command.startswith(("create", "update"))
        run = partial(CliRunner().invoke, commands) if is_of_mlflow else onnxserve
        result = run(command.format(model=model))

        assert mentions(said(result), "churn", "server" if "rollout" in command else "observed")
        assert store.require_endpoint("churn").spec == kept
        assert told("log stats churn")["rows"] == 10
        if variants == 2:
            done("delete b --endpoint churn")
        assert observed()["rows"] == 15


@pytest.mark.parametrize("command", ["stop churn", "start churn", "logs churn"])
def test_observed_endpoint_has_no_server(source, command, model):
    observed(f"--model {model} --from {source}", ROLES)

    result = onnxserve(command)

    assert result.exit_code == (0 if command.startswith("start") else 1)
    assert "Traceback" not in result.output


def test_problems_of_a_source_are_listed(source):
    observed(f"--from {source}", ROLES)
    write(source, "b", 3, 4)
    (source / "c.parquet").write_bytes(b"no")

    result = onnxserve("observe churn")

    assert result.exit_code == 1
    assert mentions(result.stderr.splitlines()[-1], "c.parquet")
    assert mentions(done("list"), "c.parquet")


def test_reading_of_a_killed_process_is_continued(source):
    observed(f"--from {source}", ROLES)
    write(source, "b", 10, 15)
    store = open_store(load_settings().store_url)
    store.acquire_lease("observe/churn", "killed", 1.0)

    assert observed()["rows"] == 15
