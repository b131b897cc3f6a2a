"""Profile a version with ONNX Runtime's profiler.

The profiler has a resolution of one microsecond, and slows small graphs down several
times. The file can be opened at https://ui.perfetto.dev.
"""

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.serve.runtime.feeds import Feeds, repeat_row, row_count
from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime, session_options
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    NamedArrays,
    load_rows,
    reference_rows,
    take_rows,
)
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx, downloaded_version
from mlflow_deploy_plugin.wrap.optimization.measure import load_onnx

_RUNS = 30
_LEAST_RUNS = 3
_SECONDS = 10.0


@dataclass(frozen=True)
class OperatorTime:
    """The time of all nodes with the same operator.

    Attributes:
        operator: the operator; a Loop includes its inner nodes.
        share: the share of the time of all operators.
        us: the microseconds per run.
    """

    operator: str
    share: float
    us: float


@dataclass(frozen=True)
class GraphProfile:
    """The profile of a version.

    Attributes:
        model: the version.
        rows: the rows per request.
        runs: the number of requests.
        file: ONNX Runtime's profile, in the current folder.
        operators: the times by operator, the longest first.
    """

    model: str
    rows: int
    runs: int
    file: str
    operators: tuple[OperatorTime, ...]


def profile(model_uri: str, *, rows: int = 1, data: str = "") -> GraphProfile:
    """Profile requests with `rows` rows to the optimized graph, in one CPU thread.

    Args:
        model_uri: a version with an ONNX form.
        rows: the rows per request.
        data: a dataset in the form of a gate policy; default: the reference of the
            model, otherwise a row of zeros.

    Raises:
        InvalidConfig: there is no ONNX form or no data, `rows` is less than 1, or the
            profile cannot be written.
        NotFound: the version does not exist.
        RegistryUnavailable: MLflow does not answer.
    """
    if rows < 1:
        raise InvalidConfig(f"rows: {rows} is less than 1")
    resolved = resolve(model_uri)
    ort = import_onnxruntime()
    options = session_options(ort, 1)
    options.enable_profiling = True
    options.profile_file_prefix = "onnxserve-profile"
    with downloaded_version(resolved) as folder:
        base = load_onnx(folder, resolved)
        arrays = dict(base.model.graph_feeds(_request(base, rows, data)))
        session = ort.InferenceSession(
            str(base.artifact.onnx_file),
            options,
            providers=["CPUExecutionProvider"],
        )
        end = time.perf_counter() + _SECONDS
        runs = 0
        while runs < _LEAST_RUNS or (runs < _RUNS and time.perf_counter() < end):
            session.run(None, arrays)
            runs += 1
    file = session.end_profiling()
    try:
        events = json.loads(Path(file).read_text())
    except OSError as error:
        raise InvalidConfig(f"the profile {file} cannot be written: {error.strerror}") from None
    us_by_operator = defaultdict[str, float](float)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            us_by_operator[event["args"]["op_name"]] += event["dur"] / runs
    total = sum(us_by_operator.values()) or 1.0
    operators = [OperatorTime(name, us / total, us) for name, us in us_by_operator.items()]
    operators.sort(key=lambda operator: -operator.us)
    return GraphProfile(resolved.source, rows, runs, file, tuple(operators))


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
