"""Measure the time of a version by operator and node with ONNX Runtime's profiler, and
give advice.

The profiler has a resolution of one microsecond, and slows small graphs down several
times. Therefore shares are from profiled runs, and the run time is from runs without
profiling. The time of a node such as a Loop excludes inner nodes.
"""

import json
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, resolve
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds, repeat_row, row_count
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime, session_options
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    NamedArrays,
    load_rows,
    reference_rows,
    take_rows,
)
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx, downloaded_version
from mlflow_deploy_plugin.wrap.optimization.measure import load_onnx

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WARM_UP = 5
_RUNS = 30
_LEAST_RUNS = 3
_SECONDS = 10.0
_TREES = ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_LOOPS = ("Loop", "Scan", "If", "SequenceMap")
_LAYERS = (
    "Conv",
    "FusedConv",
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "FusedGemm",
    "LSTM",
    "GRU",
    "Attention",
)
_UNFUSED = {
    "BatchNormalization": "the Conv before it",
    "Erf": "a Gelu",
    "ReduceMean": "a LayerNormalization",
}
_MOST_BARS = 12
_WORTH_OPTIMIZING_US = 50
_DISPATCH_US = 3.0
"""Below this time, most of a node's time is overhead: reading the inputs and allocating
the output.
"""


@dataclass(frozen=True)
class NodeTime:
    """The time of a node in the optimized graph, or of all nodes with the same
    operator.

    Attributes:
        name: the name of the node or of the operator.
        operator: the operator.
        provider: the execution provider.
        share: the share of the time of all nodes.
        us: the median microseconds per run in the profiler.
        calls: the calls per run; several in a Loop.
        types: the types of the inputs.
    """

    name: str
    operator: str
    provider: str
    share: float
    us: float
    calls: float
    types: tuple[str, ...] = ()


@dataclass
class _NodeRun:
    """An execution of a node in run number `run`. `us` excludes inner nodes."""

    run: int
    name: str
    operator: str
    provider: str
    us: float
    types: list[str]


@dataclass(frozen=True)
class GraphProfile:
    """The times of a version, the longest first.

    Attributes:
        model: the version.
        rows: the rows per request.
        runs: the number of profiled runs.
        run_us: the median microseconds of a run without the profiler.
        outside_us: `run_us` minus the time of all nodes (the time for memory and
            dispatch). It is negative if the profiler's overhead is larger.
        operators: the times by operator.
        nodes: the times by node.
        advice: possible changes, in sentences.
    """

    model: str
    rows: int
    runs: int
    run_us: float
    outside_us: float
    operators: tuple[NodeTime, ...]
    nodes: tuple[NodeTime, ...]
    advice: tuple[str, ...]


def profile(
    model_uri: str,
    *,
    rows: int = 1,
    data: str = "",
    log: bool = False,
) -> GraphProfile:
    """Profile requests with `rows` rows.

    Args:
        model_uri: a version with an ONNX form.
        rows: the rows per request.
        data: a dataset in the form of a gate policy; default: the reference of the
            model, otherwise a row of zeros.
        log: True to log the profile and its figure as artifacts of the version's run.

    Raises:
        InvalidConfig: there is no ONNX form or no data, or `rows` is less than 1.
        NotFound: the version, or a run to log to, does not exist.
        RegistryUnavailable: MLflow does not answer.
    """
    if rows < 1:
        raise InvalidConfig(f"rows: {rows} is less than 1")
    resolved = resolve(model_uri)
    if log and not resolved.aspects.get("run_id"):
        raise NotFound(f"{resolved.source} has no run in MLflow to log the profile to")
    with downloaded_version(resolved) as folder:
        base = load_onnx(folder, resolved)
        feeds = _request(base, rows, data)
        run_us = float(np.median(_repeat(lambda: base.model.run(feeds)))) * 1e6
        trace = _trace(base.model, feeds)
    nodes = trace.sum_by(lambda node: node.name)
    operators = trace.sum_by(lambda node: node.operator)
    done = GraphProfile(
        model=resolved.source,
        rows=rows,
        runs=trace.runs,
        run_us=run_us,
        outside_us=run_us - sum(node.us for node in nodes),
        operators=operators,
        nodes=nodes,
        advice=tuple(_advise(operators, nodes, run_us)),
    )
    if log:
        _log(done, resolved)
    return done


def _request(base: LoadedOnnx, rows: int, data: str) -> Feeds:
    """Return the feeds of a request with `rows` rows of the dataset or the reference,
    which are repeated if there are fewer; without both, of an example row. `data` is
    the dataset, or "".
    """
    if data:
        sample: NamedArrays | None = load_rows(data, base.artifact, rows, 0)
    else:
        sample = reference_rows(base.artifact, rows, 0)
    if not sample:
        return repeat_row(base.model.example_feeds(), 0, rows)
    positions = np.resize(np.arange(row_count(sample)), rows)
    return base.feeds(take_rows(sample, positions))


def _log(done: GraphProfile, resolved: ResolvedModel) -> None:
    """Log the profile and its figure as artifacts of the version's run."""
    client = registry_client()
    run_id = resolved.aspects["run_id"]
    version = resolved.version or "run"
    name = f"profile/{resolved.name}-{version}-{done.rows}-rows"
    with registry_errors(f"run {run_id}"):
        client.log_dict(run_id, asdict(done), f"{name}.json")
        client.log_figure(run_id, draw(done), f"{name}.png")


def _repeat(work: Callable[[], object]) -> list[float]:
    """Return the seconds of at most `_RUNS` calls after a warm-up. After `_SECONDS`,
    `_LEAST_RUNS` calls are enough.
    """
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _WARM_UP + _RUNS:
        start = time.perf_counter()
        if start >= end and len(times) >= _WARM_UP + _LEAST_RUNS:
            break
        work()
        times.append(time.perf_counter() - start)
    return times[_WARM_UP:]


@dataclass(frozen=True)
class _Trace:
    """The executions of nodes in `runs` runs after the warm-up."""

    runs: int
    nodes: list[_NodeRun]

    def sum_by(
        self,
        name_of: Callable[[_NodeRun], str],
    ) -> tuple[NodeTime, ...]:
        """Return the times of the groups of executions with the same name and operator,
        the longest first. `name_of` returns the name of an execution's group.
        """
        groups = defaultdict[tuple[str, str], list[_NodeRun]](list)
        for node in self.nodes:
            groups[name_of(node), node.operator].append(node)
        medians = {key: _median_us(group) for key, group in groups.items()}
        total = sum(medians.values()) or 1.0
        summed = []
        for (name, operator), group in groups.items():
            us = medians[name, operator]
            types = set(chain.from_iterable(node.types for node in group))
            summed.append(
                NodeTime(
                    name,
                    operator,
                    provider=group[0].provider,
                    share=us / total,
                    us=us,
                    calls=len(group) / self.runs,
                    types=tuple(sorted(types)),
                ),
            )
        return tuple(sorted(summed, key=lambda entry: -entry.us))


def _median_us(nodes: list[_NodeRun]) -> float:
    """Return the median time per run, which ignores interrupted runs."""
    us_by_run = defaultdict[int, float](float)
    for node in nodes:
        us_by_run[node.run] += node.us
    return float(np.median(list(us_by_run.values())))


def _trace(model: OnnxModel, feeds: Feeds) -> _Trace:
    """Profile a session with the settings of a request."""
    ort = import_onnxruntime()
    options = session_options(ort, 1)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="onnxserve-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(
            str(model.artifact.onnx_file),
            options,
            providers=["CPUExecutionProvider"],
        )
        arrays = dict(model.graph_feeds(feeds))
        runs = len(_repeat(lambda: session.run(None, arrays)))
        events = json.loads(Path(session.end_profiling()).read_text())
    return _Trace(runs, _node_runs(events, runs))


def _node_runs(
    events: list[dict[str, Any]],
    runs: int,
) -> list[_NodeRun]:
    """Return the executions of nodes in the last `runs` runs of a profile. The time of
    inner nodes is subtracted from the nodes that enclose them.
    """
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    begin = starts[-runs]
    node_runs: list[_NodeRun] = []
    enclosing: list[tuple[int, _NodeRun]] = []  # the end of each node, and the node
    timed = [
        event
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and event["ts"] >= begin
    ]
    for event in sorted(timed, key=lambda event: (event["ts"], -event["dur"])):
        arguments = event["args"]
        node = _NodeRun(
            run=bisect_right(starts, event["ts"]),
            name=event["name"].removesuffix("_kernel_time"),
            operator=arguments["op_name"],
            provider=arguments.get("provider", ""),
            us=float(event["dur"]),
            types=list(chain.from_iterable(arguments.get("input_type_shape", ()))),
        )
        while enclosing and enclosing[-1][0] <= event["ts"]:
            enclosing.pop()
        if enclosing:
            enclosing[-1][1].us -= node.us
        if node.operator in _LOOPS:
            enclosing.append((event["ts"] + event["dur"], node))
        node_runs.append(node)
    return node_runs


def _advise(
    operators: tuple[NodeTime, ...],
    nodes: tuple[NodeTime, ...],
    run_us: float,
) -> Iterator[str]:
    """Yield advice that is derived from the measurements.

    Args:
        operators: the times by operator.
        nodes: the times by node.
        run_us: the median microseconds of a run without the profiler.
    """
    share = partial(_share, operators)
    calls = sum(entry.calls for entry in operators)
    if calls > 0 and run_us / calls < _DISPATCH_US:
        yield (
            f"a run of {run_us:.0f} µs has {calls:.0f} calls of {run_us / max(calls, 1):.1f} "
            "µs: most of the time is dispatch. Batching (more rows per request) reduces it per "
            "row; smaller numbers do not"
        )
    if (trees := share(*_TREES)) >= 0.5:
        yield f"{trees:.0%} is in {_tree_advice(is_double=share(*_TREES, type_='double') > 0)}"
    if (casts := share("Cast")) >= 0.1:
        yield f"{casts:.0%} is in Cast: {_cast_reason(operators)}"
    if unfused := [name for name in _UNFUSED if share(name) >= 0.05]:
        parts = [f"{name} ({share(name):.0%}, part of {_UNFUSED[name]})" for name in unfused]
        yield (
            f"not fused: {', '.join(parts)}; "
            "export the model in eval mode, or fuse it with onnxruntime.transformers.optimizer"
        )
    # Exclude the loops of onnxserve's tree converters over blocks of rows, which need
    # no advice.
    if loops := [
        entry.name
        for entry in nodes
        if entry.operator in _LOOPS and not entry.name.startswith("onnxserve_")
    ]:
        yield (
            f"{', '.join(loops[:3])} has a body with a node that runs "
            f"{max(entry.calls for entry in nodes):g} times: tensor "
            "operations without a loop over rows or steps are faster"
        )
    if (integers := share("ConvInteger")) >= 0.2:
        yield (
            f"{integers:.0%} is in ConvInteger: convolutions with dynamic ranges "
            "are slow; use static"
        )
    if (converted := share(*_QUANTIZING)) >= 0.25:
        yield (
            f"{converted:.0%} only converts numbers to 8 bits and back: the layers are too "
            "small for 8 bits"
        )
    layers = share(*_LAYERS, type_="float")
    if layers >= 0.5 and run_us >= _WORTH_OPTIMIZING_US:
        yield (
            f"{layers:.0%} is in layers of 32-bit floats: `onnxserve auto-optimize` measures "
            "smaller numbers"
        )


def _share(
    operators: Iterable[NodeTime],
    *names: str,
    type_: str = "",
) -> float:
    """Return the share of these operators, or of those that read the type `type_`."""
    return sum(
        entry.share
        for entry in operators
        if entry.operator in names and (not type_ or type_ in entry.types)
    )


def _tree_advice(is_double: bool) -> str:
    """Return the advice for trees; `is_double` is True if they read 64-bit numbers."""
    student = "a distilled student (`mlflow run projects/distill -e distill`)"
    if is_double:
        return (
            "trees that read 64-bit numbers: use fewer or shallower trees, "
            f"float32 columns in training, or {student}"
        )
    return f"trees: use fewer or shallower trees, or {student}"


def _cast_reason(operators: Iterable[NodeTime]) -> str:
    if any("float16" in entry.types for entry in operators):
        return "a CPU computes 16-bit floats in 32 bits"
    return "the types of inputs and nodes differ"


def draw(done: GraphProfile) -> "Figure":
    """Return a figure with the share of each operator and the longest nodes."""
    from matplotlib.figure import Figure  # matplotlib is only in the extra `monitoring`.

    panels = {
        "operators": done.operators[:_MOST_BARS],
        "nodes": done.nodes[:_MOST_BARS],
    }
    bar_count = max(map(len, panels.values()))
    figure = Figure(figsize=(10, 1.5 + 0.3 * bar_count))
    for axes, (title, entries) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        longest = entries[::-1]
        bars = axes.barh(
            [entry.name[-32:] for entry in longest],
            [100 * entry.share for entry in longest],
        )
        axes.bar_label(bars, [f"{entry.us:.0f} µs" for entry in longest], padding=2, fontsize=8)
        axes.margins(x=0.2)
        axes.set_xlabel("% of the time of all nodes")
        axes.set_title(title)
        axes.tick_params(axis="y", labelsize=8)
    figure.suptitle(f"{done.model}, {done.rows:,} rows: {done.run_us:,.0f} µs per run")
    figure.tight_layout()
    return figure
