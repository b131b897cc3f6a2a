"""Loading a version: its memory limit, the warm-up before its first request, and
batching if it is possible.
"""

import logging
import mmap
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from mlflow_deploy_plugin.core.errors import (
    DeviceMemoryFull,
    InferenceError,
    InvalidArtifact,
    ModelError,
    OnnxserveError,
    pass_exit,
)
from mlflow_deploy_plugin.core.mlmodel import (
    INPUT_EXAMPLE,
    PYTHON_FUNCTION,
    folder_bytes,
    hash_folder,
)
from mlflow_deploy_plugin.core.processes.memory import limit_growth, memory_limit, physical_memory
from mlflow_deploy_plugin.core.statedir.files import mark_loading
from mlflow_deploy_plugin.core.statedir.models import WantedVariant
from mlflow_deploy_plugin.serve.models.pyfunc_model import PyfuncPredictor
from mlflow_deploy_plugin.serve.protocols import mlflow
from mlflow_deploy_plugin.serve.protocols.content import JSON
from mlflow_deploy_plugin.serve.runtime.agreement import Tolerance
from mlflow_deploy_plugin.serve.runtime.batcher import (
    Batcher,
    BatchPolicy,
    is_close,
    unbatchable_reason,
)
from mlflow_deploy_plugin.serve.runtime.feeds import (
    Feeds,
    no_batch_dimension_reason,
    repeat_row,
)
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel, Predictor
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.serve.runtime.session import (
    ON_CPU,
    Placement,
    must_end,
    open_session,
    time_limit,
)
from mlflow_deploy_plugin.serve.spool.captured_model import STREAM_OUTPUT, CapturedModel
from mlflow_deploy_plugin.serve.variants import LoadedVersion

logger = logging.getLogger(__name__)

# The op_type of a node in protobuf: field 4, the length, the text (onnx.proto,
# NodeProto).
_RANDOM = re.compile(
    rb'"(?:[\x09-\x11](?:RandomNormal|RandomUniform|Multinomial|Bernoulli)|\x07Dropout)'
)
_OTHERS_BYTES = 384 * 2**20
"""The memory of supervisor, gunicorn and agent in a container; at most a quarter of its
limit is reserved for them.
"""
_MEASURABLE_BYTES = 4 * 2**20
"""The size of files from which their load is measured; loading smaller files mostly
takes memory for libraries.
"""
_DEFAULT_FACTOR = 2.0
_LOADS = 5
"""The maximum time of a load, as a multiple of the time limit of its first run."""
_LOADS_ON_DEVICE = 60
"""The same on other devices than the CPU, for which TensorRT and OpenVINO compile."""
_BYTES_PER_SECOND = 2**20
"""The time of a load is extended by a second for so many bytes of files."""
_TOLERANCE = Tolerance(absolute=1e-6, relative=1e-3, of_row=1e-3)
"""The tolerance of OpenVINO's outputs in float32. The measured differences are 1e-6 of
the largest value.
"""
_MIN_FACTOR = 1.0
_MAX_FACTOR = 4.0
_LEAST_FREE_BYTES = 64 * 2**20
STACK_BYTES = 2**21
"""The stack of each further thread of a worker on the CPU, instead of 8 MiB (`ulimit
-s`), because all of it counts as allocated.
"""


@dataclass(frozen=True, eq=False)
class WarmVersion:
    """A version that is ready to answer.

    Attributes:
        batcher: runs requests together; None to run them one by one.
        is_deterministic: True if the same feeds always have the same outputs, so that
            these can be cached.
    """

    predictor: Predictor
    batcher: Batcher | None = None
    is_deterministic: bool = False


def check_digest(want: WantedVariant) -> None:
    """Raise InvalidArtifact if the files differ from those that the agent checked."""
    if want.digest and hash_folder(want.folder) != want.digest:
        raise InvalidArtifact(
            "its files were changed after they were checked; restart the server, which fetches "
            "them again"
        )


def load_version(
    state_dir: Path, load: Callable[[Path, str], WarmVersion], want: WantedVariant
) -> LoadedVersion:
    """Load and warm up the version. If the worker dies during the load, a state file
    reports the folder to the agent.

    Raises OnnxserveError if the version cannot be loaded; the message may be sent to
    clients.
    """
    try:
        check_digest(want)
        with mark_loading(state_dir, want.folder):
            warm = load(want.folder, want.python)
    except OnnxserveError:
        raise
    except BaseException as error:
        pass_exit(error)
        logger.exception("loading %s %s failed", want.model, want.version)
        raise OnnxserveError(
            f"loading failed unexpectedly: {type(error).__name__}, see the log"
        ) from None
    artifact = warm.predictor.artifact
    outputs = tuple(output.name for output in artifact.outputs) or None
    if outputs and artifact.is_streamable:
        outputs += (STREAM_OUTPUT,)
    loaded = LoadedVersion(
        want.model,
        want.version,
        want.folder,
        predictor=warm.predictor,
        batcher=warm.batcher,
        is_deterministic=warm.is_deterministic,
        captured=CapturedModel(
            want.model, want.version, warm.predictor.schema, artifact.prediction, outputs
        ),
        digest=want.digest,
        python=want.python,
    )
    logger.info("loaded %s %s", want.model, want.version)
    if loaded.batcher is not None:
        weakref.finalize(loaded, loaded.batcher.close).atexit = False
    dropped = "dropped %s %s"
    weakref.finalize(loaded, logger.info, dropped, want.model, want.version).atexit = False
    return loaded


def _compared(model: OnnxModel, usual: OnnxModel, feeds: Feeds) -> OnnxModel:
    """Return the model if its outputs are those of ONNX Runtime's CPU provider, which
    computes `usual`. Otherwise return `usual` instead of faster trees.

    Raises:
        InvalidArtifact: OpenVINO computes other outputs.
    """
    expected = usual.run(feeds)
    different = [
        name
        for name, array in model.run(feeds).items()
        if not is_close(array, expected[name], _TOLERANCE)
    ]
    if not different:
        return model
    if not model.has_faster_trees:
        raise InvalidArtifact(
            f"OpenVINO computes its output {different[0]!r} incorrectly: use device cpu"
        )
    logger.warning(
        "%s: ONNX Runtime computes the trees, because onnxserve-trees computes the output %r "
        "incorrectly",
        model.artifact.onnx_file.parent.name,
        different[0],
    )
    return usual


def load_warm(
    folder: Path,
    placement: Placement,
    intra_op_num_threads: int,
    policy: BatchPolicy | None = None,
    check_determinism: bool = False,
    timeout_seconds: float = 60.0,
    concurrency: int = 1,
    python: str = "",
) -> WarmVersion:
    """Load the MLmodel folder, and run the model once on its own example, or if it has
    none, on a row of zeros.

    Args:
        policy: the policy for running requests together, if the model allows it; None
            to run them separately.
        check_determinism: True to search the graph for random nodes, which takes a
            second per gigabyte.
        timeout_seconds: the time limit of the first run, and of every request to a
            pyfunc (`SideProcess`).
        concurrency: the maximum number of concurrent requests to a pyfunc.
        python: the Python that runs a pyfunc; empty for the server's own Python.

    Raises:
        InvalidArtifact: the model cannot be used, or cannot answer its own example, or
            OpenVINO answers incorrectly.
        DeviceUnavailable, RuntimeMissing: see `serve.runtime.session.open_session`.
    """
    artifact = read_served_artifact(folder)
    if artifact.flavor == PYTHON_FUNCTION:
        return WarmVersion(PyfuncPredictor.load(artifact, timeout_seconds, concurrency, python))

    def end_worker() -> None:
        logger.error("%s is loaded without end, and the worker starts again", folder)
        must_end.set()

    loads = _LOADS if placement == ON_CPU else _LOADS_ON_DEVICE
    seconds = loads * timeout_seconds + folder_bytes(folder) / _BYTES_PER_SECOND
    with time_limit(seconds, end_worker):
        # The server's own threads use all cores.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        model = OnnxModel.load(folder, placement, intra_op_num_threads)
        is_deterministic = check_determinism and not has_random_nodes(model.artifact.onnx_file)
        if (folder / INPUT_EXAMPLE).is_file():
            try:
                feeds = mlflow.decode(JSON, (folder / INPUT_EXAMPLE).read_bytes(), model.schema)
                model.try_out(feeds, timeout_seconds)
                is_compared = placement.must_equal_cpu or model.has_faster_trees
                if is_compared and not has_random_nodes(model.artifact.onnx_file):
                    session = open_session(model.artifact.onnx_file, ON_CPU, intra_op_num_threads)
                    model = _compared(model, OnnxModel(model.artifact, session, ON_CPU), feeds)
            except OnnxserveError as error:
                raise InvalidArtifact(
                    f"the model cannot answer its own example ({INPUT_EXAMPLE}): {error.message}"
                ) from None
        else:
            feeds = model.example_feeds()
            try:
                model.try_out(feeds, timeout_seconds)
            except InferenceError as error:
                # A graph may legitimately reject a row of zeros. Serve it without a
                # warm-up.
                logger.info(
                    "%s: no warm-up, because the model rejects a row of zeros: %s",
                    folder.name,
                    error.message,
                )
                if policy is not None:
                    logger.warning(
                        "%s: requests are not batched, because the model has no example",
                        folder.name,
                    )
                return WarmVersion(model, is_deterministic=is_deterministic)
        batcher = None
        if policy is not None:
            if reason := unbatchable_reason(model, feeds):
                logger.warning("%s: requests are not batched: %s", folder.name, reason)
            else:
                for size in policy.sizes:  # Warm up each batch size.
                    with suppress(DeviceMemoryFull):  # The batcher divides such a batch.
                        model.run(repeat_row(feeds, 0, size))
                # The tokenizer divides a batch by the lengths of its texts. Padding
                # rows would only be more work.
                pads = policy.pads and model.artifact.tokenizer is None
                batcher = Batcher(model.run, replace(policy, pads=pads))
        if not no_batch_dimension_reason(model.artifact):
            model.run(repeat_row(feeds, 0))  # Warm up one row, a common shape; a first run is slow.
        return WarmVersion(model, batcher, is_deterministic)


def has_random_nodes(onnx_file: Path) -> bool:
    """Return True if the graph may draw random numbers. The search in its bytes takes
    0.1 s per 100 MB.
    """
    with (
        onnx_file.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return _RANDOM.search(content) is not None


class MemoryLimit:
    """The memory limit of a worker in bytes, or None. A version is loaded next to the
    served version if both fit.

    A container that exceeds its limit is killed. Therefore the memory of a load is
    estimated first: the file size times a factor, which the last load of large files
    has measured (2 without a measurement). The first version is refused only if its
    files exceed the limit. Loads wait for each other, because the memory of a current
    load is unknown.

    An allocation that would exceed the limit fails, so that a graph cannot take what
    its file claims.

    Args:
        limit: the limit.
        threads: the number of threads whose stacks count as allocated, but are hardly
            used; None if the process has no limit, because it is not only a worker, or
            uses a GPU, whose driver allocates more than it uses.
    """

    def __init__(self, limit: int | None, threads: int | None = None) -> None:
        self._limit = limit
        self._threads = threads
        self._factor = _MIN_FACTOR
        self._turn = threading.Lock()

    @contextmanager
    def loading(self, folder: Path) -> Iterator[None]:
        """Check that the version in `folder` fits, and measure the memory that the
        context allocates.

        Raises ModelError if the version would exceed the limit.
        """
        if self._limit is None:
            yield
            return
        with self._turn:
            file_bytes = folder_bytes(folder)
            used_bytes = self.used()
            needed_bytes = int(file_bytes * self._factor)
            if used_bytes + needed_bytes > self._limit:
                raise ModelError(
                    f"loading it would take about {_mebibytes(needed_bytes)} in addition to the "
                    f"{_mebibytes(used_bytes)} of this worker, and the worker's limit is "
                    f"{_mebibytes(self._limit)} (server.max_worker_memory_bytes)"
                )
            self._limit_growth()
            yield
            self._limit_growth()
            factor = _DEFAULT_FACTOR
            if file_bytes >= _MEASURABLE_BYTES:
                factor = (self.used() - used_bytes) / file_bytes
            self._factor = min(max(factor, _MIN_FACTOR), _MAX_FACTOR)

    def _limit_growth(self) -> None:
        if self._limit is not None and self._threads is not None:
            free = max(self._limit - self.used(), _LEAST_FREE_BYTES)
            limit_growth(free + self._threads * STACK_BYTES)

    def used(self) -> int:
        """Return the memory of this process and its children in bytes."""
        this_process = psutil.Process()
        used_bytes = 0
        for process in (this_process, *this_process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # The process has just exited.
                used_bytes += process.memory_info().rss
        return used_bytes


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def worker_memory_limit(configured_bytes: int | None, workers: int) -> int | None:
    """Return the memory of a worker in bytes: the configured limit, or a share of the
    cgroup's memory; None if neither limits it.
    """
    if configured_bytes is not None:
        return configured_bytes
    limit = memory_limit()
    if limit >= physical_memory():
        return None
    reserved_bytes = min(_OTHERS_BYTES, limit // 4)
    return (limit - reserved_bytes) // workers
