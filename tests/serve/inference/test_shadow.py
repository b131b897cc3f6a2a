"""Shadows are compared, captured and bounded, and never delay a response."""

import errno
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.errors import InferenceError
from mlflow_deploy_plugin.core.statedir.metric_files import read_families
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.http.routes import handle_request_async
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.inference.shadow import Shadows
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.model import Predictor
from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter
from tests.support import servers
from tests.support.bodies import arrow_stream, v2_tensor
from tests.support.handling import ask, handle
from tests.support.models import columns, graph_tensor, mixed_model, write_model
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


def predict(server: Server, *rows: list[float]) -> RawResponse:
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


def captured(place, variant):
    spool = place if isinstance(place, Path) else place.capture.spool
    requests = read_spool(spool)
    return [request for request in requests if request.record.variant == variant]


def test_an_answer_is_compared_with_the_shadows_answer(serve, bias_folders):
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


def test_equal_labels_agree(serve, model_folders, tmp_path):
    server = serve(model_folders["mixed"], mixed_model(tmp_path / "again"))
    row = {"carrier": "AA", "distance": 5.0, "hour": 3, "late": True}
    body = orjson.dumps({"dataframe_records": [row, row | {"carrier": "B6"}]})
    ask(server, body=body)
    compared(server, 1)
    assert shadowed(server, "rows", agreement="same") == 2
    assert shadowed(server, "difference") == 0.0


def test_the_shadows_rows_are_captured_under_the_ids_of_the_answer(serve, bias_folders):
    server = serve(bias_folders["1"], bias_folders["2"], max_rows_per_request=1)
    response = predict(server, [1, 2, 3], [4, 5, 6])
    compared(server, 1)
    (request,) = captured(server, "new")
    (answered,) = captured(server, "main")
    assert request.record == answered.record._replace(
        variant="new", latency=request.record.latency, is_shadow=True
    )
    assert 0 < answered.record.latency < 60e6
    assert request.record.prediction_id == response.headers["X-Prediction-Id"]
    assert request.model.version == "2"
    sent = request.model.schema.to_columns(request.feeds)
    assert {name: array.tolist() for name, array in sent.items()} == {"a": [1], "b": [2], "c": [3]}
    assert request.outputs["y"].tolist() == [[2006.0]]


def test_the_shadows_rows_have_the_keys_of_the_request(serve, bias_folders, tmp_path):
    """The shadow has the same schema as the answering version, or another schema that
    needs converted feeds.
    """
    inputs = [graph_tensor("X", "float32", -1, 3, columns=["c", "b", "a"])]
    outputs = [graph_tensor("y", "float32", -1, 1, role="values")]
    section = {"inputs": inputs, "outputs": outputs, "prediction": ["y"]}
    signature = columns(a="double", b="double", c="double")
    other = write_model(tmp_path / "other", servers.single(2000.0), signature, section)
    for shadow in (bias_folders["2"], other):
        server = serve(bias_folders["1"], shadow, keys=["customer_id"])
        record = {"a": 1, "b": 2, "c": 3, "customer_id": 7}
        body = orjson.dumps({"dataframe_records": [record]})
        ask(server, body=body)
        compared(server, 1)
        for name in ("main", "new"):
            (request,) = captured(server, name)
            sent = request.model.schema.to_columns(request.feeds)
            assert {name: array.tolist() for name, array in sent.items()} == {
                name: [v] for name, v in record.items()
            }


def test_a_request_that_is_not_captured_has_no_shadow_row(serve, bias_folders):
    server = serve(bias_folders["1"], bias_folders["2"], fraction=0.5)
    for _ in range(30):
        predict(server, [1, 2, 3])
    compared(server, 30)
    ids = [
        {request.record.prediction_id for request in captured(server, name)}
        for name in ("main", "new")
    ]
    assert ids[0] == ids[1]
    assert 0 < len(ids[0]) < 30


def test_a_shadow_that_refuses_the_input_has_failed(serve, bias_folders, model_folders, caplog):
    server = serve(bias_folders["1"], model_folders["mixed"])
    assert predict(server, [1, 2, 3]).status == 200
    wait_until(lambda: shadowed(server, "requests", outcome="failed") == 1, what="the failure")
    assert shadowed(server, "requests", outcome="compared") == 0
    (record,) = [record for record in caplog.records if record.name.endswith(".shadow")]
    assert mentions(record.message, "e/new", "'carrier', 'distance', 'hour', 'late'")
    assert record.exc_info is None


def test_batched_requests_are_each_compared_with_their_own_answer(serve, bias_folders, tmp_path):
    server = serve(
        bias_folders["1"], servers.single_model(tmp_path / "same", 1000.0), {"max_batch_size": 16}
    )
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: predict(server, [number, 0, 0], [0, number, 1]), range(100)))
    compared(server, 100)
    assert shadowed(server, "rows", agreement="same") == 200
    answers = {
        request.record.prediction_id: request.outputs["y"].tolist()
        for request in captured(server, "main")
    }
    assert {
        request.record.prediction_id: request.outputs["y"].tolist()
        for request in captured(server, "new")
    } == answers


@pytest.mark.parametrize("most", [1, 16])
def test_a_shadow_whose_rows_depend_on_each_other_sees_each_request_alone(serve, tmp_path, most):
    mean = "mean (float[N,1] X) => (float[N,1] y) { m = ReduceMean(X) y = Sub(X, m) }"
    same = "same (float[N,1] X) => (float[N,1] y) { y = Sub(X, X) }"
    signature = columns(a="double")
    folders = [
        write_model(tmp_path / name, text, signature) for name, text in (("s", same), ("m", mean))
    ]
    server = serve(*folders, {"max_batch_size": most})
    assert server.dataplane.can_infer_async("e") == (most > 1)  # The shadow does not matter.
    for number in range(50):
        body = orjson.dumps({"dataframe_records": [{"a": number}]})
        ask(server, body=body)
    compared(server, 50)
    assert shadowed(server, "rows", agreement="same") == 50


@dataclass
class Slow:
    """A version that waits for an event before it computes."""

    model: Predictor
    go_on: threading.Event
    runs: int = 0
    queue_seconds: float = 0.0
    unavailable_reason: str = ""

    def __post_init__(self) -> None:
        self.artifact = self.model.artifact
        self.schema = self.model.schema

    def run(
        self, feeds: Feeds, outputs: Sequence[str] | None = None, deadline: float = math.inf
    ) -> dict[str, Array]:
        self.runs += 1
        self.go_on.wait(60)
        return self.model.run(feeds, outputs, deadline)

    def prediction(
        self, outputs: Mapping[str, Array], of_table: bool = False
    ) -> Array | dict[str, Array]:
        return self.model.prediction(outputs)

    def limit_values(self, most: int, batch_rows: int = 1) -> None:
        self.model.limit_values(most, batch_rows)


@pytest.fixture
def slow(serve, bias_folders):
    """Return a server, its answering variant, and the predictor of the shadow."""
    server = serve(bias_folders["1"], bias_folders["2"])
    variant = server.repository.select_variant("e")
    (shadow,) = variant.shadows
    predictor = Slow(shadow.loaded.predictor, threading.Event())
    shadow = replace(shadow, loaded=replace(shadow.loaded, predictor=predictor))
    yield server, replace(variant, shadows=(shadow,)), predictor
    predictor.go_on.set()


def offer(shadows, variant, requests, first=0):
    for number in range(first, first + requests):
        record = RequestRecord("e", "main", "", str(number), 0, 0)
        shadows.mirror(
            variant,
            record,
            True,
            {"X": np.ones((1, 3), np.float32)},
            {"y": np.ones((1, 1), np.float32)},
        )


@pytest.mark.parametrize("bound", [{"max_copies": 3}, {"max_bytes": 3 * 16}])
def test_copies_beyond_the_queue_bound_are_dropped_and_counted(slow, tmp_path, bound):
    server, variant, predictor = slow
    shadows = Shadows(CaptureWriter(tmp_path / "spool"), server.metrics, **bound)
    offer(shadows, variant, 10)
    assert shadowed(server, "requests", outcome="dropped") == 7
    predictor.go_on.set()
    compared(server, 3)
    copies = captured(tmp_path / "spool", "new")
    # The newest copies are dropped.
    assert [request.record.prediction_id for request in copies] == ["0", "1", "2"]
    shadows.close()


def test_copies_are_dropped_and_counted_if_no_thread_can_start(slow, tmp_path, monkeypatch):
    server, variant, predictor = slow
    shadows = Shadows(CaptureWriter(tmp_path / "spool"), server.metrics)
    with monkeypatch.context() as scarce:
        scarce.setattr(
            threading.Thread,
            "start",
            lambda thread: raise_it(RuntimeError("can't start new thread")),
        )
        offer(shadows, variant, 2)
    assert shadowed(server, "requests", outcome="dropped") == 2
    predictor.go_on.set()
    offer(shadows, variant, 1)
    compared(server, 1)
    shadows.close()


def test_copy_that_fails_does_not_affect_others(slow, tmp_path, monkeypatch):
    server, variant, predictor = slow
    model = predictor.model

    class Picky:
        def run(self, feeds: Feeds, *others: Any) -> dict[str, Array]:
            if (feeds["X"] == 13).any():
                raise InferenceError("13 is refused")
            return model.run(feeds, *others)

    monkeypatch.setattr(predictor, "model", Picky())
    shadows = Shadows(CaptureWriter(tmp_path / "spool"), server.metrics)
    offer(shadows, variant, 1)
    wait_until(lambda: predictor.runs == 1, what="the first run")
    for number in range(10, 20):
        record = RequestRecord("e", "main", "", str(number), 0, 0)
        rows = {"X": np.full((1, 3), number, np.float32)}
        shadows.mirror(variant, record, True, rows, {"y": np.ones((1, 1), np.float32)})
    predictor.go_on.set()
    compared(server, 10)
    wait_until(
        lambda: shadowed(server, "requests", outcome="failed") == 1, what="the copy that fails"
    )
    ids = [request.record.prediction_id for request in captured(tmp_path / "spool", "new")]
    assert ids == ["0", *(str(number) for number in range(10, 20) if number != 13)]
    shadows.close()


def test_a_shadow_that_does_not_come_back_delays_neither_an_answer_nor_the_end(slow, tmp_path):
    server, variant, predictor = slow
    shadows = Shadows(CaptureWriter(tmp_path / "spool"), server.metrics, max_copies=50)
    offer(shadows, variant, 1)
    wait_until(lambda: predictor.runs == 1, what="the first run")
    offer(shadows, variant, 1000)
    assert shadowed(server, "requests", outcome="dropped") == 951
    shadows.close(seconds=0.01)
    assert not predictor.go_on.is_set()


def test_copies_are_computed_at_a_lower_priority(serve, bias_folders):
    server = serve(bias_folders["1"], bias_folders["2"])
    predict(server, [1, 2, 3])
    compared(server, 1)
    thread = server.shadows._thread  # The threads of other tests may still run.
    assert thread is not None
    assert thread.native_id is not None
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) > os.getpriority(os.PRIO_PROCESS, 0)


def test_copies_are_computed_where_the_system_lowers_no_priority(slow, tmp_path, monkeypatch):
    def refuse(increment):
        raise PermissionError(errno.EPERM, "Operation not permitted")  # systemd may do this

    server, variant, predictor = slow
    monkeypatch.setattr(os, "nice", refuse)
    predictor.go_on.set()
    shadows = Shadows(CaptureWriter(tmp_path / "spool"), server.metrics)
    offer(shadows, variant, 1)
    compared(server, 1)
    shadows.close()


def test_a_server_without_a_shadow_starts_no_thread(serve_here, bias_folders):
    server = serve_here({"e": {"main": servers.variant(bias_folders["1"])}})
    predict(server, [1, 2, 3])
    assert server.shadows._thread is None


def test_a_version_that_is_asked_for_by_its_number_is_not_answered_by_its_shadow(
    serve_here, bias_folders
):
    main, two = (servers.variant(bias_folders[version], version, weight=50) for version in "12")
    server = serve_here({"e": {"watched": two | {"shadow": True}, "main": main, "new": two}})
    assert server.repository.select_variant("e", "2").name == "new"


def test_whatever_the_protocol_a_copy_is_compared(serve, bias_folders):
    server = serve(bias_folders["1"], bias_folders["2"])
    columns = {name: pa.array([1.0, 2.0]) for name in "abc"}
    arrow = "application/vnd.apache.arrow.stream"
    tensor = v2_tensor("X", "FP32", [1.0] * 6, [2, 3])
    v2 = orjson.dumps({"inputs": [tensor], "outputs": [{"name": "y"}]})
    requests = [
        RawRequest(
            "POST", "/invocations", {"content-type": arrow}, arrow_stream(pa.table(columns))
        ),
        RawRequest("POST", "/invocations", {"content-type": "text/csv"}, b"a,b,c\n1,2,3\n4,5,6\n"),
        RawRequest("POST", "/v2/models/e/infer", {"content-type": "application/json"}, v2),
    ]
    assert [handle(server, request).status for request in requests] == [200] * 3
    compared(server, 3)
    assert shadowed(server, "rows", agreement="different") == 6


def test_a_batch_that_an_event_loop_has_not_waited_for_is_compared(serve, bias_folders):
    server = serve(bias_folders["1"], bias_folders["2"], {"max_batch_size": 16})
    body = orjson.dumps({"inputs": [[1, 2, 3]]})
    answers: SimpleQueue[RawResponse] = SimpleQueue()
    for _ in range(20):
        request = RawRequest("POST", "/invocations", {"content-type": "application/json"}, body)
        assert handle_request_async(server, request, answers.put)
    assert {answers.get(timeout=60).headers["X-Model-Variant"] for _ in range(20)} == {"main"}
    compared(server, 20)


def test_endpoints_that_share_their_versions_are_counted_apart(serve_here, bias_folders):
    variants = {
        "main": servers.variant(bias_folders["1"]),
        "new": servers.variant(bias_folders["2"], "2", shadow=True),
    }
    server = serve_here({"e": variants, "f": variants})
    body = orjson.dumps({"inputs": [[1, 2, 3]]})
    for path in [
        "/endpoints/e/invocations",
        "/endpoints/f/invocations",
        "/endpoints/f/invocations",
    ] * 10:
        ask(server, path, body=body)
    compared(server, 30)
    assert [shadowed(server, "rows", endpoint=name) for name in "ef"] == [10, 20]


@pytest.mark.long
def test_a_pyfunc_shadows_another_by_the_body_that_each_reads_itself(serve, tmp_path):
    folder = save_pyfuncs(tmp_path)["days"]
    server = serve(folder, folder)
    wait_until(lambda: not server.repository.not_ready_reason(), 60, "the side processes")
    body = orjson.dumps(
        {
            "dataframe_records": [
                {"when": "2013-07-01", "name": "a"},
                {"when": "2013-07-02", "name": "b"},
            ]
        }
    )
    assert ask(server, body=body).status == 200
    compared(server, 1)
    assert shadowed(server, "rows") == shadowed(server, "rows", agreement="same") == 2
