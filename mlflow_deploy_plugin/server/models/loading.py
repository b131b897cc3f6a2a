"""Loading a version: warm-up, so that its first request is not its slowest, and how it is best run."""

import logging
import mmap
import re
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.errors import InferenceError, InvalidArtifact, OnnxserveError
from mlflow_deploy_plugin.runtime import (
    PYTHON_FUNCTION,
    Batcher,
    BatchPolicy,
    Feeds,
    OnnxModel,
    Predictor,
    no_batch_dimension_reason,
    read_served_artifact,
    repeat_row,
    unbatchable_reason,
)
from mlflow_deploy_plugin.server.capture.captured_model import CapturedModel
from mlflow_deploy_plugin.server.models.pyfunc_model import PyfuncPredictor
from mlflow_deploy_plugin.server.models.variants import LoadedVersion
from mlflow_deploy_plugin.server.protocols import mlflow
from mlflow_deploy_plugin.server.protocols.content import JSON
from mlflow_deploy_plugin.spec import Device
from mlflow_deploy_plugin.statedir import WantedVariant, mark_loading

logger = logging.getLogger(__name__)

INPUT_EXAMPLE = "serving_input_example.json"
"""MLflow writes it beside a model that was logged with an input example: a body for `/invocations`."""

_TIMED_RUNS = 3
# The op_type of a node as protobuf writes it: field 4, the length, the text (onnx.proto, NodeProto).
_RANDOM = re.compile(rb'"[\x09-\x11](?:RandomNormal|RandomUniform|Multinomial|Bernoulli)')


@dataclass(frozen=True, eq=False)
class WarmVersion:
    """A version that is ready to answer. Its attributes are those of `LoadedVersion`."""

    predictor: Predictor
    batcher: Batcher | None = None
    seconds_per_row: float = float("inf")
    is_deterministic: bool = False


def load_version(state_dir: Path, load: Callable[[Path], WarmVersion], want: WantedVariant) -> LoadedVersion:
    """Load and warm the version. Meanwhile a state file names its folder, for the case that the worker dies of it.

    Raises:
        OnnxserveError: it cannot be loaded; the message may be shown to clients.
    """
    try:
        with mark_loading(state_dir, want.folder):
            warm = load(want.folder)
    except OnnxserveError:
        raise
    except Exception as error:
        logger.exception("loading %s %s failed", want.model, want.version)
        raise OnnxserveError(f"loading failed unexpectedly: {type(error).__name__}, see the log") from None
    predictor = warm.predictor
    loaded = LoadedVersion(
        want.model,
        want.version,
        want.folder,
        predictor,
        CapturedModel(
            want.model,
            want.version,
            predictor.schema,
            predictor.artifact.prediction,
            tuple(output.name for output in predictor.artifact.outputs) or None,
        ),
        warm.batcher,
        warm.seconds_per_row,
        warm.is_deterministic,
    )
    logger.info("loaded %s %s", want.model, want.version)
    if warm.batcher is not None:
        weakref.finalize(loaded, warm.batcher.close).atexit = False
    weakref.finalize(loaded, logger.info, "dropped %s %s", want.model, want.version).atexit = False
    return loaded


def load_warm(
    folder: Path,
    device: Device,
    intra_op_num_threads: int,
    policy: BatchPolicy | None = None,
    check_determinism: bool = False,
    timeout_seconds: float = 60.0,
    graph_cache: Path | None = None,
) -> WarmVersion:
    """Load the MLmodel folder and run the model once: on its own example, or on a row of zeros if it has none.

    Args:
        policy: how its requests are run together, if that is possible; None if they are not.
        check_determinism: search the graph for random nodes, which takes a second for a gigabyte.
        timeout_seconds: for the first run, and for every run of a pyfunc, whose process is then killed and restarted.
        graph_cache: the folder that keeps optimised graphs for the next start.

    Raises:
        InvalidArtifact: the model cannot be used, or cannot answer its own example.
        DeviceUnavailable, RuntimeMissing: see `runtime.session.open_session`.
    """
    artifact = read_served_artifact(folder)
    if artifact.flavor == PYTHON_FUNCTION:
        return WarmVersion(PyfuncPredictor.load(artifact, timeout_seconds))
    model = OnnxModel.load(folder, device, intra_op_num_threads, graph_cache)
    is_deterministic = check_determinism and not has_random_nodes(model.artifact.onnx_file)
    feeds = _run_example(model, folder, timeout_seconds)
    if feeds is None:
        if policy is not None:
            logger.warning("%s: requests are not joined, since it has no example to try that with", folder.name)
        return WarmVersion(model, is_deterministic=is_deterministic)
    batcher = None
    if policy is not None:
        if reason := unbatchable_reason(model, feeds):
            logger.warning("%s: requests are not joined: %s", folder.name, reason)
        else:
            for size in policy.sizes:
                model.run(repeat_row(feeds, 0, size))
            batcher = Batcher(model.run, policy)
    timed = feeds if no_batch_dimension_reason(model.artifact) else repeat_row(feeds, 0)
    fastest = float("inf")
    for _ in range(_TIMED_RUNS):
        began = time.perf_counter()
        model.run(timed)
        fastest = min(fastest, time.perf_counter() - began)
    return WarmVersion(model, batcher, fastest / max(model.schema.count_rows(timed), 1), is_deterministic)


def has_random_nodes(onnx_file: Path) -> bool:
    """Return whether the graph may draw random numbers, from its bytes: a constant may look like such a node.

    A graph of 100 MB takes 0.1 s. Parsing it would take its size in memory.
    """
    with onnx_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _RANDOM.search(content) is not None


def _run_example(model: OnnxModel, folder: Path, seconds: float) -> Feeds | None:
    """Run the model once and return the feeds: its own example if it has one; None if it refuses a row of zeros."""
    example = folder / INPUT_EXAMPLE
    if example.is_file():
        try:
            feeds = mlflow.decode(JSON, example.read_bytes(), model.schema)
            model.try_out(feeds, seconds)
        except OnnxserveError as error:
            raise InvalidArtifact(
                f"the model cannot answer its own example ({INPUT_EXAMPLE}): {error.message}"
            ) from None
        return feeds
    feeds = model.example_feeds()
    try:
        model.try_out(feeds, seconds)
    except InferenceError as error:
        # A graph may have every right to refuse zeros (an unknown category, a shape): it only starts cold.
        logger.info("%s: no warm-up, since it refuses a row of zeros: %s", folder.name, error.message)
        return None
    return feeds
