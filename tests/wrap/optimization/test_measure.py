"""The costs of forms are measured alternately."""

from mlflow_deploy_plugin.wrap.optimization.measure import SIZES, measure_forms
from tests.support.networks import network, network_rows, write_network


def test_ratio_shows_a_slow_form(tmp_path):
    folders = [
        write_network(tmp_path / "base", rows=0),
        write_network(tmp_path / "wide", rows=0, graph=network((16, 1024, 1024, 3))),
    ]
    base, wide = measure_forms(folders, {"x": network_rows(20)}, rounds=3)
    assert set(base.ratio.values()) == {1.0}
    assert set(base.latency_us) == set(SIZES)
    assert wide.ratio[1000] > 3
    assert wide.upper_ratio[1000] >= wide.ratio[1000]
    assert wide.size == (folders[1] / "model.onnx").stat().st_size > 10 * base.size
    assert wide.packed < wide.size
    assert base.load_ms > 0
