"""Threads and providers of a session are what was asked for, never what ONNX Runtime would guess.

A graph is optimised once; whatever is wrong with the kept one, the original counts.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mlflow_deploy_plugin.errors import InvalidArtifact
from mlflow_deploy_plugin.runtime import available_cores, open_session, session
from mlflow_deploy_plugin.runtime.session import optimized_graph_path
from tests.support.models import adder, parse_graph


@pytest.mark.parametrize(
    ("cpu_max", "quota_v1", "expected"),
    [
        ("max 100000", "-1", 8),
        ("200000 100000", "-1", 2),
        ("50000 100000", "-1", 1),
        (None, "-1", 8),
        (None, "300000", 3),
        (None, None, 8),
    ],
)
def test_the_cores_are_those_that_the_cgroup_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str | None, quota_v1: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(session, "_CGROUP_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(session, "_CGROUP_V1_CPU", (tmp_path / "quota", tmp_path / "period"))
    if cpu_max is not None:
        (tmp_path / "cpu.max").write_text(cpu_max)
    if quota_v1 is not None:
        (tmp_path / "quota").write_text(quota_v1)
        (tmp_path / "period").write_text("100000\n")
    assert available_cores() == expected


X = np.random.default_rng(1).random((3, 600), dtype=np.float32)


@pytest.fixture(scope="session")
def large_graph(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """y = relu(x·w + b), 1.4 MB."""
    model = parse_graph("large (float[N,600] x) => (float[N,600] y) { m = MatMul(x, w) a = Add(m, b) y = Relu(a) }")
    random = np.random.default_rng(0)
    for name, shape in (("w", (600, 600)), ("b", (600,))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(random.random(shape, dtype=np.float32) - 0.5, name))
    return model.SerializeToString()


@pytest.fixture
def graph(tmp_path: Path, large_graph: bytes) -> Path:
    file = tmp_path / "model" / "model.onnx"
    file.parent.mkdir()
    file.write_bytes(large_graph)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "graphs"


def compute(session: Any) -> Any:
    return session.run(["y"], {"x": X})[0]


def test_the_optimised_graph_is_kept_and_computes_the_same(graph: Path, folder: Path) -> None:
    plain = compute(open_session(graph))
    first = compute(open_session(graph, kept_graphs=folder))
    (kept,) = folder.iterdir()
    second = compute(open_session(graph, kept_graphs=folder))

    np.testing.assert_array_equal(first, plain)
    np.testing.assert_array_equal(second, plain)
    assert list(folder.iterdir()) == [kept]


def test_what_is_kept_is_what_is_loaded(graph: Path, folder: Path) -> None:
    open_session(graph, kept_graphs=folder)
    (kept,) = folder.iterdir()
    kept.write_bytes(adder(5.0).SerializeToString())

    session = open_session(graph, kept_graphs=folder)

    assert session.run(None, {"x": np.zeros((1, 1), np.float32)})[0].item() == 5.0


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["empty", "half"])
def test_half_a_file_is_replaced(graph: Path, folder: Path, share: float) -> None:
    plain = compute(open_session(graph, kept_graphs=folder))
    (kept,) = folder.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[: int(len(whole) * share)])

    np.testing.assert_array_equal(compute(open_session(graph, kept_graphs=folder)), plain)

    assert kept.stat().st_size == len(whole)


def test_another_file_in_the_same_place_is_another_graph(graph: Path, folder: Path) -> None:
    before = optimized_graph_path(graph, folder, "1.31.1")
    assert before is not None
    assert optimized_graph_path(graph, folder, "1.32.0") != before
    shutil.copy(graph, graph.with_name("copy"))
    graph.with_name("copy").replace(graph)
    assert optimized_graph_path(graph, folder, "1.31.1") not in (before, None)


def test_small_graphs_and_folders_that_cannot_be_written_are_left_alone(
    tmp_path: Path, graph: Path, folder: Path
) -> None:
    small = tmp_path / "small" / "model.onnx"
    small.parent.mkdir()
    small.write_bytes(adder(1.0).SerializeToString())
    (tmp_path / "file").write_text("")

    open_session(small, kept_graphs=folder)
    plain = compute(open_session(graph, kept_graphs=tmp_path / "file" / "graphs"))

    assert list(folder.iterdir()) == []
    assert plain.shape == X.shape


def test_a_broken_graph_is_refused_as_without_the_folder(graph: Path, folder: Path) -> None:
    graph.write_bytes(b"\x00" * 2_000_000)
    with pytest.raises(InvalidArtifact, match=r"cannot load model\.onnx"):
        open_session(graph, kept_graphs=folder)
    assert list(folder.iterdir()) == []


def test_the_oldest_go_where_all_together_are_too_large(
    graph: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_KEPT_BYTES", 4_000_000)
    for number in range(5):
        graph.with_name("weights").write_bytes(b"x" * number)
        open_session(graph, kept_graphs=folder)

    newest = optimized_graph_path(graph, folder, onnxruntime.__version__)
    assert newest in list(folder.iterdir())
    assert len(list(folder.iterdir())) == 2
