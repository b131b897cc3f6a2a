import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from mlflow_deploy_plugin.core.errors import NotFound, NotReady
from mlflow_deploy_plugin.core.statedir.files import WANTED, served_file, write_state
from mlflow_deploy_plugin.core.statedir.metric_files import read_series
from mlflow_deploy_plugin.core.statedir.models import (
    Listed,
    ServedModel,
    Wanted,
    WantedEndpoint,
    WantedVariant,
)
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.models import lazy_models
from mlflow_deploy_plugin.serve.models.lazy_models import LazyModels
from mlflow_deploy_plugin.serve.models.loading import load_warm
from mlflow_deploy_plugin.serve.models.repository import Repository
from mlflow_deploy_plugin.serve.observability.metrics import Metrics
from mlflow_deploy_plugin.serve.runtime.session import Placement
from tests.support import servers
from tests.support.refusals import refused
from tests.support.waiting import wait_until

NAMES = ("a", "b", "c", "d")
MODEL_BYTES = 2**19 + 4096
"""The estimated memory of a model, whose files have less than 2,048 bytes."""


class Worker:
    """A repository of listed models, and an agent that fetches them."""

    def __init__(self, root, memory_bytes, timeout_seconds=20.0):
        self.root = root
        self.fetched = []
        self.refusal = None
        self.loads = []
        self.gate = threading.Event()
        self.gate.set()
        self.hanging = set()
        self.store = threading.Event()
        self.metrics = Metrics(root / "metrics")
        self.folders = {name: servers.single_model(root / name, 1.0) for name in NAMES}
        self.repository = Repository(root, self.load)
        self.lazy = LazyModels(
            self.repository, self.fetch, memory_bytes, timeout_seconds, 4, self.metrics
        )
        self.repository.lazy = self.lazy
        self.list(dict.fromkeys(NAMES, "1 x"))

    def load(self, folder, python=""):
        self.loads.append(folder.name)
        assert self.gate.wait(20)
        return load_warm(folder, placement=Placement(), intra_op_num_threads=1)

    def fetch(self, name, mark):
        self.fetched.append(name)
        if self.refusal:
            raise self.refusal
        if name in self.hanging:
            assert self.store.wait(20)
        want = WantedVariant.model_validate(servers.variant(self.folders[name], mark[0]))
        model = ServedModel(name=name, mark=mark, endpoint=WantedEndpoint(variants={"v": want}))
        write_state(served_file(self.root, name), model)

    def list(self, marks, is_complete=True):
        listed = Listed(uri="models:/*@x", models=marks, is_complete=is_complete)
        write_state(self.root / WANTED, Wanted(generation=1, listed=listed))
        self.repository.poll()

    @property
    def loaded(self):
        return set(self.repository.table)


@pytest.fixture
def worker(tmp_path):
    worker = Worker(tmp_path, 2 * MODEL_BYTES)
    yield worker
    worker.gate.set()
    worker.store.set()
    worker.repository.stop()


def test_least_recently_used_model_leaves(worker):
    for name in ("a", "b", "a", "c"):
        assert worker.repository.select_variant(name).loaded.version == "1"
    assert worker.loaded == {"a", "c"}
    assert worker.repository.select_variant("b").endpoint == "b"
    assert worker.fetched == ["a", "b", "c"]  # The files remain on the disk.


def test_model_with_a_request_stays(worker):
    request = RawRequest("POST", "/", {}, b"")
    for name in ("a", "b"):
        worker.repository.select_variant(name)
    worker.lazy.hold("a", request)
    worker.repository.select_variant("c")
    assert worker.loaded == {"a", "c"}
    worker.lazy.release("a", request)
    worker.repository.select_variant("b")
    assert worker.loaded == {"b", "c"}


def test_too_large_model_is_refused(tmp_path):
    worker = Worker(tmp_path, MODEL_BYTES // 2)
    with refused(NotReady, "model_memory"):
        worker.repository.select_variant("a")


def test_slow_load_refuses_after_the_deadline(tmp_path):
    worker = Worker(tmp_path, math.inf, timeout_seconds=0.2)
    worker.gate.clear()
    with refused(NotReady, "retry"):
        worker.repository.select_variant("a")
    states = [entry["state"] for entry in worker.lazy.index()]
    assert states == ["LOADING", "UNAVAILABLE", "UNAVAILABLE", "UNAVAILABLE"]
    worker.gate.set()
    wait_until(lambda: worker.loaded == {"a"}, 20, "loaded")


def test_model_on_disk_passes_hanging_downloads(worker):
    worker.fetch("d", "1 x")
    worker.hanging = set("abc")
    with ThreadPoolExecutor(3) as callers:
        answers = [callers.submit(worker.repository.select_variant, name) for name in "abc"]
        wait_until(lambda: set("abc") <= set(worker.fetched), 20, "downloading")
        assert worker.repository.select_variant("d").endpoint == "d"
        assert not any(answer.done() for answer in answers)
        worker.store.set()


def test_slow_models_have_a_share_of_downloads(worker, monkeypatch):
    monkeypatch.setattr(lazy_models, "_SLOW_SECONDS", 0.0)
    worker.refusal = NotReady("no answer")
    for name in "abc":
        with refused(NotReady, "no answer"):
            worker.repository.select_variant(name)
        worker.lazy._models[name].retry_at = 0.0
    worker.refusal = None
    worker.hanging = set("abc")
    with ThreadPoolExecutor(3) as callers:
        answers = [callers.submit(worker.repository.select_variant, name) for name in "abc"]
        loading = lambda: [entry["state"] for entry in worker.lazy.index()].count("LOADING")  # noqa: E731
        wait_until(lambda: loading() == 3, 20, "loading")
        assert worker.repository.select_variant("d").endpoint == "d"
        assert len(worker.fetched) == 3 + 1 + 1  # The refused, one that is slow, and d.
        assert not any(answer.done() for answer in answers)
        worker.store.set()


def test_loads_and_memory_are_counted(worker, monkeypatch):
    monkeypatch.setattr(lazy_models, "_MOST_NAMED", 1)
    worker.refusal = NotReady("the gate has not passed")
    for name in ("c", "d"):
        with refused(NotReady, "gate"):
            worker.repository.select_variant(name)
    worker.refusal = None
    for name in ("a", "b", "d"):
        worker.lazy._models[name].retry_at = 0.0
        worker.repository.select_variant(name)
    worker.repository.poll()
    counted = {
        (name.removeprefix("onnxserve_model"), *series.labels.values()): series.value
        for name, of_name in read_series(worker.metrics.folder).items()
        for series in of_name
        if name.startswith("onnxserve_model")
    }
    assert counted.pop(("_load_seconds",)) > 0
    assert counted.pop(("_memory_bytes",)) == pytest.approx(2 * MODEL_BYTES, rel=0.01)
    assert counted == {
        ("_loads",): 5,
        ("_load_failures", "c"): 1,
        ("_load_failures", "other"): 1,
        ("s_left",): 1,
        ("s_in_memory",): 2,
        ("_memory_limit_bytes",): 2 * MODEL_BYTES,
    }


def test_model_of_the_whole_memory_is_updated(tmp_path):
    worker = Worker(tmp_path, MODEL_BYTES)
    worker.repository.select_variant("a")
    worker.folders["a"] = servers.single_model(tmp_path / "a2", 2.0)
    worker.list({"a": "2 x"})
    wait_until(lambda: worker.repository.select_variant("a").loaded.version == "2", 5, "2")


def test_removed_files_are_fetched_again(worker):
    worker.repository.select_variant("a")
    for name in ("b", "c"):
        worker.repository.select_variant(name)
    worker.folders["a"].rename(worker.root / "moved")
    worker.folders["a"] = worker.root / "moved"
    assert worker.repository.select_variant("a").endpoint == "a"


def test_changed_list_reloads_and_drops(worker):
    for name in ("a", "b"):
        worker.repository.select_variant(name)
    worker.list({"a": "2 x", "c": "1 x"})
    wait_until(lambda: worker.repository.select_variant("a").loaded.version == "2", 20, "2")
    assert worker.loaded == {"a"}
    with refused(NotFound, "b"):
        worker.repository.select_variant("b")


def test_recently_used_models_are_loaded_first(worker, tmp_path):
    for moment, name in enumerate(("c", "a", "d", "b")):
        worker.fetch(name, "1 x")
        os.utime(served_file(tmp_path, name), (moment, moment))
    after = Worker(tmp_path, 2 * MODEL_BYTES)
    wait_until(lambda: len(after.loaded) == 2, 20, "loaded")
    assert after.loads == ["b", "d"]
    assert after.fetched == []


def test_models_in_memory_note_their_uses_in_order(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(lazy_models, "_NOTE_SECONDS", 0.0)
    for name in ("b", "a", "c"):
        worker.repository.select_variant(name)
        os.utime(served_file(tmp_path, name), (1, 1))
    worker.lazy.poll()
    moments = [served_file(tmp_path, name).stat().st_mtime for name in ("b", "a", "c")]
    assert moments[0] == 1  # has left the memory
    assert time.time() - 40 < moments[1] < moments[2] < time.time()


@pytest.mark.parametrize(
    ("refusal", "reason"), [(NotReady("no gate"), "no gate"), (OSError("full"), "OSError")]
)
def test_fetch_error_is_kept_for_some_time(worker, refusal, reason):
    worker.refusal = refusal
    for _ in range(2):
        with refused(NotReady, reason):
            worker.repository.select_variant("a")
    assert worker.fetched == ["a"]


@pytest.mark.parametrize(("mark", "is_served"), [("2 6 5 x", True), ("2 6 6 x", False)])
def test_version_of_replaced_model_is_not_served(worker, tmp_path, mark, is_served):
    """A mark ends with the creation of the model, and a digest of the requirements."""
    worker.list({"a": "1 5 5 x", "b": "1 5 5 x"})
    for name in ("a", "b"):
        worker.repository.select_variant(name)
    worker.refusal = NotReady("the gate has not passed")
    worker.list({"a": mark})
    restarted = Worker(tmp_path, 2 * MODEL_BYTES)
    restarted.refusal = worker.refusal
    restarted.list({"a": mark})
    for repository in worker.repository, restarted.repository:
        if is_served:
            assert repository.select_variant("a").loaded.version == "1"
        else:
            with refused(NotReady, "gate has not passed"):
                repository.select_variant("a")
        with refused(NotFound, "b"):
            repository.select_variant("b")


def test_model_that_leaves_during_its_load_is_refused(worker):
    worker.gate.clear()
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(worker.repository.select_variant, "a")
        wait_until(lambda: worker.loads, 20, "loading")
        worker.list({"a": "1 6 6 x"})
        worker.gate.set()
        with refused(NotReady, "left"):
            answer.result(20)
    assert worker.repository.select_variant("a").loaded.version == "1"


def test_load_that_ends_at_once_is_not_kept(worker, monkeypatch):
    worker.repository.select_variant("a")
    submit = worker.lazy._loaders.submit

    def submit_slowly(*arguments):
        load = submit(*arguments)
        wait([load], 0.5)
        return load

    monkeypatch.setattr(worker.lazy._loaders, "submit", submit_slowly)
    model = worker.lazy._models["a"]
    worker.lazy._start("a", model).result(20)
    wait_until(lambda: model.loading is None, 20, "the load has ended")


def test_model_after_the_first_page_is_not_missing(worker):
    worker.list({"a": "1 x"}, is_complete=False)
    with refused(NotReady, "listed"):
        worker.repository.select_variant("b")
    worker.list({"a": "1 x"})
    with refused(NotFound, "b"):
        worker.repository.select_variant("b")
