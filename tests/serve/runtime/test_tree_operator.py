"""A session uses the library of onnxserve-trees only if it fits the machine. The tests
in tests/projects/test_trees.py build the library.
"""

import sys
from pathlib import Path

import onnxruntime
import pytest

from mlflow_deploy_plugin.serve.runtime.session import open_session
from mlflow_deploy_plugin.serve.runtime.tree_operator import has_tree_operator
from tests.support.models import adder, save_graph

STUMP = """trees (float[N, 1] x) => (float[N, 1] y) {
        y = ai.onnx.ml.TreeEnsembleRegressor <
            n_targets = 1, nodes_treeids = [0], nodes_nodeids = [0], nodes_featureids = [0],
            nodes_modes = ["LEAF"], nodes_values = [0.0], nodes_truenodeids = [0],
            nodes_falsenodeids = [0], target_treeids = [0], target_nodeids = [0],
            target_ids = [0], target_weights = [2.5]
        > (x)
    }
"""


@pytest.fixture
def unsuitable(tmp_path, monkeypatch):
    """A distribution whose library is not a library."""
    folder = tmp_path / "onnxserve_trees"
    folder.mkdir()
    library = folder / "trees.so"
    library.write_text("no library")
    (folder / "__init__.py").write_text(f"LIBRARY = {str(library)!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "onnxserve_trees", raising=False)
    yield
    sys.modules.pop("onnxserve_trees", None)


@pytest.mark.usefixtures("unsuitable")
@pytest.mark.parametrize(("graph", "lines"), [(STUMP, 1), (adder(1), 0)], ids=["trees", "sum"])
def test_unsuitable_library_is_logged_once(graph, lines, tmp_path, caplog):
    opened = open_session(save_graph(tmp_path, graph), faster_trees=True)
    assert not has_tree_operator(opened)
    assert [record.message.count("onnxserve-trees") for record in caplog.records] == [1] * lines


def test_installed_onnxruntime_is_a_tested_version():
    tested = Path(__file__).parents[3] / "projects" / "trees" / "tested_versions.txt"
    assert onnxruntime.__version__.rpartition(".")[0] in tested.read_text().split()
