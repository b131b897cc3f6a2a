"""Tests that batched requests are answered as if each ran separately, and that an
invalid request fails only itself.

Rows are batched only if their answers do not depend on the other rows.
"""

import gc
import threading
import time
import warnings
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.errors import (
    DeadlineExceeded,
    DeviceMemoryFull,
    InferenceError,
    TooManyRequests,
)
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from mlflow_deploy_plugin.serve.runtime.batcher import Batcher, BatchPolicy, unbatchable_reason
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import (
    ON_CPU,
    import_onnxruntime,
    session_options,
)
from tests.support.models import write_model
from tests.support.raising import Panic, raise_it
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

EIGHT = BatchPolicy(max_batch_size=8)
LARGE = """large (float[N,1] x) => (float[N] y)
<int64[2] shape = {1, 1000000}, int64[1] axis = {1}> {
  wide = Expand(x, shape)
  y = ReduceMax<keepdims = 0>(wide, axis)
}"""
LONG_DELAY = 60_000_000
"""Microseconds, more than a test waits for a result. A result that arrives has
therefore not waited for the delay.
"""


class Model:
    """A model that refuses a row that begins with -1, and that computes only while
    `gate` is open.

    Attributes:
        answer: the model's function of x; by default y = 2x.
    """

    def __init__(self, answer=lambda x: x * 2):
        self.answer = answer
        self.gate = threading.Event()
        self.gate.set()
        self.begun = []

    def __call__(self, feeds, outputs=None):
        self.begun.append(len(feeds["x"]))
        assert self.gate.wait(30)
        if (feeds["x"][:, 0] == -1).any():
            raise InferenceError("a row begins with -1")
        return {"y": self.answer(feeds["x"])}


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(64) as pool:
        yield pool


def submitted(batcher, feeds, deadline=float("inf"), count=lambda *batch: None):
    """Submit a request as an event loop does."""
    future = Future()

    def done(result):
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

    batcher.submit(feeds, deadline, count, done)
    return future


@pytest.fixture(params=["run", "submit"])
def way(request):
    return request.param


@pytest.fixture
def ask(pool, way):
    """Send a request in a new thread, or as an event loop does, and return when the
    request waits or is being computed.
    """
    used = set()

    def ask(batcher, x, **more):
        used.add(batcher)
        before = len(batcher._queue), batcher._is_led
        feeds = x if isinstance(x, dict) else {"x": x}
        if way == "run":
            future = pool.submit(batcher.run, feeds, **more)
        else:
            future = submitted(batcher, feeds, **more)
        wait_until(
            lambda: future.done() or (len(batcher._queue), batcher._is_led) != before,
            what="the request",
        )
        return future

    yield ask
    for batcher in used:
        batcher.close()


def hold(model, ask, batcher, **more):
    """Send a request of one row, and return while the model computes it."""
    model.gate.clear()
    before = len(model.begun)
    first = ask(batcher, rows(1), **more)
    wait_until(lambda: len(model.begun) > before, what="the first run")
    return first


def rows(number, value=1.0, width=2):
    return np.full((number, width), value)


@settings(max_examples=25)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 3), st.booleans(), st.booleans()),
        min_size=1,
        max_size=40,
    ),
    limit=st.integers(2, 8),
    preferred=st.sets(st.integers(1, 8), max_size=2),
    delay=st.sampled_from([0, 200, 2000]),
    pads=st.booleans(),
)
def test_mixed_requests_are_answered_as_if_alone(requests, limit, preferred, delay, pads):
    policy = BatchPolicy(
        limit, tuple(size for size in preferred if size <= limit), delay, pads=pads
    )
    batcher = Batcher(Model(), policy)

    def one(number):
        count, width, is_bad, is_submitted = requests[number]
        x = np.random.default_rng(number).random((count, width))
        x[0, 0] = -1 if is_bad else x[0, 0]
        try:
            if is_submitted:
                return x, submitted(batcher, {"x": x}).result(30)["y"]
            return x, batcher.run({"x": x})["y"]
        except InferenceError as error:
            return x, error.message

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(len(requests))))

    batcher.close()
    for (x, answer), (_, _, is_bad, _) in zip(answers, requests, strict=True):
        if is_bad:
            assert mentions(str(answer), "begins with -1")
        else:
            np.testing.assert_array_equal(answer, x * 2)
    assert not batcher._queue
    assert not batcher._is_led


def test_waiting_requests_are_batched(model, ask):
    batcher = Batcher(model, EIGHT)
    counted = []
    count = lambda *batch: counted.append(batch)  # noqa: E731
    futures = [hold(model, ask, batcher, count=count)]
    futures += [ask(batcher, rows(2, float(number)), count=count) for number in range(5)]
    model.gate.set()

    answers = [future.result(30)["y"] for future in futures]

    assert [answer[0, 0] for answer in answers] == [2.0, 0.0, 2.0, 4.0, 6.0, 8.0]
    assert [len(answer) for answer in answers] == [1, 2, 2, 2, 2, 2]
    assert model.begun == [1, 8, 2]
    sizes, waits, seconds = zip(*counted, strict=True)
    assert list(sizes) == [1, 8, 2]
    assert waits[1] > 0
    assert min(waits + seconds) >= 0


def test_batches_are_padded_to_warm_sizes(model, ask):
    batcher = Batcher(model, replace(EIGHT, pads=True))
    for number in (1, 3, 5, 8, 9, 0):
        answer = batcher.run({"x": rows(number, 3.0)})["y"]
        np.testing.assert_array_equal(answer, rows(number, 6.0))
    # The requests above the limit and without rows run unchanged.
    assert model.begun == [1, 4, 8, 8, 9, 0]

    futures = [hold(model, ask, batcher)]
    futures += [ask(batcher, rows(number, float(number))) for number in (2, 0, 3, 0)]
    model.gate.set()
    for future, number in zip(futures, (1, 2, 0, 3, 0), strict=True):
        np.testing.assert_array_equal(future.result(30)["y"], rows(number, number * 2.0))
    assert model.begun[6:] == [1, 8]


def test_other_shapes_have_their_own_batch(model, ask):
    batcher = Batcher(model, EIGHT)
    futures = [hold(model, ask, batcher)]
    futures += [ask(batcher, rows(1, width=width)) for width in (2, 3, 2, 3)]
    model.gate.set()

    widths = [future.result(30)["y"].shape[1] for future in futures]
    assert widths == [2, 2, 3, 2, 3]
    assert model.begun == [1, 2, 2]


def test_idle_model_waits_for_a_full_batch(model, ask):
    batcher = Batcher(model, replace(EIGHT, max_queue_delay_microseconds=LONG_DELAY))
    futures = [ask(batcher, rows(2, float(number))) for number in range(4)]

    assert [future.result(30)["y"][0, 0] for future in futures] == [0.0, 2.0, 4.0, 6.0]
    assert model.begun == [8]


def test_preferred_size_is_computed_at_once(model, ask):
    batcher = Batcher(model, BatchPolicy(8, (4,), LONG_DELAY))
    futures = [ask(batcher, rows(2)) for _ in range(4)]

    for future in futures:
        future.result(30)
    assert model.begun == [4, 4]


def test_partial_batch_waits_for_the_delay(model):
    batcher = Batcher(model, replace(EIGHT, max_queue_delay_microseconds=20_000))
    began = time.monotonic()
    batcher.run({"x": rows(1)})

    assert time.monotonic() - began >= 0.02
    assert model.begun == [1]


def test_error_fails_only_its_own_request(model, ask):
    batcher = Batcher(model, EIGHT)
    first = hold(model, ask, batcher)
    good = [ask(batcher, rows(1, 3.0)), ask(batcher, rows(1, 4.0))]
    bad = ask(batcher, rows(1, -1.0))
    model.gate.set()

    assert [future.result(30)["y"][0, 0] for future in [first, *good]] == [2.0, 6.0, 8.0]
    with pytest.raises(InferenceError, match="begins with -1"):
        bad.result(30)
    assert sorted(model.begun) == [1, 1, 1, 1, 3]


@pytest.fixture
def limited(tmp_path):
    """Return a model with 4 MB per row, in an arena of ONNX Runtime of 24 MB."""
    onnxruntime = import_onnxruntime()
    kinds = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    arena = onnxruntime.OrtArenaCfg({"max_mem": 24 * 2**20, "arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", *kinds), arena)
    options = session_options(onnxruntime, 1)
    options.add_session_config_entry("session.use_env_allocators", "1")
    folder = write_model(tmp_path, LARGE)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    return OnnxModel(read_artifact(folder), session, ON_CPU)


def test_batch_beyond_device_memory_is_halved(limited, caplog):
    x = np.arange(23, dtype=np.float32)[:, np.newaxis]
    with pytest.raises(DeviceMemoryFull, match="lacks memory for these rows"):
        limited.run({"x": x})
    assert Batcher(limited.run, EIGHT).run({"x": x})["y"].tolist() == x[:, 0].tolist()
    assert "Available memory of" in caplog.text


def test_outputs_without_rows_are_computed_alone(ask):
    model = Model(lambda x: x.sum(keepdims=True).reshape(1))
    batcher = Batcher(model, EIGHT)
    futures = [hold(model, ask, batcher)]
    futures += [ask(batcher, rows(1, 2.0)), ask(batcher, rows(1, 3.0))]
    model.gate.set()

    assert [future.result(30)["y"].item() for future in futures] == [2.0, 4.0, 6.0]


def test_full_queue_refuses_with_retry_after(model, ask):
    batcher = Batcher(model, replace(EIGHT, max_queue_size=2))
    futures = [hold(model, ask, batcher), ask(batcher, rows(1)), ask(batcher, rows(1))]

    with pytest.raises(TooManyRequests, match="2 requests are already waiting") as refused:
        ask(batcher, rows(1)).result(30)

    assert refused.value.retry_after == 1
    model.gate.set()
    for future in futures:
        assert future.result(30)
    assert ask(batcher, rows(1)).result(30)


def test_expired_request_is_not_computed(model, ask, way, monkeypatch):
    batcher = Batcher(model, EIGHT)
    first = hold(model, ask, batcher, deadline=time.perf_counter() + 60)
    clock = time.perf_counter
    # A request that is being computed is answered.
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 120)
    deadline = time.perf_counter() + 0.05
    late = ask(batcher, rows(1, 5.0), deadline=deadline)
    patient = ask(batcher, rows(1, 6.0), deadline=deadline + 30)

    # A thread gives up while the model computes, an event loop afterwards.
    wait_until(lambda: late.done() if way == "run" else time.perf_counter() > deadline)
    assert not first.done()
    model.gate.set()
    assert first.result(30)["y"][0, 0] == 2.0
    assert patient.result(30)["y"][0, 0] == 12.0
    with pytest.raises(DeadlineExceeded):
        late.result(30)
    assert model.begun == [1, 1]


def test_past_deadline_is_refused_at_once(model, ask):
    batcher = Batcher(model, EIGHT)
    with pytest.raises(DeadlineExceeded):
        ask(batcher, rows(1), deadline=time.perf_counter() - 1).result(30)
    assert model.begun == []
    assert ask(batcher, rows(1)).result(30)["y"][0, 0] == 2.0


def test_threads_survive_a_panic(ask):
    def compute(feeds, outputs=None):
        if (feeds["x"] == -1).any():
            raise Panic("a tokenizer")
        return {"y": feeds["x"]}

    batcher = Batcher(compute, EIGHT)
    for _ in range(3):  # The batcher has two threads.
        with pytest.raises(Panic):
            ask(batcher, rows(1, -1)).result(30)
    assert ask(batcher, rows(1, 5)).result(30)["y"].tolist() == [[5, 5]]


def test_warm_sizes_are_powers_of_two_and_preferred():
    assert BatchPolicy(32).sizes == (1, 2, 4, 8, 16, 32)
    assert BatchPolicy(20, (6, 12)).sizes == (1, 2, 4, 6, 8, 12, 16, 20)
    assert BatchPolicy(1).sizes == (1,)


@pytest.fixture
def batcher(model):
    batcher = Batcher(model, replace(EIGHT, max_queue_size=4))
    yield batcher
    model.gate.set()
    batcher.close()
    wait_until(
        lambda: not any(thread.is_alive() for thread in batcher._threads),
        what="the end of the threads",
    )


def test_answered_request_is_released(model, batcher):
    class Version:
        pass

    gc.disable()
    try:
        for value in (1.0, -1.0):
            version = Version()
            alive = weakref.ref(version)
            answered = threading.Event()
            done = lambda result, version=version, answered=answered: answered.set()  # noqa: E731
            batcher.submit({"x": rows(1, value)}, float("inf"), lambda *batch: None, done)
            assert answered.wait(30)
            del version, done
            wait_until(lambda: alive() is None, seconds=5, what="the end of the version")  # noqa: B023
    finally:
        gc.enable()


def test_batcher_recovers_when_threads_start_again(batcher, monkeypatch):
    feeds = {"x": rows(1)}
    with monkeypatch.context() as scarce:
        error = RuntimeError("can't start new thread")
        scarce.setattr(threading.Thread, "start", lambda thread: raise_it(error))
        with pytest.raises(RuntimeError):
            submitted(batcher, feeds)

    assert submitted(batcher, feeds).result(30)["y"].tolist() == [[2.0, 2.0]]


def test_inputs_of_different_lengths_reach_the_graph(ask):
    def compute(feeds, outputs=None):
        raise InferenceError(str(sorted(len(array) for array in feeds.values())))

    with pytest.raises(InferenceError, match=r"\[1, 2\]"):
        ask(Batcher(compute, EIGHT), {"x": rows(1), "z": rows(2)}).result(30)


PER_ROW = """
per_row (float[N,2] X, string[N,1] s) => (float[N,1] y, string[N,1] t) <int64[1] axis = {1}> {
  y = ReduceSum(X, axis)
  t = Identity(s)
}"""
TOTAL = "total (float[N,2] X) => (float[1,2] y) <int64[1] axis = {0}> { y = ReduceSum(X, axis) }"

RUNNING_SUM = "running (float[N,2] X) => (float[N,2] y) <int64 axis = {0}> { y = CumSum(X, axis) }"
LAST_FIRST = (
    "last (float[N,2] X) => (float[N,2] y) <int64 axis = {0}> { y = CumSum<reverse = 1>(X, axis) }"
)
HINTED = """
hinted (float[N,2] X) => (float[N,2] y) <int64[1] axis = {0}, float[1] weight = {0.001}> {
  mean = ReduceMean(X, axis)
  hint = Mul(mean, weight)
  y = Add(X, hint)
}"""
TOTAL_AND_HINT = """
total_and_hint (float[N,2] X) => (float[N,1] total, float[N,2] y)
<int64[1] columns = {1}, int64[1] rows = {0}, float[1] weight = {WEIGHT}> {
  total = ReduceSum(X, columns)
  mean = ReduceMean(X, rows)
  hint = Mul(mean, weight)
  y = Add(X, hint)
}"""
QUANTIZED = """
quantized (float[N,2] X) => (float[N,2] y) {
  whole, scale, zero = DynamicQuantizeLinear(X)
  y = DequantizeLinear(whole, scale, zero)
}"""
POSITIVE = (
    "positive (float[N] X) => (float[M] y) <float zero = {0}> { c = Greater(X, zero) \n"
    " y = Compress(X, c) }"
)

DOUBLED = "doubled (float[N,2] X) => (float[M,2] y) { y = Concat<axis = 0>(X, X) }"


def load(folder, graph):
    return OnnxModel.load(write_model(folder / "model", graph))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (PER_ROW, ""),
        (TOTAL, "it has no batch dimension: none of its outputs has a free first dimension"),
        (RUNNING_SUM, "its output 'y' depends on the other rows of the batch"),
        (LAST_FIRST, "its output 'y' depends on the other rows of the batch"),
        (HINTED, "its output 'y' depends on the other rows of the batch"),
        (QUANTIZED, "its output 'y' depends on the other rows of the batch"),
        (POSITIVE, "its output 'y' does not have one entry per row"),
        (DOUBLED, "its output 'y' does not have one entry per row"),
    ],
    ids=lambda text: text.strip().partition(" ")[0],
)
def test_unbatchable_graph_has_a_reason(tmp_path, graph, reason):
    model = load(tmp_path, graph)

    explanation = unbatchable_reason(model, model.example_feeds())

    assert explanation.startswith(reason)
    assert bool(explanation) == bool(reason)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [("0", ""), ("0.000001", "its output 'y' depends on the other rows of the batch")],
)
def test_tolerance_of_a_batched_row_is_per_output(tmp_path, monkeypatch, weight, reason):
    model = load(tmp_path, TOTAL_AND_HINT.replace("WEIGHT", weight))
    compute = model.run
    runs = count()

    def run(feeds):
        """Sum `total` in another order in every second run."""
        outputs = compute(feeds)
        if next(runs) % 2:
            outputs["total"] = np.nextafter(outputs["total"], np.float32(np.inf))
        return outputs

    monkeypatch.setattr(model, "run", run)

    assert unbatchable_reason(model, {"X": np.array([[1, 2], [3, 4]], np.float32)}) == reason


def test_float16_is_probed_without_warnings(tmp_path):
    model = load(tmp_path, "half (float16[N,2] X) => (float16[N,2] y) { y = Identity(X) }")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unbatchable_reason(model, {"X": np.full((1, 2), 100, np.float16)}) == ""
