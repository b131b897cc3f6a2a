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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds, repeat_row, row_count
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime, session_options
from mlflow_deploy_plugin.wrap.evaluation.dataset import load_rows, reference_rows, take_rows
from mlflow_deploy_plugin.wrap.evaluation.model import downloaded_version
from mlflow_deploy_plugin.wrap.optimization.measure import load_onnx

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WARM_UP = 5
_RUNS = 30
_SECONDS = 10.0
_TREES = ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
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
_WORTH_OPTIMIZING_US = 50
_DISPATCH_US = 3.0
"""Below this time, most of a node's time is overhead: reading the inputs and allocating
the output.
"""


@dataclass(frozen=True)
class NodeTime:
    """The time of a node in the optimized graph, or of all nodes with the same
    operator.

    `us` is the median microseconds per run in the profiler, `share` the share of the
    time of all nodes, `calls` the calls per run (several in a Loop), and `types` the
    input types.
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
    """The times of a version, the longest first, and `advice` on possible changes, in
    sentences.

    `run_us` is the median microseconds of a run without the profiler. `outside_us` is
    `run_us` minus the time of all nodes (the time for memory and dispatch), and is
    negative if the profiler's overhead is larger.
    """

    model: str
    rows: int
    runs: int
    run_us: float
    outside_us: float
    operators: tuple[NodeTime, ...]
    nodes: tuple[NodeTime, ...]
    advice: tuple[str, ...]


def profile(model_uri: str, *, rows: int = 1, data: str = "", log: bool = False) -> GraphProfile:
    """Profile requests with `rows` rows.

    Args:
        data: a dataset in the form of a gate policy; default: the reference of the
            model, otherwise a row of zeros.
        log: log the profile and its figure as artifacts of the version's run.

    Raises InvalidConfig without an ONNX form, without the data, or for fewer than one
    row; NotFound if the version or a run to log to does not exist; and
    RegistryUnavailable if MLflow does not answer.
    """
    if rows < 1:
        raise InvalidConfig(f"rows: {rows} is less than 1")
    resolved = resolve(model_uri)
    if log and not resolved.aspects.get("run_id"):
        raise NotFound(f"{resolved.source} has no run in MLflow to log the profile to")
    with downloaded_version(resolved) as folder:
        base = load_onnx(folder, resolved)
        dataset_rows = (
            load_rows(data, base.artifact, rows, 0)
            if data
            else reference_rows(base.artifact, rows, 0)
        )
        if dataset_rows:
            feeds = base.feeds(
                take_rows(dataset_rows, np.resize(np.arange(row_count(dataset_rows)), rows)),
            )
        else:
            feeds = repeat_row(base.model.example_feeds(), 0, rows)
        times = _repeat(lambda: base.model.run(feeds))
        events, runs = _profiled_runs(base.model, feeds)
    nodes = _sum_by(events, runs, lambda event: event.name)
    operators = _sum_by(events, runs, lambda event: event.operator)
    run_us = float(np.median(times)) * 1e6
    outside_us = run_us - sum(node.us for node in nodes)
    advice = _advise(operators, nodes, run_us)
    done = GraphProfile(resolved.source, rows, runs, run_us, outside_us, operators, nodes, advice)
    if log:
        client = registry_client()
        run_id = resolved.aspects["run_id"]
        name = f"profile/{resolved.name}-{resolved.version or 'run'}-{rows}-rows"
        with registry_errors(f"run {run_id}"):
            client.log_dict(run_id, asdict(done), f"{name}.json")
            client.log_figure(run_id, draw(done), f"{name}.png")
    return done


def _repeat(work: Callable[[], object]) -> list[float]:
    """Return the seconds of each call after a warm-up. Long calls are repeated less
    often.
    """
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _WARM_UP + _RUNS and (
        len(times) < _WARM_UP + 3 or time.perf_counter() < end
    ):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times[_WARM_UP:]


def _profiled_runs(model: OnnxModel, feeds: Feeds) -> tuple[list[_NodeRun], int]:
    """Profile a session with request settings. Return the node executions after the
    warm-up, and the number of runs.
    """
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
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    begin = starts[-runs]
    node_runs: list[_NodeRun] = []
    enclosing: list[tuple[int, _NodeRun]] = []
    timed = (
        event
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )
    for event in sorted(timed, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] < begin:
            continue
        arguments = event["args"]
        node = _NodeRun(
            run=bisect_right(starts, event["ts"]),
            name=event["name"].removesuffix("_kernel_time"),
            operator=arguments["op_name"],
            provider=arguments.get("provider", ""),
            us=float(event["dur"]),
            types=[name for entry in arguments.get("input_type_shape", ()) for name in entry],
        )
        while enclosing and enclosing[-1][0] <= event["ts"]:
            enclosing.pop()
        if enclosing:
            enclosing[-1][1].us -= node.us
        if node.operator in _LOOPS:
            enclosing.append((event["ts"] + event["dur"], node))
        node_runs.append(node)
    return node_runs, runs


def _sum_by(
    events: list[_NodeRun],
    runs: int,
    name_of: Callable[[_NodeRun], str],
) -> tuple[NodeTime, ...]:
    groups: dict[tuple[str, str], list[_NodeRun]] = {}
    for event in events:
        groups.setdefault((name_of(event), event.operator), []).append(event)
    medians = {}
    for node, group in groups.items():
        of_runs: dict[int, float] = {}
        for event in group:
            of_runs[event.run] = of_runs.get(event.run, 0.0) + event.us
        # The median ignores interrupted runs.
        medians[node] = float(np.median(list(of_runs.values())))
    total = sum(medians.values()) or 1.0
    summed = []
    for (name, operator), group in groups.items():
        us = medians[name, operator]
        types = tuple(sorted({kind for event in group for kind in event.types}))
        summed.append(
            NodeTime(name, operator, group[0].provider, us / total, us, len(group) / runs, types),
        )
    return tuple(sorted(summed, key=lambda entry: -entry.us))


def _advise(
    operators: tuple[NodeTime, ...],
    nodes: tuple[NodeTime, ...],
    run_us: float,
) -> tuple[str, ...]:
    """Return advice that is derived from the measurements."""

    def share(*names: str, type_: str = "") -> float:
        return sum(
            e.share for e in operators if e.operator in names and (not type_ or type_ in e.types)
        )

    def shown_operator(name: str) -> str:
        return f"{name} ({share(name):.0%}, part of {_UNFUSED[name]})"

    calls = sum(entry.calls for entry in operators)
    trees = share(*_TREES)
    casts = share("Cast")
    converted = share("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
    layers = share(*_LAYERS, type_="float")
    integer_convolutions = share("ConvInteger")
    unfused = [name for name in _UNFUSED if share(name) >= 0.05]
    # Exclude the loops of onnxserve's tree converters over blocks of rows, which need
    # no advice.
    loops = [
        entry.name
        for entry in nodes
        if entry.operator in _LOOPS and not entry.name.startswith("onnxserve_")
    ]
    steps = max((entry.calls for entry in nodes), default=0)
    is_double = share(*_TREES, type_="double") > 0
    is_half = any("float16" in entry.types for entry in operators)
    advice = (
        (
            calls > 0 and run_us / calls < _DISPATCH_US,
            (
                f"a run of {run_us:.0f} µs has {calls:.0f} calls of {run_us / max(calls, 1):.1f} "
                "µs: most of the time is dispatch. Batching (more rows per request) reduces it per "
                "row; smaller numbers do not"
            ),
        ),
        (
            trees >= 0.5,
            (
                f"{trees:.0%} is in trees{' that read 64-bit numbers' if is_double else ''}: use "
                "fewer or shallower trees, "
                f"{'float32 columns in training, ' if is_double else ''}or a distilled student "
                "(`mlflow run projects/distill -e distill`)"
            ),
        ),
        (
            casts >= 0.1,
            f"{casts:.0%} is in Cast: "
            + (
                "a CPU computes 16-bit floats in 32 bits"
                if is_half
                else "the types of inputs and nodes differ"
            ),
        ),
        (
            bool(unfused),
            (
                f"not fused: {', '.join(map(shown_operator, unfused))}; "
                "export the model in eval mode, or fuse it with onnxruntime.transformers.optimizer"
            ),
        ),
        (
            bool(loops),
            (
                f"{', '.join(loops[:3])} has a body with a node that runs {steps:g} times: tensor "
                "operations without a loop over rows or steps are faster"
            ),
        ),
        (
            integer_convolutions >= 0.2,
            (
                f"{integer_convolutions:.0%} is in ConvInteger: convolutions with dynamic ranges "
                "are slow; use static"
            ),
        ),
        (
            converted >= 0.25,
            (
                f"{converted:.0%} only converts numbers to 8 bits and back: the layers are too "
                "small for 8 bits"
            ),
        ),
        (
            layers >= 0.5 and run_us >= _WORTH_OPTIMIZING_US,
            (
                f"{layers:.0%} is in layers of 32-bit floats: `onnxserve auto-optimize` measures "
                "smaller numbers"
            ),
        ),
    )
    return tuple(text for holds, text in advice if holds)


def draw(done: GraphProfile) -> "Figure":
    """Return a figure with the share of each operator and the longest nodes."""
    from matplotlib.figure import Figure  # matplotlib is only in the extra `monitoring`.

    figure = Figure(
        figsize=(10, 1.5 + 0.3 * max(min(len(done.operators), 12), min(len(done.nodes), 12))),
    )
    for axes, entries, title in zip(
        figure.subplots(1, 2),
        (done.operators, done.nodes),
        ("operators", "nodes"),
        strict=True,
    ):
        longest = entries[:12][::-1]
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
