"""Shadows are compared, captured and bounded, and never delay a response."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import orjson
import pytest

from mlflow_deploy_plugin.core.errors import InferenceError, SchemaMismatch
from mlflow_deploy_plugin.core.statedir.metric_files import read_families
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.http.routes import handle_request_async
from mlflow_deploy_plugin.serve.inference.shadow import Shadows, translate_feeds
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support import servers
from tests.support.handling import ask, post
from tests.support.models import columns, graph_tensor, numbers_section, write_model
from tests.support.pyfuncs import save_pyfuncs
from tests.support.raising import raise_it
from tests.support.refusals import mentions
from tests.support.spool import read_spool
from tests.support.waiting import wait_until


@pytest.fixture
def serve(serve_here):
    """Serve the endpoint e with an answering variant and its shadow."""

    def serve(answering, shadow, server=None, **capture):
        variants = {
            "main": servers.variant(answering, "1"),
            "new": servers.variant(shadow, "2", shadow=True),
        }
        return serve_here({"e": variants}, server, **capture)

    return serve


def predict(server, *rows):
    return ask(server, body={"dataframe_split": {"columns": ["a", "b", "c"], "data": rows}})


def shadowed(server, name, **labels):
    """Return a value of the shadows' metrics, summed over all other labels; for a
    histogram, the sum.
    """
    families = {family.name: family for family in read_families(server.metrics.folder)}
    if (family := families.get(f"onnxserve_shadow_{name}")) is None:
        return 0.0
    return sum(series.value for series in family.series if labels.items() <= series.labels.items())


def compared(server, requests):
    wait_until(
        lambda: shadowed(server, "requests", outcome="compared") == requests,
        what=f"{requests} compared",
    )


def sent(request):
    arrays = request.model.schema.to_columns(request.feeds)
    return {name: array.tolist() for name, array in arrays.items()}


def answers_by_id(server, variant):
    return {
        request.record.prediction_id: request.outputs["y"].tolist()
        for request in captured(server, variant)
    }


def captured(place, variant):
    spool = place if isinstance(place, Path) else place.capture.spool
    requests = read_spool(spool)
    return [request for request in requests if request.record.variant == variant]


def test_answer_is_compared_with_the_shadow(serve, bias_folders):
    server = serve(bias_folders["1"], bias_folders["2"])
    response = predict(server, [1, 2, 3], [4, 5, 6])
    assert orjson.loads(response.body) == {"predictions": [[1006.0], [1015.0]]}
    compared(server, 1)
    labels = {"endpoint": "e", "variant": "new", "model": "m", "version": "2"}
    assert shadowed(server, "rows", agreement="different", **labels) == 2
    assert shadowed(server, "rows", agreement="same", **labels) == 0
    assert shadowed(server, "difference", **labels) == 2000.0
    assert shadowed(server, "duration_seconds", **labels) > 0
    assert b"onnxserve_shadow_rows_total{" in server.metrics.page()


def test_shadow_rows_have_the_ids_of_the_answer(serve, bias_folders):
    server = serve(bias_folders["1"], bias_folders["2"], max_rows_per_request=1)
    response = predict(server, [1, 2, 3], [4, 5, 6])
    compared(server, 1)
    (request,) = captured(server, "new")
    (answered,) = captured(server, "main")
    same = {"variant": "new", "latency": request.record.latency, "is_shadow": True}
    assert request.record == answered.record._replace(**same)
    assert 0 < answered.record.latency < 60e6
    assert request.record.prediction_id == response.headers["X-Prediction-Id"]
    assert request.model.version == "2"
    assert sent(request) == {"a": [1], "b": [2], "c": [3]}
    assert request.outputs["y"].tolist() == [[2006.0]]


@pytest.mark.parametrize("order", ["abc", "cba"], ids=["same schema", "converted feeds"])
def test_shadow_rows_have_the_keys_of_the_request(serve, bias_folders, tmp_path, order):
    section = numbers_section(graph_tensor("X", "float32", -1, 3, columns=[*order]))
    signature = columns(a="double", b="double", c="double")
    shadow = write_model(tmp_path / "other", servers.single(2000.0), signature, section)
    server = serve(bias_folders["1"], shadow, keys=["customer_id"])
    record = {"a": 1, "b": 2, "c": 3, "customer_id": 7}
    ask(server, body={"dataframe_records": [record]})
    compared(server, 1)
    for name in ("main", "new"):
        (request,) = captured(server, name)
        assert sent(request) == {name: [value] for name, value in record.items()}


def test_uncaptured_request_has_no_shadow_row(serve, bias_folders):
    server = serve(bias_folders["1"], bias_folders["2"], fraction=0.5)
    for _ in range(30):
        predict(server, [1, 2, 3])
    compared(server, 30)
    shadows = answers_by_id(server, "new")
    assert shadows.keys() == answers_by_id(server, "main").keys()
    assert 0 < len(shadows) < 30


def test_refusing_shadow_counts_as_failed(serve, bias_folders, model_folders, caplog):
    server = serve(bias_folders["1"], model_folders["mixed"])
    assert predict(server, [1, 2, 3]).status == 200

    def logged():
        return [record for record in caplog.records if record.name.endswith(".shadow")]

    wait_until(logged, what="the line of the log")
    assert shadowed(server, "requests", outcome="failed") == 1
    assert shadowed(server, "requests", outcome="compared") == 0
    (record,) = logged()
    assert mentions(record.message, "e/new", "'carrier', 'distance', 'hour', 'late'")
    assert record.exc_info is None


@pytest.mark.parametrize("is_async", [False, True])
def test_batched_requests_are_compared_with_their_answers(serve, bias_folders, tmp_path, is_async):
    same = servers.single_model(tmp_path / "same", 1000.0)
    server = serve(bias_folders["1"], same, {"max_batch_size": 16})
    answers: SimpleQueue[RawResponse] = SimpleQueue()

    def one(number):
        body = {"inputs": [[number, 0, 0], [0, number, 1]]}
        if not is_async:
            answers.put(ask(server, body=body))
            return
        assert handle_request_async(server, post(body=body), answers.put)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(100)))
    variants = {answers.get(timeout=60).headers["X-Model-Variant"] for _ in range(100)}
    assert variants == {"main"}
    compared(server, 100)
    assert shadowed(server, "rows", agreement="same") == 200
    assert answers_by_id(server, "new") == answers_by_id(server, "main")


@pytest.mark.parametrize("most", [1, 16])
def test_unbatchable_shadow_sees_each_request_alone(serve, tmp_path, most):
    mean = "mean (float[N,1] X) => (float[N,1] y) { m = ReduceMean(X) y = Sub(X, m) }"
    same = "same (float[N,1] X) => (float[N,1] y) { y = Sub(X, X) }"
    signature = columns(a="double")
    folders = [
        write_model(tmp_path / name, text, signature) for name, text in (("s", same), ("m", mean))
    ]
    server = serve(*folders, {"max_batch_size": most})
    assert server.dataplane.can_infer_async("e") == (most > 1)  # The shadow does not matter.
    for number in range(50):
        ask(server, body={"dataframe_records": [{"a": number}]})
    compared(server, 50)
    assert shadowed(server, "rows", agreement="same") == 50


class Slow:
    """A version that waits for an event before it computes, and refuses 13."""

    def __init__(self, model):
        self.model = model
        self.go_on = threading.Event()
        self.runs = 0

    def __getattr__(self, name):
        return getattr(self.model, name)

    def run(self, feeds, *others):
        self.runs += 1
        self.go_on.wait(60)
        if (feeds["X"] == 13).any():
            raise InferenceError("13 is refused")
        return self.model.run(feeds, *others)


@pytest.fixture
def slow(serve, bias_folders):
    """Return a server, its answering variant, and the predictor of the shadow."""
    server = serve(bias_folders["1"], bias_folders["2"])
    variant = server.repository.select_variant("e")
    (shadow,) = variant.shadows
    predictor = Slow(shadow.loaded.predictor)
    shadow = replace(shadow, loaded=replace(shadow.loaded, predictor=predictor))
    yield server, replace(variant, shadows=(shadow,)), predictor
    predictor.go_on.set()


def offer(shadows, variant, numbers):
    """Mirror requests of one row, whose values and id are the number."""
    for number in numbers:
        record = RequestRecord("e", "main", "", str(number), 0, 0)
        rows = {"X": np.full((1, 3), number, np.float32)}
        shadows.mirror(variant, record, True, rows, {"y": np.ones((1, 1), np.float32)})


@pytest.fixture
def shadows(slow, tmp_path):
    """Return a function that opens the shadows of the slow server."""
    with ExitStack() as opened:

        def open_shadows(**bounds):
            server, _, predictor = slow
            shadows = Shadows(CaptureWriter(tmp_path / "spool"), server.metrics, **bounds)
            opened.callback(shadows.close)
            opened.callback(predictor.go_on.set)
            return shadows

        yield open_shadows


def ids(tmp_path):
    return [int(request.record.prediction_id) for request in captured(tmp_path / "spool", "new")]


@pytest.mark.parametrize("bound", [{"max_copies": 3}, {"max_bytes": 3 * 16}])
def test_copies_beyond_the_bound_are_dropped(slow, shadows, tmp_path, bound):
    server, variant, predictor = slow
    offer(shadows(**bound), variant, range(10))
    assert shadowed(server, "requests", outcome="dropped") == 7
    predictor.go_on.set()
    compared(server, 3)
    assert ids(tmp_path) == [0, 1, 2]  # The newest copies are dropped.


def test_copies_are_dropped_without_a_thread(slow, shadows, monkeypatch):
    server, variant, predictor = slow
    opened = shadows()
    predictor.go_on.set()
    with monkeypatch.context() as scarce:
        error = RuntimeError("can't start new thread")
        scarce.setattr(threading.Thread, "start", lambda thread: raise_it(error))
        offer(opened, variant, range(2))
    assert shadowed(server, "requests", outcome="dropped") == 2
    offer(opened, variant, [2])
    compared(server, 1)


def test_failed_copy_does_not_affect_others(slow, shadows, tmp_path):
    server, variant, predictor = slow
    opened = shadows()
    offer(opened, variant, [0])
    wait_until(lambda: predictor.runs == 1, what="the first run")
    offer(opened, variant, range(10, 20))
    predictor.go_on.set()
    compared(server, 10)
    wait_until(
        lambda: shadowed(server, "requests", outcome="failed") == 1, what="the copy that fails"
    )
    assert ids(tmp_path) == [0, 10, 11, 12, 14, 15, 16, 17, 18, 19]


def test_hanging_shadow_delays_nothing(slow, shadows):
    server, variant, predictor = slow
    opened = shadows(max_copies=50)
    offer(opened, variant, [0])
    wait_until(lambda: predictor.runs == 1, what="the first run")
    offer(opened, variant, range(1000))
    assert shadowed(server, "requests", outcome="dropped") == 951
    opened.close(seconds=0.01)
    assert not predictor.go_on.is_set()


def test_copies_have_a_lower_priority(serve, bias_folders):
    server = serve(bias_folders["1"], bias_folders["2"])
    predict(server, [1, 2, 3])
    compared(server, 1)
    thread = server.shadows._thread  # The threads of other tests may still run.
    assert thread is not None
    assert thread.native_id is not None
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) > os.getpriority(os.PRIO_PROCESS, 0)


def test_copies_are_computed_without_lower_priority(slow, shadows, monkeypatch):
    server, variant, predictor = slow
    error = PermissionError(errno.EPERM, "Operation not permitted")  # systemd may do this
    monkeypatch.setattr(os, "nice", lambda increment: raise_it(error))
    predictor.go_on.set()
    offer(shadows(), variant, [0])
    compared(server, 1)


def test_server_without_shadow_starts_no_thread(serve_here, bias_folders):
    server = serve_here({"e": {"main": servers.variant(bias_folders["1"])}})
    predict(server, [1, 2, 3])
    assert server.shadows._thread is None


def test_chosen_version_is_not_its_shadow(serve_here, bias_folders):
    main, two = (servers.variant(bias_folders[version], version, weight=50) for version in "12")
    server = serve_here({"e": {"watched": two | {"shadow": True}, "main": main, "new": two}})
    assert server.repository.select_variant("e", "2").name == "new"


def test_endpoints_with_shared_versions_are_counted_apart(serve_here, bias_folders):
    variants = {
        "main": servers.variant(bias_folders["1"]),
        "new": servers.variant(bias_folders["2"], "2", shadow=True),
    }
    server = serve_here({"e": variants, "f": variants})
    for endpoint in "eff" * 10:
        ask(server, f"/endpoints/{endpoint}/invocations")
    compared(server, 30)
    assert [shadowed(server, "rows", endpoint=name) for name in "ef"] == [10, 20]


@pytest.mark.long
def test_pyfunc_shadows_a_pyfunc(serve, tmp_path):
    folder = save_pyfuncs(tmp_path)["days"]
    server = serve(folder, folder)
    wait_until(lambda: not server.repository.not_ready_reason(), 60, "the side processes")
    records = [{"when": "2013-07-01", "name": "a"}, {"when": "2013-07-02", "name": "b"}]
    assert ask(server, body={"dataframe_records": records}).status == 200
    compared(server, 1)
    assert shadowed(server, "rows") == shadowed(server, "rows", agreement="same") == 2


COLUMNS = (Column("name", "string"), Column("hour", "long"), Column("distance", "double"))
STACKED = compile_schema(
    COLUMNS,
    (),
    (
        Input("text", "str", (-1, 1), ("name",), missing="none"),
        Input("numbers", "float32", (-1, 2), ("hour", "distance")),
    ),
)
APART = compile_schema(
    COLUMNS[::-1],
    (),
    (
        Input("h", "int64", (-1, 1), ("hour",)),
        Input("d", "float64", (-1,), ("distance",)),
        Input("n", "str", (-1, 1), ("name",), missing="?"),
    ),
)
DATA: dict[str, list[Any]] = {"name": ["a", None], "hour": [7, 8], "distance": [0.5, float("nan")]}


def test_columns_are_translated_by_name():
    feeds = translate_feeds(STACKED.from_columns(DATA), STACKED, APART)
    assert {name: (array.dtype.kind, array.shape) for name, array in feeds.items()} == {
        "h": ("i", (2, 1)),
        "d": ("f", (2,)),
        "n": ("O", (2, 1)),
    }
    np.testing.assert_array_equal(feeds["h"], [[7], [8]])
    np.testing.assert_array_equal(feeds["d"], [0.5, np.nan])
    assert feeds["n"].tolist() == [["a"], ["?"]]


def test_equal_schema_takes_the_same_arrays():
    feeds = STACKED.from_columns(DATA)
    assert translate_feeds(feeds, STACKED, STACKED) is feeds


def test_unread_column_is_missing():
    wider = compile_schema(
        (*COLUMNS, Column("more", "double")), (), (Input("m", "float64", (-1, 1), ("more",)),)
    )
    with pytest.raises(SchemaMismatch, match="'more' is missing"):
        translate_feeds(STACKED.from_columns(DATA), STACKED, wider)
