"""Open mutated models with the library, and compute batches with it, under the address
and undefined-behaviour sanitizers. `make test-trees-asan` calls this script.

    python projects/trees/fuzz.py                        # 5,000 models
    python projects/trees/fuzz.py --models 200000
    python projects/trees/fuzz.py --seed 41 --models 1   # repeat one failure

A model's seed decides its trees, their mutations and its batches. Sessions are those of
the installed ONNX Runtime. A model that the library accepts has to be a model that ONNX
Runtime's own operator accepts, and must yield the same numbers, bit by bit. Processes
are forked for some hundreds of models each, so a fault ends one process and is counted.
"""

import argparse
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

PROJECT = Path(__file__).parent
TESTED = PROJECT / "tested_versions.txt"
LEVELS = {"avx2": "x86-64-v3", "avx512": "x86-64-v4"}
FLAGS = (
    *("-std=c++17", "-O1", "-g", "-fPIC", "-fno-omit-frame-pointer", "-Wno-unknown-pragmas"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
)
SANITIZER = {
    # No allocation depends on a number in a model, only on the model's size.
    "ASAN_OPTIONS": "detect_leaks=0:max_allocation_size_mb=256:hard_rss_limit_mb=4000",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "ORT_DISABLE_TELEMETRY": "1",
}
CHUNK = 500
MOST_SECONDS = 60
"""Of one model. A loop without an end is a fault."""

Attributes = dict[str, Any]
Draw = Any  # A numpy.random.Generator, whose stubs refuse a choice of types.

NODES = (
    *("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_values"),
    *("nodes_truenodeids", "nodes_falsenodeids", "nodes_missing_value_tracks_true"),
)
TARGETS = ("target_treeids", "target_nodeids", "target_ids", "target_weights")
FLOATS = ("nodes_values", "target_weights", "base_values")
INTEGERS = tuple(name for name in (*NODES, *TARGETS) if "ids" in name or "tracks" in name)
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT")
ODD_MODES = (*MODES, "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF", "", "branch_leq", "x" * 90)
ODD_INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 40_000_000, 2**31 - 1, 2**31, 2**32, 2**63 - 1)
ODD_FLOATS = (np.nan, np.inf, -np.inf, -0.0, 1e-45, -1e-40, 5e-324, 1e38, -1e300)
ODD_TYPES = (np.int8, np.uint8, np.float16, np.float32, np.float64, np.int64, np.bool_)
COUNTS = (0, 1, 2, 7, 8, 9, 63, 64, 65, 128, 129, 300)


# Forests


def forest(draw: Draw) -> Attributes:
    """Return the attributes of a forest that every library could have written."""
    features = int(draw.integers(1, 6))
    targets = int(draw.choice([1, 1, 1, 2, 3]))
    dtype = draw.choice([np.float32, np.float64])
    mode = str(draw.choice(MODES))
    deepest = int(draw.choice([0, 1, 2, 3, 5, 8], p=[0.1, 0.2, 0.3, 0.2, 0.15, 0.05]))
    is_symmetric = draw.random() < 0.3
    nodes: list[tuple[Any, ...]] = []
    leaves: list[tuple[Any, ...]] = []
    for tree in range(int(draw.integers(1, 5))):
        splits = [split(draw, features) for _ in range(deepest)] if is_symmetric else []
        first = len(nodes)
        nodes.append(())
        levels = [(0, 0)]
        while levels:
            number, level = levels.pop()
            is_leaf = level == deepest or (level and not is_symmetric and draw.random() < 0.2)
            if is_leaf:
                nodes[first + number] = (tree, number, 0, "LEAF", 0.0, 0, 0, 0)
                target = range(targets) if draw.random() < 0.8 else [int(draw.integers(targets))]
                leaves.extend((tree, number, each, draw.normal()) for each in target)
                continue
            feature, cut, missing = splits[level] if splits else split(draw, features)
            left = len(nodes) - first
            nodes[first + number] = (tree, number, feature, mode, cut, left, left + 1, missing)
            nodes.extend([(), ()])
            levels.extend([(left, level + 1), (left + 1, level + 1)])
    columns = [*zip(*nodes, strict=True), *zip(*leaves, strict=True)]
    attributes: Attributes = dict(zip((*NODES, *TARGETS), columns, strict=True))
    for name in INTEGERS:
        attributes[name] = np.array(attributes[name], np.int64)
    for name in ("nodes_values", "target_weights"):
        attributes[name] = np.array(attributes[name], dtype)
    attributes["n_targets"] = targets
    if draw.random() < 0.5:
        attributes["base_values"] = draw.normal(size=targets).astype(dtype)
    attributes.update(dtype=dtype, features=features, width=features)
    return attributes


def split(draw: Draw, features: int) -> tuple[int, float, int]:
    """Return a feature, a threshold and the side of missing values."""
    return int(draw.integers(features)), float(draw.integers(-3, 4)) / 2, int(draw.random() < 0.5)


# Mutations: each changes the attributes in place.


def change_length(draw: Draw, attributes: Attributes) -> None:
    name = draw.choice([name for name in (*NODES, *TARGETS, "base_values") if name in attributes])
    values = attributes[name]
    size = int(draw.integers(0, len(values) + 3))
    attributes[name] = np.resize(values, size) if size else values[:0]


def shorten_targets(draw: Draw, attributes: Attributes) -> None:
    for name in draw.choice(TARGETS, int(draw.integers(1, 4)), replace=False):
        size = int(draw.integers(0, len(attributes.get(name, ())) + 1))
        attributes[name] = attributes.get(name, np.zeros(0, np.int64))[:size]


def remove(draw: Draw, attributes: Attributes) -> None:
    attributes.pop(draw.choice([*NODES, *TARGETS, "n_targets"]), None)


def change_tensor(draw: Draw, attributes: Attributes) -> None:
    name = str(draw.choice(FLOATS))
    values = np.asarray(attributes.get(name, [0.0]))
    shapes = [(len(values), 0), (len(values), 1), (1, len(values)), (), (0,), (len(values),)]
    shape = shapes[draw.integers(len(shapes))]
    kind = draw.choice([values.dtype, attributes["dtype"], draw.choice(ODD_TYPES)])
    with np.errstate(all="ignore"):
        tensor = np.resize(values, shape).astype(kind)
    if draw.random() < 0.7:
        attributes.pop(name, None)
    attributes[f"{name}_as_tensor"] = numpy_helper.from_array(tensor)


def break_tensor(draw: Draw, attributes: Attributes) -> None:
    """Give a tensor more or fewer bytes than its shape needs, or texts."""
    name = str(draw.choice(FLOATS))
    values = np.asarray(attributes.pop(name, [0.0]), attributes["dtype"])
    tensor = numpy_helper.from_array(values)
    kind = draw.integers(3)
    if kind == 0:
        del tensor.dims[:]
        tensor.dims.extend([int(draw.choice([-1, 2**62, len(values) + 1]))])
    elif kind == 1:
        tensor.raw_data = tensor.raw_data[: int(draw.integers(len(tensor.raw_data) + 1))]
    else:
        tensor = helper.make_tensor(name, TensorProto.STRING, [len(values)], ["1"] * len(values))
    attributes[f"{name}_as_tensor"] = tensor


def add_both_forms(draw: Draw, attributes: Attributes) -> None:
    name = str(draw.choice(FLOATS))
    values = np.asarray(attributes.get(name, [1.0]))
    attributes[name] = values.astype(np.float32)
    values = np.resize(values, int(draw.choice([len(values), len(values) + 1])))
    attributes[f"{name}_as_tensor"] = numpy_helper.from_array(values.astype(attributes["dtype"]))


def change_integers(draw: Draw, attributes: Attributes) -> None:
    name = draw.choice(INTEGERS)
    values = attributes.get(name)
    if values is None or not len(values):
        return
    near = (len(values) - 1, len(values), int(draw.choice(values)))
    for position in draw.integers(len(values), size=int(draw.choice([1, 1, 2, 5]))):
        chosen = (*ODD_INTEGERS, *near)[draw.integers(len(ODD_INTEGERS) + len(near))]
        values[position] = chosen


def change_floats(draw: Draw, attributes: Attributes) -> None:
    values = attributes.get(draw.choice(FLOATS), np.zeros(0))
    if not len(values) or values.dtype.kind != "f":
        return
    for position in draw.integers(len(values), size=int(draw.choice([1, 3]))):
        with np.errstate(all="ignore"):
            values[position] = draw.choice(ODD_FLOATS)


def repeat_child(draw: Draw, attributes: Attributes) -> None:
    """Let two nodes share a child, or make a circle."""
    names = ("nodes_truenodeids", "nodes_falsenodeids")
    source, changed = (attributes.get(name, np.zeros(0)) for name in draw.choice(names, 2))
    if len(source) and len(changed):
        changed[draw.integers(len(changed))] = draw.choice([draw.choice(source), 0])


def swap_nodes(draw: Draw, attributes: Attributes) -> None:
    """Reorder all nodes, so that trees are mixed, or the nodes within each tree."""
    size = min(len(attributes.get(name, ())) for name in NODES)
    order = draw.permutation(size)
    if draw.random() < 0.5 and "nodes_treeids" in attributes:
        order = order[np.argsort(attributes["nodes_treeids"][:size][order], kind="stable")]
    for name in NODES:
        if name in attributes:
            attributes[name] = [*attributes[name]] if name == "nodes_modes" else attributes[name]
            values = attributes[name]
            reordered = [values[index] for index in order]
            attributes[name] = (
                reordered if name == "nodes_modes" else np.array(reordered, values.dtype)
            )


def swap_targets(draw: Draw, attributes: Attributes) -> None:
    size = min(len(attributes.get(name, ())) for name in TARGETS)
    order = draw.permutation(size)
    for name in TARGETS:
        if name in attributes:
            attributes[name] = attributes[name][order]


def repeat_target(draw: Draw, attributes: Attributes) -> None:
    """Give a leaf two weights for a target."""
    if all(len(attributes.get(name, ())) for name in TARGETS):
        for name in TARGETS:
            attributes[name] = np.append(attributes[name], attributes[name][:1])


def renumber(draw: Draw, attributes: Attributes) -> None:
    """Leave gaps between the numbers of nodes, as a pruned tree has."""
    factor = int(draw.choice([2, 1000, 2**30]))
    for name in ("nodes_nodeids", "nodes_truenodeids", "nodes_falsenodeids", "target_nodeids"):
        if name in attributes:
            attributes[name] = attributes[name] * factor


def change_modes(draw: Draw, attributes: Attributes) -> None:
    modes = [*attributes.get("nodes_modes", ())]
    for position in draw.integers(len(modes), size=2) if modes else ():
        modes[position] = str(draw.choice(ODD_MODES))
    attributes["nodes_modes"] = modes


def change_function(draw: Draw, attributes: Attributes) -> None:
    name = str(draw.choice(["aggregate_function", "post_transform"]))
    values = ["SUM", "NONE", "MIN", "MAX", "AVERAGE", "LOGISTIC", "SOFTMAX", "", "x" * 90, 1, 1.0]
    attributes[name] = values[draw.integers(len(values))]


def change_type(draw: Draw, attributes: Attributes) -> None:
    name = draw.choice([name for name in (*NODES, *TARGETS, "n_targets") if name in attributes])
    values = attributes[name]
    if np.ndim(values) == 0:
        attributes[name] = [float(values), str(values), np.array([values])][draw.integers(3)]
    elif name == "nodes_modes":
        attributes[name] = np.zeros(len(values), draw.choice([np.int64, np.float32]))
    elif values.dtype == np.int64:
        attributes[name] = values.astype(np.float32)
    else:
        attributes[name] = np.zeros(len(values), np.int64)


def change_count(draw: Draw, attributes: Attributes) -> None:
    attributes["n_targets"] = int(draw.choice([*ODD_INTEGERS, 10_000_000, 5]))


def add_single_leaves(draw: Draw, attributes: Attributes) -> None:
    """Make every tree a single leaf, as a booster on a constant target does."""
    trees = int(draw.integers(1, 5))
    for name in (*NODES, *TARGETS):
        attributes[name] = np.zeros(trees, np.int64)
    attributes["nodes_treeids"] = attributes["target_treeids"] = np.arange(trees)
    attributes["nodes_modes"] = ["LEAF"] * trees
    for name in ("nodes_values", "target_weights"):
        attributes[name] = draw.normal(size=trees).astype(attributes["dtype"])


def add_leaf_targets(draw: Draw, attributes: Attributes) -> None:
    """Give each leaf of one large tree a target of its own."""
    leaves = int(draw.choice([100, 3000]))
    splits = np.arange(leaves - 1)
    numbers = np.arange(2 * leaves - 1)
    is_leaf = numbers >= leaves - 1
    attributes.update(
        nodes_treeids=numbers * 0,
        nodes_nodeids=numbers,
        nodes_featureids=numbers * 0,
        nodes_modes=["LEAF" if each else "BRANCH_LEQ" for each in is_leaf],
        nodes_values=np.sort(draw.normal(size=len(numbers))).astype(attributes["dtype"]),
        nodes_truenodeids=np.where(is_leaf, 0, 2 * numbers + 1),
        nodes_falsenodeids=np.where(is_leaf, 0, 2 * numbers + 2),
        nodes_missing_value_tracks_true=numbers * 0,
        target_treeids=np.zeros(leaves, np.int64),
        target_nodeids=len(splits) + np.arange(leaves),
        target_ids=np.arange(leaves),
        target_weights=draw.normal(size=leaves).astype(attributes["dtype"]),
        n_targets=leaves,
    )
    attributes.pop("base_values", None)


def widen(draw: Draw, attributes: Attributes) -> None:
    """Declare another number of columns, or none."""
    width = attributes["features"]
    attributes["width"] = draw.choice([width - 1, width + 3, -1, -2])


MUTATIONS: list[Callable[[Draw, Attributes], None]] = [
    *(change_length, shorten_targets, remove, change_tensor, break_tensor, add_both_forms),
    *(change_integers, change_integers, change_floats, change_floats, repeat_child, swap_nodes),
    *(swap_targets, repeat_target, renumber, change_modes, change_function, change_type),
    *(change_count, add_single_leaves, add_leaf_targets, widen, widen),
]


# Models and batches


def attribute_of(name: str, value: Any) -> AttributeProto:
    """Return an attribute, also an empty one, which `onnx.helper` refuses."""
    if isinstance(value, np.ndarray) and value.dtype == np.float64:
        name, value = f"{name}_as_tensor", numpy_helper.from_array(value)
    proto = AttributeProto(name=name)
    if isinstance(value, TensorProto):
        proto.type = AttributeProto.TENSOR
        proto.t.CopyFrom(value)
    elif isinstance(value, np.ndarray) and value.dtype == np.float32:
        proto.type = AttributeProto.FLOATS
        proto.floats.extend(value.tolist())
    elif isinstance(value, np.ndarray) and value.dtype.kind == "i":
        proto.type = AttributeProto.INTS
        proto.ints.extend(value.tolist())
    elif isinstance(value, str):
        proto.type = AttributeProto.STRING
        proto.s = value.encode()
    elif isinstance(value, float):
        proto.type = AttributeProto.FLOAT
        proto.f = value
    elif isinstance(value, int):
        proto.type = AttributeProto.INT
        proto.i = value
    else:
        proto.type = AttributeProto.STRINGS
        proto.strings.extend(str(each).encode() for each in value)
    return proto


def model_of(draw: Draw) -> tuple[bytes, Attributes]:
    """Return a model, and the attributes of its first forest."""
    graph = GraphProto(name="trees")
    first: Attributes = {}
    for number in range(1 + (draw.random() < 0.1)):
        attributes = forest(draw)
        for index in draw.integers(len(MUTATIONS), size=int(draw.choice([0, 1, 1, 1, 2, 3]))):
            MUTATIONS[index](draw, attributes)
        if first:
            attributes["dtype"] = first["dtype"]
        first = first or attributes
        node = graph.node.add(op_type="TreeEnsembleRegressor", domain="ai.onnx.ml")
        node.input.append("x")
        node.output.append(f"y{number}")
        node.attribute.extend(
            attribute_of(name, value)
            for name, value in attributes.items()
            if name not in ("dtype", "features", "width")
        )
        graph.output.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, None))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(first["dtype"]))
    width = int(first["width"])
    shape = None if width == -2 else [None, None if width < 0 else width]
    graph.input.append(helper.make_tensor_value_info("x", kind, shape))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    model = ModelProto(ir_version=10, graph=graph, opset_import=opsets)
    return model.SerializeToString(), first


def batches_of(draw: Draw, attributes: Attributes) -> Iterator[Any]:
    """Generate batches of rows that the model's input may or may not allow."""
    width = int(attributes["width"])
    for count in draw.choice(COUNTS, 3, replace=False):
        columns = width
        if width < 0:
            columns = int(draw.choice([attributes["features"], 5, 1, 0]))
        rows = draw.integers(-3, 4, size=(int(count), columns)) / 2
        odd = draw.random(rows.shape) < 0.1
        rows[odd] = draw.choice(ODD_FLOATS, int(odd.sum()))
        with np.errstate(all="ignore"):
            rows = rows.astype(attributes["dtype"])
        if width == -2 and draw.random() < 0.5:
            rows = (
                [rows.ravel(), rows[None], rows.reshape(-1)[:1].reshape(())][draw.integers(3)]
                if rows.size
                else rows
            )
        elif draw.random() < 0.05:
            rows = rows.astype(draw.choice(ODD_TYPES))
        yield rows


# Runs

RESULTS = ("seed", "phase", "models", "accepted", "batches", "compared", "only_ours", "different")
PHASES = ("making the model", "the library", "ONNX Runtime's own operator")
LAYOUT = struct.Struct(f"{len(RESULTS)}q")


class Results:
    """Counts that a process shares with its parent, so that they outlive it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, LAYOUT.size)

    def read(self) -> dict[str, int]:
        return dict(zip(RESULTS, LAYOUT.unpack(self._memory[:]), strict=True))

    def add(self, **counts: int) -> None:
        values = self.read()
        for name, count in counts.items():
            values[name] = count if name in ("seed", "phase") else values[name] + count
        self._memory[:] = LAYOUT.pack(*values.values())


def session(model: bytes, library: Path | None, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # Its blocks would have no guards.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"])


def try_model(seed: int, library: Path, results: Results) -> None:
    """Open a model, compute its batches, and compare both operators."""
    results.add(seed=seed, phase=0)
    draw = np.random.default_rng(seed)
    model, attributes = model_of(draw)
    batches = [*batches_of(draw, attributes)]
    threads = 2 if draw.random() < 0.03 else 1
    results.add(phase=1, models=1)
    try:
        faster = session(model, library, threads)
    except Exception:  # noqa: BLE001 - ONNX Runtime's errors have no common class
        return
    answers = []
    for batch in batches:
        try:
            answers.append(faster.run(None, {"x": batch}))
        except Exception:  # noqa: BLE001
            answers.append(None)
    results.add(phase=2, accepted=1, batches=len(batches))
    try:
        usual = session(model, None, 1)
    except Exception as error:  # noqa: BLE001
        results.add(only_ours=1)
        print(f"seed {seed}: only the library accepts it: {str(error)[:200]}", flush=True)
        return
    for batch, answer in zip(batches, answers, strict=True):
        if answer is None:
            continue
        try:
            expected = usual.run(None, {"x": batch})
        except Exception:  # noqa: BLE001
            expected = [None] * len(answer)
        equal = all(map(is_identical, answer, expected))
        results.add(compared=1, different=not equal)
        if not equal:
            print(f"seed {seed}: a batch {batch.shape} differs: {answer} {expected}", flush=True)


def is_identical(answer: Any, expected: Any) -> bool:
    """Return True if the bits are equal. The bits of a NaN are not defined."""
    if expected is None or answer.shape != expected.shape:
        return False
    bits = np.where(np.isnan(answer), np.nan, answer).view(np.int32)
    return np.array_equal(bits, np.where(np.isnan(expected), np.nan, expected).view(np.int32))


def run(first: int, last: int, library: Path, processes: int) -> int:
    """Try the models of some seeds, and return the number of faults."""
    waiting = [(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK)][::-1]
    running: dict[int, tuple[int, Results, Path]] = {}
    totals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < processes:
                start, end = waiting.pop()
                results = Results()
                log = Path(folder, str(start))
                pid = os.fork()
                if not pid:
                    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
                    try:
                        for seed in range(start, end):
                            signal.alarm(MOST_SECONDS)
                            try_model(seed, library, results)
                    except BaseException:  # noqa: BLE001 - The parent's code must not continue here.
                        traceback.print_exc()
                        os._exit(1)
                    os._exit(0)
                running[pid] = (end, results, log)
            pid, status = os.wait()
            end, results, log = running.pop(pid)
            counts = results.read()
            totals.update({name: counts[name] for name in RESULTS[2:]})
            if status:
                fault = summary(log.read_text(errors="replace"), status)
                place = PHASES[counts["phase"]]
                faults[f"{place}: {fault}"] += 1
                print(f"seed {counts['seed']}: {place}: {fault}", flush=True)
                if end - first == 1:
                    print(log.read_text(errors="replace")[:6000])
                if counts["seed"] + 1 < end:
                    waiting.append((counts["seed"] + 1, end))
    for fault, count in faults.most_common():
        print(f"{count:6} x {fault}")
    print(
        f"{totals['models']} models from seed {first}: {totals['accepted']} accepted, "
        f"{totals['batches']} batches, {totals['compared']} compared, "
        f"{totals['different']} different, {totals['only_ours']} accepted only by the library, "
        f"{faults.total()} faults, {time.monotonic() - began:.0f} s"
    )
    return faults.total() + totals["different"] + totals["only_ours"]


def summary(log: str, status: int) -> str:
    """Return the kind and the place of a fault."""
    kind = re.search(r"ERROR: AddressSanitizer:? (\S+)|runtime error: (.*)", log)
    place = re.search(r"(trees\.cc|old\.cc|source\.h|ort_api\.h):\d+", log)
    found = next(filter(None, kind.groups()), "") if kind else f"status {status} {log[-300:]}"
    return f"{found} at {place[0]}" if place else found


# The build


def build(source: Path, folder: Path, compiler: str) -> Path:
    """Compile the library with the sanitizers, if it is not newer than its source."""
    library = folder / "trees.so"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*source.parent.glob("*.h"), source, TESTED]
    if library.exists() and library.stat().st_mtime > max(each.stat().st_mtime for each in sources):
        return library
    objects = [folder / "operator.o"]
    tested = f'-DTESTED="{" ".join(TESTED.read_text().split())}"'
    jobs = [subprocess.Popen([compiler, *FLAGS, tested, "-c", source, "-o", *objects])]
    for level, march in LEVELS.items():
        objects.append(folder / f"{level}.o")
        options = [f"-march={march}", f"-DLEVEL={level}", "-Wno-maybe-uninitialized"]
        jobs.append(subprocess.Popen([compiler, *FLAGS, *options, "-c", source, "-o", objects[-1]]))
    statuses = [job.wait() for job in jobs]
    if any(statuses):
        sys.exit(f"{compiler} cannot compile {source}")
    subprocess.run([compiler, *FLAGS, "-shared", "-o", library, *objects], check=True)
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument("--models", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--source", type=Path, default=PROJECT / "trees.cc")
    parser.add_argument("--folder", type=Path, default=PROJECT / "build" / "asan")
    parser.add_argument("--compiler", default=os.environ.get("CXX", "g++"))
    options = parser.parse_args()
    library = build(options.source.resolve(), options.folder.resolve(), options.compiler)
    if "LD_PRELOAD" not in os.environ:  # The sanitizer has to be the first library of the process.
        runtimes = [
            subprocess.run(
                [options.compiler, f"-print-file-name={name}"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for name in ("libasan.so", "libstdc++.so.6")
        ]
        environment = {**os.environ, **SANITIZER, "LD_PRELOAD": ":".join(runtimes)}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    last = options.seed + options.models
    sys.exit(run(options.seed, last, library, options.processes) > 0)


if __name__ == "__main__":
    main()
