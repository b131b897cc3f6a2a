"""`onnxserve log erase`. tests/serve/inference_log/test_erasure.py tests the files."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest
import requests

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import apply_config, empty_endpoint, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec, SinkSpec
from mlflow_deploy_plugin.core.store import inbox
from mlflow_deploy_plugin.core.store.inbox import PushedEvent
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.stats import Watermark, write_watermark
from mlflow_deploy_plugin.serve.spool.captured_model import MASK_KEY, ColumnMask
from mlflow_deploy_plugin.watch.observed import reading
from tests.support.commands import done, onnxserve, said, told
from tests.support.deployments import empty_home
from tests.support.inference_log import LogWriter
from tests.support.refusals import mentions
from tests.support.services.listener import answering
from tests.support.stores import own_store
from tests.support.waiting import wait_until

DAY = datetime(2013, 7, 1, tzinfo=UTC)
ERASE = "log erase flights --where"
PUSHED = {"observe.source": "push:", "observe.format": "kserve", "capture.keys": "customer"}
ANSWER = PushedEvent("a", "response", DAY, b'{"predictions": [0.5, 0.25]}')


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    """Return a function that makes an endpoint with rows of three customers."""
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "log"))
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path))

    def make(customers=("7", "8", "7"), **capture):
        spec = new_endpoint("flights", "m").model_copy(
            update={"capture": CaptureSpec(keys=("customer",), **capture)}
        )
        with own_store() as store:
            store.add_endpoint("onnxserve", spec)
        times = [DAY + timedelta(seconds=place) for place in range(len(customers))]
        LogWriter(tmp_path / "log").write({"_event_time": times, "customer": list(customers)})

    return make


def masked(key, value):
    return ColumnMask(key).hash_values({"": value}, frozenset([""]))[""]


def left(tmp_path):
    return pq.read_table(tmp_path / "log/endpoint=flights")["customer"].to_pylist()


def test_erasure_is_proven_and_audited(endpoint, tmp_path):
    endpoint()

    assert mentions(onnxserve(f"{ERASE} customer=7 --dry-run").stdout, "2 rows", "would")
    assert left(tmp_path) == ["7", "8", "7"]
    text = done(f"{ERASE} customer=7")

    assert mentions(text, "2 rows", "no row with customer=…")
    assert left(tmp_path) == ["8"]
    with own_store() as store:
        (event,) = store.events(actions=("erase",))
    assert (event.endpoint, event.detail) == (
        "flights",
        {"column": "customer", "rows": 2, "labels": 0},
    )
    assert "@" in event.actor
    assert mentions(done(f"{ERASE} customer=7"), "0 rows")


@pytest.fixture
def pushed(new_home, tmp_path, monkeypatch):
    """A store with an answered and an unanswered request of two customers each."""
    monkeypatch.setenv("ONNXSERVE_LOG_URI", str(tmp_path / "log"))
    request = replace(ANSWER, part="request", body=b'{"instances": [{"customer": 7}, {}]}')
    with own_store() as store:
        store.add_endpoint("onnxserve:/observed", apply_config(empty_endpoint("flights"), PUSHED))
        inbox.add_events(store, "flights", [request, ANSWER, replace(request, id="late")])
        yield store


def test_person_is_erased_from_the_inbox(pushed):
    assert mentions(done(f"{ERASE} customer=7"), "1 rows")

    inbox.add_events(pushed, "flights", [replace(ANSWER, id="late")])
    done("observe flights")
    assert told("log stats flights")["rows"] == 1


def test_erasure_waits_for_a_reading_of_the_inbox(pushed, monkeypatch):
    monkeypatch.setattr(reading, "_TAKEN_OVER_SECONDS", 0)
    with reading.reading_lease(pushed, "flights"):
        assert mentions(said(onnxserve(f"{ERASE} customer=7")), "repeat the command")


def test_inbox_that_cannot_be_read_is_not_erased(pushed):
    spec = pushed.require_endpoint("flights").spec
    pushed.replace_spec(apply_config(spec, {"observe.format": "none"}))

    result = onnxserve(f"{ERASE} customer=7")

    assert result.exit_code == 1
    assert mentions(result.stdout, "pushed", "'none'")


@pytest.mark.parametrize("where", ["carrier=UA", "customer=", "customer"])
def test_impossible_erasure_is_refused(endpoint, tmp_path, where):
    endpoint()
    assert mentions(said(onnxserve(ERASE, where)), "--where", "capture.keys", "customer")
    assert left(tmp_path) == ["7", "8", "7"]


def test_protected_rows_are_not_erased(endpoint, tmp_path, monkeypatch):
    endpoint()
    with monkeypatch.context() as floor:
        floor.setenv("ONNXSERVE_RETENTION_FLOOR_DAYS", "9")
        assert mentions(said(onnxserve(f"{ERASE} customer=7")), "9 days")
    done("endpoint hold flights --why 'case 7'")
    assert mentions(said(onnxserve(f"{ERASE} customer=7")), "on hold", "case 7")
    assert left(tmp_path) == ["7", "8", "7"]


def test_masked_person_needs_the_key(endpoint, tmp_path):
    key = load_settings().state_dir("flights") / MASK_KEY
    key.parent.mkdir(parents=True)
    hashes = [masked(key, value) for value in ("7", "8")]
    endpoint([*hashes, "7"], mask=("customer",))
    kept = key.read_bytes()

    key.unlink()
    assert mentions(said(onnxserve(f"{ERASE} customer=7")), "masked", str(key))
    assert not key.exists()
    key.write_bytes(kept)
    assert mentions(done(f"{ERASE} customer=7"), "2 rows")
    assert left(tmp_path) == hashes[1:]


@pytest.mark.parametrize("is_masked", [False, True])
def test_sinks_receive_an_event(endpoint, tmp_path, is_masked):
    posts = []
    statuses = [503, 202]

    def receive(request, body):
        posts.extend(json.loads(body))
        return statuses.pop(0), "text/plain", ""

    key = load_settings().state_dir("flights") / MASK_KEY
    value = "7"
    if is_masked:
        key.parent.mkdir(parents=True)
        value = masked(key, "7")
    with answering(receive) as url:
        endpoint(mask=("customer",) if is_masked else (), sinks={"audit": SinkSpec(url=url)})
        failed = onnxserve(f"{ERASE} customer=7")
        assert failed.exit_code == 1
        assert mentions(failed.stdout, "sink audit", "503")
        assert mentions(done(f"{ERASE} customer=7"), "0 rows")
    for event in posts:
        assert event["type"].endswith(".erased")
        assert event["source"] == "/endpoints/flights"
        assert event["data"] == {"column": "customer", "values": [value]}
    assert len(posts) == 2


def test_unshipped_and_unreadable_rows_are_reported(endpoint, tmp_path):
    endpoint()
    log = open_log(str(tmp_path / "log"))
    write_watermark(log.location, Watermark("a", ("flights",), DAY, DAY))
    broken = tmp_path / "log/endpoint=flights/date=2013-07-01/hour=00/broken.parquet"
    broken.write_bytes(b"PAR1")

    result = onnxserve(f"{ERASE} customer=7")

    assert result.exit_code == 1
    assert mentions(result.stdout, "2 rows", "2013-07-01 00:00:00")
    assert "no row" not in result.stdout
    assert mentions(result.stderr, str(broken))


@pytest.mark.parametrize("mask", ["", "customer"])
def test_server_with_masked_persons(tmp_path, models, mask):
    """A running server captures the requests and labels of two customers."""
    with empty_home(tmp_path) as client:
        config = {"capture.keys": "customer", "capture.mask": mask}
        url = client.create_deployment("sums", models.once, config=config)["url"]
        records = [{"a": 1.0, "b": 2.0, "customer": value} for value in ("7", "8", "7")]
        body = {"dataframe_records": records}
        assert requests.post(f"{url}/invocations", json=body, timeout=60).ok
        labels = [{"key": {"customer": value}, "label": 1} for value in ("7", "8")]
        assert requests.post(f"{url}/feedback", json={"feedback": labels}, timeout=60).ok
        erased = "2 rows and 1 labels"
        dry = "log erase sums --where customer=7 --dry-run"
        wait_until(lambda: erased in onnxserve(dry).stdout, what="the rows in the log")

        assert mentions(done("log erase sums --where customer=7"), erased, "answered after")

        figures = told("log stats sums")
        assert figures["rows"] == 1
        assert figures["labels"]["rows"] == 1
        assert figures["labels"]["unmatched"] == 0
