"""Loading a version warms it up and determines if its requests can be batched."""

import logging
import re
import subprocess
import sys

import onnx
import pytest
import requests
import yaml

from mlflow_deploy_plugin.core.errors import InvalidArtifact, ModelError
from mlflow_deploy_plugin.core.processes import memory
from mlflow_deploy_plugin.serve.models.loading import (
    MemoryLimit,
    has_random_nodes,
    load_warm,
    worker_memory_limit,
)
from mlflow_deploy_plugin.serve.runtime.batcher import BatchPolicy
from mlflow_deploy_plugin.serve.runtime.feeds import row_count
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import ON_CPU, Placement
from tests.support.models import IDENTITY, mixed_model, write_model
from tests.support.page_models import with_example
from tests.support.refusals import mentions, refused
from tests.support.waiting import wait_until

FIXED = "fixed (float[2,2] X) => (float[2,2] y) { y = Identity(X) }"
NOISY = "noisy (float[N,2] X) => (float[N,2] y) { noise = RandomNormalLike(X) y = Add(X, noise) }"
DROPPING = (
    "dropping (float[N,2] X) => (float[N,2] y) <float p = {0.5}, bool t = {1}> { y = Dropout(X, p, "
    "t) }"
)

ENDLESS = """
endless (float[N,2] X) => (float[N,2] y) <int64 trips = {1000000000000}, bool go = {1}> {
  y = Loop(trips, go, X) <body = step (int64 i, bool c, float[N,2] s) => (bool d, float[N,2] t)
    <float[1] one = {1.0}> { d = Identity(c)
      t = Add(s, one) }>
}"""


def test_endless_graph_is_refused(tmp_path):
    with pytest.raises(InvalidArtifact, match=r"within 0\.3 s"):
        load_warm(write_model(tmp_path / "model", ENDLESS), Placement(), 1, timeout_seconds=0.3)


CYCLE = """cycle (float[N,1] x) => (float[N,1] y) {
  y = ai.onnx.ml.TreeEnsembleRegressor<n_targets = 1, nodes_nodeids = [0, 1, 2, 3, 4, 5],
    nodes_treeids = [0, 0, 0, 0, 0, 0], nodes_featureids = [0, 0, 0, 0, 0, 0],
    nodes_modes = ["BRANCH_LEQ", "BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"],
    nodes_values = [-1.0, -1.0, 9.0, 0.0, 0.0, 0.0], nodes_truenodeids = [5, 4, 1, 0, 0, 0],
    nodes_falsenodeids = [1, 2, 3, 0, 0, 0], target_nodeids = [3, 4, 5],
    target_treeids = [0, 0, 0], target_ids = [0, 0, 0], target_weights = [1.0, 2.0, 3.0]>(x) }"""


@pytest.mark.long
def test_load_without_end_stops_no_other_model(serve, tmp_path):
    folders = {
        name: write_model(tmp_path / name, graph, model_id=name)
        for name, graph in {"old": IDENTITY, "new": IDENTITY, "bad": CYCLE}.items()
    }
    spec = tmp_path / "spec.yaml"

    def want(**endpoints):
        server = {"request_timeout_seconds": 1}
        documents = [
            {"name": name, "server": server, "variants": {"v1": {"model": str(folders[model])}}}
            for name, model in endpoints.items()
        ]
        (tmp_path / "next").write_text(yaml.safe_dump_all(documents))
        (tmp_path / "next").replace(spec)

    want(e="old")
    running = serve("--spec", str(spec)).wait_ready()
    want(e="old", bad="bad")
    wait_until(lambda: "2 workers died" in running.log.read_text(), 120, "the end of the load")
    want(e="new", bad="bad")
    wait_until(lambda: running.version() == "new", what="the new version")
    assert running.log.read_text().count("is loaded without end") <= 3
    url = f"{running.url}/endpoints/bad/invocations"
    assert mentions(requests.post(url, json={"inputs": [[1]]}, timeout=30).text, "died")


@pytest.mark.parametrize("newer", ["ir_version", "opset"])
def test_file_of_a_newer_onnx_is_refused(tmp_path, newer):
    folder = write_model(tmp_path / "model")
    model = onnx.load(folder / "model.onnx")
    if newer == "opset":
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    onnx.save(model, folder / "model.onnx")
    with refused(InvalidArtifact, "99"):
        load_warm(folder, Placement(), 1)


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [(None, {1}), (BatchPolicy(16, preferred_batch_size=(5,)), {1, 2, 4, 5, 8, 16})],
)
def test_every_batch_size_is_warmed(tmp_path, monkeypatch, policy, sizes):
    row = {"carrier": "AA", "distance": 1.0, "hour": 1, "late": True}
    folder = with_example(mixed_model(tmp_path), {"dataframe_records": [row] * 3})
    computed = set()
    run = OnnxModel.run

    def note(model, feeds):
        computed.add(row_count(feeds))
        return run(model, feeds)

    monkeypatch.setattr(OnnxModel, "run", note)

    load_warm(folder, Placement(), 1, policy)

    assert computed >= sizes


def test_version_refusing_zeros_starts_cold(tmp_path, caplog):
    graph = """g (float[N,2] X) => (float[N,2] y, float[N] onnxserve_refused_rows) \
<int64[1] axis = {1}> {
      y = Log(X)
      mark = Sub(y, y)
      onnxserve_refused_rows = ReduceSum<keepdims=0>(mark, axis)
    }"""
    with caplog.at_level(logging.INFO):
        load_warm(write_model(tmp_path / "model", graph), Placement(), 1)

    assert mentions(caplog.text, "no warm-up", "row 0", "refuses it")


def test_padded_texts_do_not_count(tmp_path):
    pytest.importorskip("tokenizers")
    from tests.support.texts import text_model

    warm = load_warm(
        text_model(tmp_path / "model"), ON_CPU, 1, BatchPolicy(max_batch_size=8, pads=True)
    )
    assert isinstance(warm.predictor, OnnxModel)
    assert warm.batcher is not None
    warm.predictor.max_text_characters = 500
    feeds = warm.predictor.schema.from_columns({"text": ["a" * 100] * 5})
    assert len(warm.batcher.run(feeds)["embedding"]) == 5


def test_fixed_batch_is_never_batched(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        warm = load_warm(write_model(tmp_path / "model", FIXED), Placement(), 1, BatchPolicy(8))

    assert warm.batcher is None
    assert mentions(caplog.text, "not batched", "batch dimension", "'X'")


@pytest.mark.parametrize(
    ("graph", "is_random"),
    [(NOISY, True), (DROPPING, True), (FIXED, False)],
    ids=["noisy", "dropping", "fixed"],
)
def test_random_nodes_are_found(tmp_path, graph, is_random):
    folder = write_model(tmp_path / "model", graph)

    assert has_random_nodes(next(folder.glob("**/*.onnx"))) == is_random
    warm = load_warm(folder, Placement(), 1, check_determinism=True)
    assert warm.is_deterministic == (not is_random)


MIB = 2**20


@pytest.fixture
def model(tmp_path):
    """Create a folder of 16 MiB."""
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "weights").open("wb") as file:
        file.truncate(16 * MIB)
    return tmp_path


@pytest.fixture
def small(tmp_path_factory):
    """Create a folder that is too small to measure its load."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "weights").write_bytes(b"x")
    return folder


def test_memory_of_descendants_is_counted():
    holds = "held = b'x' * (64 << 20); print('held', flush=True); input()"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {holds!r}])"
    before = MemoryLimit(None).used()
    command = [sys.executable, "-c", starts]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert MemoryLimit(None).used() - before > 64 * MIB
        child.communicate(b"\n")


def test_version_above_the_memory_limit_is_refused(model, small):
    used = MemoryLimit(None).used()
    for room in (64, 16):
        limit = MemoryLimit(used + room * MIB)
        with limit.loading(small):
            pass
        if room == 64:
            with limit.loading(model):
                pass
    with pytest.raises(ModelError) as refused, limit.loading(model):
        pytest.fail("it was loaded")
    assert mentions(refused.value.message, "about 32 MiB", "server.max_worker_memory_bytes")


def test_first_version_may_use_all_memory(model):
    with MemoryLimit(MemoryLimit(None).used() + 24 * MIB).loading(model):
        pass
    with pytest.raises(ModelError, match="about 16 MiB"), MemoryLimit(MIB).loading(model):
        pass


_TAKES_THREE_TIMES_ITS_FILES = """
import sys
from pathlib import Path
from mlflow_deploy_plugin.core.errors import ModelError
from mlflow_deploy_plugin.serve.models.loading import MemoryLimit

limit, model = MemoryLimit(MemoryLimit(None).used() + 80 * 2**20), Path(sys.argv[1])
with limit.loading(model):
    held = b"x" * (48 * 2**20)
try:
    with limit.loading(model):
        pass
except ModelError as error:
    print(error.message)
"""


def test_memory_is_predicted_from_the_last_load(model):
    """The measurement runs in a new process, so that other tests do not change its
    memory.
    """
    command = [sys.executable, "-c", _TAKES_THREE_TIMES_ITS_FILES, str(model)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert re.match(r"loading it would take about (4[789]|50) MiB", output), output


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        ("max", None),
        ("9223372036854771712", None),
        (str(1024 * MIB), 384 * MIB),
        (str(4096 * MIB), 1856 * MIB),
    ],
)
def test_worker_has_its_share_of_the_container(tmp_path, monkeypatch, content, limit):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "memory.max").write_text(content)
    monkeypatch.setattr(memory, "cgroup_folders", {"memory": [tmp_path / "own", tmp_path]}.get)
    assert worker_memory_limit(None, 2) == limit
    assert worker_memory_limit(300, 2) == 300
