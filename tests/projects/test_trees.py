"""The library of projects/trees computes the sums of ONNX Runtime's operator, bit by
bit.
"""

import ctypes
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from catboost import CatBoostRegressor
from onnx import TensorProto, helper, numpy_helper

from mlflow_deploy_plugin.serve.runtime import session
from mlflow_deploy_plugin.serve.runtime.session import open_session
from mlflow_deploy_plugin.serve.runtime.tree_operator import has_tree_operator
from mlflow_deploy_plugin.wrap.exporter.exporting import export
from mlflow_deploy_plugin.wrap.flavor.save import load_model, save_model

pytestmark = pytest.mark.install  # Zig compiles its C++ library first, which takes minutes.

PROJECT = Path(__file__).parents[2] / "projects" / "trees"
FEATURES = 6


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory):
    """Add the wheel to the path."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.prefix, "bin", "uv")
    subprocess.run([uv, "build", "--wheel", "-q", "-o", folder, PROJECT], check=True)
    (wheel,) = folder.glob("onnxserve_trees-*-py3-none-manylinux_2_17_x86_64.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("onnxserve_trees", None)


class Forest:
    """Random trees as attributes of the operator."""

    def __init__(self, draw, dtype, mode, cuts, targets, depth, is_symmetric=False):
        self.draw = draw
        self.thresholds = draw.normal(size=(FEATURES, cuts)).astype(dtype)
        self.nodes = []
        self.leaves = []
        for tree in range(20):
            self.splits = [self._split() for _ in range(depth)] if is_symmetric else None
            self.tree = tree
            self.count = 0
            self._add(0, depth, mode, targets)
        trees, number, modes, feature, cut, left, right, missing = zip(*self.nodes, strict=True)
        floats = {"nodes_values": cut, "base_values": range(targets)}
        owner, leaf, target, floats["target_weights"] = zip(*self.leaves, strict=True)
        if dtype == np.float64:
            floats = {
                f"{name}_as_tensor": numpy_helper.from_array(np.array(values, float))
                for name, values in floats.items()
            }
        else:
            floats = {name: [*map(float, values)] for name, values in floats.items()}
        node = helper.make_node(
            "TreeEnsembleRegressor",
            ["x"],
            ["y"],
            domain="ai.onnx.ml",
            nodes_treeids=trees,
            nodes_nodeids=number,
            nodes_modes=modes,
            nodes_featureids=feature,
            nodes_truenodeids=left,
            nodes_falsenodeids=right,
            nodes_missing_value_tracks_true=missing,
            target_treeids=owner,
            target_nodeids=leaf,
            target_ids=target,
            n_targets=targets,
            **floats,
        )
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        graph = helper.make_graph(
            [node],
            "trees",
            [helper.make_tensor_value_info("x", kind, [None, FEATURES])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, targets])],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
        self.model = helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _split(self):
        feature = int(self.draw.integers(FEATURES))
        return (
            feature,
            float(self.draw.choice(self.thresholds[feature])),
            int(self.draw.random() < 0.5),
        )

    def _add(self, level, depth, mode, targets):
        number = self.count
        self.count += 1
        is_leaf = level == depth or (not self.splits and level and self.draw.random() < 0.1)
        if is_leaf:
            self.nodes.append((self.tree, number, "LEAF", 0, 0.0, 0, 0, 0))
            for target in range(targets):
                self.leaves.append((self.tree, number, target, float(self.draw.normal())))
            return number
        feature, cut, missing = self.splits[level] if self.splits else self._split()
        position = len(self.nodes)
        self.nodes.append(())
        left = self._add(level + 1, depth, mode, targets)
        right = self._add(level + 1, depth, mode, targets)
        self.nodes[position] = (self.tree, number, mode, feature, cut, left, right, missing)
        return number

    def rows(self, count):
        """Return random numbers, thresholds, their neighbours and missing values."""
        rows = self.draw.normal(size=(count, FEATURES)).astype(self.thresholds.dtype)
        columns = np.broadcast_to(np.arange(FEATURES), rows.shape)
        cuts = self.thresholds[
            columns, self.draw.integers(self.thresholds.shape[1], size=rows.shape)
        ]
        choice = self.draw.integers(6, size=rows.shape)
        above = np.nextafter(cuts, np.inf, dtype=cuts.dtype)
        infinite = np.copysign(np.inf, rows)
        return np.choose(choice, [rows, rows, cuts, above, np.nan, infinite]).astype(cuts.dtype)


FORESTS = {
    "small trees": ("BRANCH_LEQ", 50, 1, 5, False),
    "less": ("BRANCH_LT", 50, 1, 5, False),
    "greater": ("BRANCH_GT", 50, 1, 5, False),
    "greater or equal": ("BRANCH_GTE", 50, 1, 5, False),
    "three targets": ("BRANCH_LEQ", 50, 3, 5, False),
    "ranks of 16 bits": ("BRANCH_LEQ", 2000, 1, 6, False),
    "large trees": ("BRANCH_LEQ", 100, 1, 9, False),
    "large trees, 16 bits, two targets": ("BRANCH_LT", 2000, 2, 10, False),
    "symmetric": ("BRANCH_GT", 50, 1, 6, True),
    "symmetric, three targets": ("BRANCH_GT", 50, 3, 8, True),
    "symmetric, 1,024 leaves": ("BRANCH_GT", 50, 1, 10, True),
    "stumps": ("BRANCH_LEQ", 3, 1, 1, False),
    "single leaves": ("BRANCH_LEQ", 3, 1, 0, False),  # a booster on a constant target
}


@pytest.mark.parametrize("level", ["4", "3"], ids=["avx512", "avx2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FORESTS)
def test_sums_are_bit_identical(name, dtype, level, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_TREES_LEVEL", level)
    forest = Forest(np.random.default_rng(0), dtype, *FORESTS[name])
    file = tmp_path / "model.onnx"
    onnx.save(forest.model, file)
    faster = open_session(file, intra_op_num_threads=2, faster_trees=True)
    usual = open_session(file)
    assert has_tree_operator(faster)
    for count in (0, 1, 7, 8, 64, 65, 129, 1000):
        rows = {"x": forest.rows(count)}
        (expected,) = usual.run(None, rows)
        np.testing.assert_array_equal(faster.run(None, rows)[0], expected)


def test_export_has_the_sums_of_the_usual_operator(tmp_path):
    rows = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    model = CatBoostRegressor(200, verbose=0, allow_writing_files=False)
    save_model(model.fit(rows, rows[:, 0] * rows[:, 1]), tmp_path / "model", input_example=rows)
    assert load_model(str(tmp_path / "model")).has_faster_trees
    assert export(str(tmp_path / "model"), "onnx", tmp_path / "model.onnx").max_error == 0


@pytest.mark.parametrize(
    ("level", "mode", "reason"),
    [("2", "BRANCH_LEQ", "this CPU has no AVX2"), ("4", "BRANCH_EQ", "it splits by categories")],
)
def test_unsuitable_machine_or_model_is_logged(level, mode, reason, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ONNXSERVE_TREES_LEVEL", level)
    forest = Forest(np.random.default_rng(0), np.float32, mode, 20, 1, 4)
    file = tmp_path / "model.onnx"
    onnx.save(forest.model, file)
    opened = open_session(file, faster_trees=True)
    assert not has_tree_operator(opened)
    (record,) = caplog.records
    assert (record.name, reason in record.message) == (session.__name__, True)
    (expected,) = onnxruntime.InferenceSession(file).run(None, {"x": forest.rows(9)})
    assert expected.shape == (9, 1)


def changed(**attributes):
    """Return a forest of 32-bit numbers with other attributes. None removes one."""
    model = Forest(np.random.default_rng(0), np.float32, "BRANCH_LEQ", 20, 1, 4).model
    (node,) = model.graph.node
    kept = [each for each in node.attribute if each.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    for name, value in attributes.items():
        if value is not None:
            node.attribute.append(helper.make_attribute(name, value))
    return model


def many_targets(leaves):
    """Return a tree with `leaves` leaves, each of which has its own target."""
    numbers = np.arange(2 * leaves - 1)
    is_leaf = numbers >= leaves - 1
    return changed(
        nodes_treeids=numbers * 0,
        nodes_nodeids=numbers,
        nodes_featureids=numbers * 0,
        nodes_modes=np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_values=[0.5] * len(numbers),
        nodes_truenodeids=np.where(is_leaf, 0, 2 * numbers + 1),
        nodes_falsenodeids=np.where(is_leaf, 0, 2 * numbers + 2),
        nodes_missing_value_tracks_true=numbers * 0,
        target_treeids=numbers[:leaves] * 0,
        target_nodeids=numbers[is_leaf],
        target_ids=numbers[:leaves],
        target_weights=[1.0] * leaves,
        n_targets=leaves,
        base_values=None,
    )


def distant_feature():
    """Return a forest that reads column 40,000,000. Its input declares no columns."""
    model = changed()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    (features,) = (each for each in model.graph.node[0].attribute if "featureids" in each.name)
    features.ints[0] = 40_000_000
    return model


BYTES = numpy_helper.from_array(np.ones(400, np.int8))
EMPTY_ROWS = numpy_helper.from_array(np.ones((400, 0), np.float32))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"target_nodeids": [0]}, "its weights are incomplete"),
        ({"target_ids": [0]}, "its weights are incomplete"),
        ({"target_weights": [1.0]}, "its weights are incomplete"),
        ({"nodes_values": None, "nodes_values_as_tensor": BYTES}, "type of nodes_values_as_tensor"),
        ({"base_values": None, "base_values_as_tensor": EMPTY_ROWS}, "shape of base_values_as_te"),
        ({"n_targets": 10_000_000, "base_values": None}, "its number of targets"),
        ({"base_values": [1.0, 2.0]}, "its base_values"),
        ({"aggregate_function": "SUM" * 30}, "its aggregate_function"),
        ({"nodes_missing_value_tracks_true": [0.5]}, "type or the length of nodes_missing_val"),
    ],
)
def test_incomplete_attributes_are_refused(attributes, reason):
    import onnxserve_trees

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(onnxserve_trees.LIBRARY)
    with pytest.raises(Exception, match=reason):
        onnxruntime.InferenceSession(changed(**attributes).SerializeToString(), options)


OPEN = """
import sys, onnxruntime, onnxserve_trees
def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1])
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(onnxserve_trees.LIBRARY)
before = peak()
try:
    onnxruntime.InferenceSession(sys.argv[1], options)
except Exception as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


@pytest.mark.parametrize(
    "model",
    [
        distant_feature,
        lambda: changed(n_targets=10_000_000, base_values=None),
        lambda: many_targets(16_000),
    ],
    ids=["features", "targets", "leaves"],
)
def test_memory_is_bounded_by_the_file(model, tmp_path):
    file = tmp_path / "model.onnx"
    onnx.save(model(), file)
    import onnxserve_trees

    environment = {"PYTHONPATH": str(Path(onnxserve_trees.LIBRARY).parents[1])}
    opened = subprocess.run(
        [sys.executable, "-c", OPEN, file],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(opened.stdout) < 60_000, opened.stderr


def test_untested_onnxruntime_is_refused():
    import onnxserve_trees

    reasons = []

    @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    def fail(code, reason):
        reasons.append(reason)
        return 1

    table = ctypes.cast((ctypes.c_void_p * 1)(ctypes.cast(fail, ctypes.c_void_p)), ctypes.c_void_p)
    get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda version: table.value)
    text = ctypes.create_string_buffer(b"1.99.0")
    version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(text))
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(each, ctypes.c_void_p) for each in (get, version)))
    assert ctypes.CDLL(onnxserve_trees.LIBRARY).RegisterCustomOps(None, base)
    assert reasons == [b"it is not tested with ONNX Runtime 1.99.0"]
