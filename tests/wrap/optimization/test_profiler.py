"""The profile of a version, and its advice."""

import json
from pathlib import Path

import onnx
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.wrap.flavor.save import save_model
from mlflow_deploy_plugin.wrap.optimization.profiler import profile
from tests.support.models import HEADER, write_model
from tests.support.networks import network, write_network
from tests.support.random_rows import normal_rows
from tests.support.refusals import mentions


def advice(folder: Path, rows: int = 1) -> str:
    return "\n".join(profile(str(folder), rows=rows).advice)


def test_operators_and_nodes_share_the_time_of_a_run(registry: MlflowClient) -> None:
    done = profile("models:/net/1", rows=500)
    assert sum(entry.share for entry in done.nodes) == pytest.approx(1)
    assert sum(entry.share for entry in done.operators) == pytest.approx(1)
    assert {entry.operator for entry in done.nodes} >= {"Softmax", "ArgMax"}
    first = done.operators[0]
    assert "Gemm" in first.name
    assert first.types == ("float",)
    assert first.provider == "CPUExecutionProvider"
    assert sum(entry.calls for entry in done.operators) == len(done.nodes)
    assert done.run_us > 0
    assert done.outside_us == pytest.approx(done.run_us - sum(entry.us for entry in done.nodes))


def test_it_is_logged_to_the_run_of_the_version_with_a_picture(
    registry: MlflowClient,
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    profile("models:/net/1", rows=8, log=True)
    run_id = registry.get_model_version("net", "1").run_id
    names = {file.path for file in registry.list_artifacts(run_id, "profile")}
    assert names == {"profile/net-1-8-rows.json", "profile/net-1-8-rows.png"}
    document = json.loads(
        Path(
            registry.download_artifacts(run_id, "profile/net-1-8-rows.json", str(tmp_path)),
        ).read_text(),
    )
    assert document["rows"] == 8


def test_a_small_graph_is_dispatch_and_a_large_one_is_layers(tmp_path: Path) -> None:
    # The cost of a run is shared by many nodes, so that a slow machine does not matter.
    layers = (
        16,
        *[8] * 12,
        3,
    )
    assert "is dispatch" in advice(write_network(tmp_path / "small", graph=network(layers)))
    large = write_network(
        tmp_path / "large",
        graph=network((16, 1024, 1024, 3)),
    )
    assert "`onnxserve auto-optimize`" in advice(large, rows=100)


def test_a_loop_is_named_and_its_time_excludes_its_body(tmp_path: Path) -> None:
    graph = """counter (float[N,200] x) => (float[N,200] y) <int64 trips = {20}, bool go = {1}> {
        y = Loop(trips, go, x) <body = step (int64 i, bool c, float[N,200] s) => \
(bool d, float[N,200] t) {
          d = Identity(c)
          t = Sin(s) }> }"""
    folder = write_model(tmp_path / "loop", graph)
    done = profile(str(folder), rows=200)
    assert any(mentions(line, "body", "20 times") for line in done.advice)
    shares = {entry.name: entry.share for entry in done.operators}
    assert shares["Sin"] > shares["Loop"]


def test_the_blocks_of_our_own_trees_are_no_advice(tmp_path: Path) -> None:
    ensemble = pytest.importorskip("sklearn.ensemble")
    rows = normal_rows(300, 3)
    model = ensemble.HistGradientBoostingRegressor(max_iter=40, max_depth=4).fit(
        rows,
        rows[:, 0] * rows[:, 1],
    )
    save_model(model, tmp_path / "trees", input_example=rows)
    done = profile(str(tmp_path / "trees"), rows=500)
    assert {"If", "Scan"} <= {entry.operator for entry in done.nodes}
    assert not any("has a body" in line for line in done.advice)


def test_casts_and_dynamic_convolutions_are_named(tmp_path: Path) -> None:
    casts = (
        "casts (double[N,400] x) => (double[N,400] y) { s = Cast <to = 1> (x)\n"
        " t = Relu(s)\n"
        " y = Cast <to = 11> (t) }"
    )
    assert mentions(
        advice(write_model(tmp_path / "casts", casts), rows=500),
        "Cast",
        "types of inputs",
    )
    graph = onnx.parser.parse_model(
        HEADER
        + (
            "conv (float[N,8,16,16] x) => (float[N,8,16,16] y) <float[8,8,3,3] w = "
            f"{{{', '.join(['0.1'] * 576)}}}> "
        )
        + """{
        q, s, z = DynamicQuantizeLinear(x)
        wq, ws, wz = DynamicQuantizeLinear(w)
        i = ConvInteger <pads = [1, 1, 1, 1]> (q, wq, z, wz)
        y = Cast <to = 1> (i) }""",
    )
    onnx.save(graph, write_model(tmp_path / "convolution") / "model.onnx")
    assert mentions(advice(tmp_path / "convolution", rows=20), "ConvInteger", "dynamic ranges")


def test_rows_come_from_a_file_from_the_reference_or_are_zeros(tmp_path: Path) -> None:
    folder = write_network(tmp_path / "net", rows=0)
    assert profile(str(folder), rows=3).rows == 3
    with pytest.raises(InvalidConfig, match=r"nix\.parquet does not exist"):
        profile(str(folder), data="nix.parquet")


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    folder = write_network(tmp_path / "net", rows=0)
    with pytest.raises(InvalidConfig, match="rows: 0 is less than 1"):
        profile(str(folder), rows=0)
    with pytest.raises(NotFound, match="no run in MLflow to log the profile to"):
        profile(str(folder), log=True)
