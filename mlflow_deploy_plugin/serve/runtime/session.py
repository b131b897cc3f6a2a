"""An ONNX Runtime session with explicit providers and threads. Opening fails if the
specified device cannot be used.

Optimised graphs are not stored, because storing them makes the first load slower (653
instead of 202 ms for 201 MB).
"""

import contextlib
import ctypes
import logging
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.core.errors import (
    DeviceUnavailable,
    InvalidArtifact,
    InvalidConfig,
    OnnxserveError,
    RuntimeMissing,
)
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.processes.memory import (
    bytes_left,
    cgroup_folders,
    memory_limit,
    resident_bytes,
)
from mlflow_deploy_plugin.core.spec.parts import Device, ProviderOptions
from mlflow_deploy_plugin.serve.runtime.tree_operator import add_tree_operator

if sys.platform != "win32":
    from resource import RUSAGE_SELF, getrusage

if TYPE_CHECKING:
    import onnxruntime as ort

    from mlflow_deploy_plugin.serve.runtime.feeds import Feeds

logger = logging.getLogger(__name__)

_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CPU = _PROVIDERS["cpu"]
_TENSORRT = "TensorrtExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"
_BUILDS = {_PROVIDERS["cuda"]: "GPU", _TENSORRT: "GPU", OPENVINO: "OpenVINO"}
"""The build of ONNX Runtime that has a provider. The extra in setup.cfg has the same
name in lower case.
"""
_DRIVER = "libcuda.so.1"
_KEEP_SECONDS = 1.0
"""The memory of a large run remains allocated for this time, so that the next run can
reuse it.
"""
_LEAST_BYTES = 2**22
_MOST_USED_UP = 20
"""The memory with which a worker can go on, and the number of checks, four per second,
without it.
"""

_CPP = re.compile(
    r"Load model from .*? failed: ?|Exception during loading: ?"
    r"|/\S+\.(?:cc|h):\d+ .*?\bonnxruntime::.*?\)(?: const)?(?: \[with .*?\])? (?=\S)"
    r"|\[OpenVINO-EP\] "
    r"|Exception (?:from src/\S+\.cpp:\d+|during initialization): "
    r"|Check '.*?' failed at src/\S+: "
)
"""The parts of ONNX Runtime's messages that do not help the reader: paths and names of
internal functions.
"""


@dataclass(frozen=True)
class Placement:
    """The device and the provider options of a session.

    Attributes:
        device_id: the CUDA index of the GPU.
        options: the provider options. An option that is None has ONNX Runtime's
            default.
        listed: the providers by ONNX Runtime's names, with their options, instead of a
            device.
    """

    device: Device = "cpu"
    device_id: int = 0
    options: ProviderOptions = field(default_factory=ProviderOptions)
    listed: Sequence[Mapping[str, Mapping[str, object]]] = ()

    def __str__(self) -> str:
        if self.listed:
            return "server.providers"
        return f"--device {self.device}"

    def __post_init__(self) -> None:
        """Raise InvalidConfig for an unknown device."""
        if self.device not in _PROVIDERS:
            choices = ", ".join(_PROVIDERS)
            raise InvalidConfig(f"device: {self.device!r} is not one of {choices}")

    @property
    def is_on_openvino(self) -> bool:
        """True if OpenVINO computes all operators, so that its inputs are checked."""
        return {*dict(self.providers)} == {OPENVINO}

    @property
    def must_equal_cpu(self) -> bool:
        """True if OpenVINO computes all operators in float32 on a CPU, so that its
        outputs are the CPU provider's.
        """
        options = dict(self.providers).get(OPENVINO, {})
        is_default = (
            options.get("device_type", "CPU") == "CPU"
            and options.get("precision", "FP32") == "FP32"
        )
        return self.is_on_openvino and is_default

    @property
    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """The ordered providers (https://onnxruntime.ai/docs/execution-providers/). A
        device has no CPU fallback.
        """
        if self.listed:
            providers = []
            for name, listed in chain.from_iterable(entry.items() for entry in self.listed):
                providers.append((name, {key: str(value) for key, value in listed.items()}))
            return providers
        if self.device == "cpu":
            return [(_CPU, {})]
        options = self.options.model_dump(exclude_none=True, exclude={"enable_cuda_graph"})
        cuda = {}
        for name, value in options.items():
            cuda[name] = str(int(value)) if isinstance(value, bool) else str(value)
        cuda["device_id"] = str(self.device_id)
        if self.options.enable_cuda_graph:
            cuda["enable_cuda_graph"] = "1"
        return [(_PROVIDERS["cuda"], cuda)]

    @property
    def may_be_idle(self) -> set[str]:
        """The listed providers that need not compute a part of the model: CUDA next to
        TensorRT computes only the operators that TensorRT does not support.
        """
        if _TENSORRT in chain.from_iterable(self.listed):
            return {_PROVIDERS["cuda"]}
        return set()


ON_CPU = Placement()

must_end = threading.Event()
"""Set after the GPU of this process has failed, if a model is loaded without end, or if
memory stays used up. The worker then ends, and gunicorn starts a new one.
"""

OLDEST_ONNXRUNTIME = (1, 29)
"""The oldest supported version, as in setup.cfg. 1.28 has no cosine in 64 bits, 1.27
computes forests incorrectly (measured: 52 labels of 569), and 1.26 can read any file on
the machine as a graph's weights.
"""
_OLDEST_OPENVINO = (1, 24)
"""The oldest supported version of the OpenVINO build, whose newest release is older
than `OLDEST_ONNXRUNTIME`. `_check_weights` and `FORESTS` exclude the faults of these
versions, except one: an integer division by zero on the CPU provider ends the process.
A missing cosine is an error of ONNX Runtime.
"""
FORESTS = {"TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"}


def import_onnxruntime() -> Any:
    """Return the module, with telemetry disabled unless the environment enables
    telemetry.

    Since 1.29, importing ONNX Runtime writes a machine id into HOME and reports loaded
    models to Microsoft. Raises RuntimeMissing if ONNX Runtime is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as module  # The module is heavy, and two distributions provide it.
    except ImportError:
        raise RuntimeMissing(
            "ONNX Runtime is not installed: pip install 'mlflow-onnxserve[cpu]', or "
            "'mlflow-onnxserve[gpu]' for CUDA"
        ) from None
    if os.environ["ORT_DISABLE_TELEMETRY"] != "0":
        module.disable_telemetry_events()  # Another package may have imported the module already.
    return module


def available_cores(processes: int = 1) -> int:
    """Return the cores per process from the affinity and the cgroup quotas, which ONNX
    Runtime ignores.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS
        cores = os.cpu_count() or 1
    for folder in cgroup_folders("cpu"):
        with contextlib.suppress(OSError):
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:  # cgroups 1
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            if quota not in ("max", "-1"):
                cores = min(cores, int(quota) // int(period))
    return max(1, cores // processes)


def open_session(
    onnx_file: Path,
    placement: Placement = ON_CPU,
    intra_op_num_threads: int = 1,
    faster_trees: bool = False,
) -> "ort.InferenceSession":
    """Return a session that runs only on the device or on the listed providers of
    `placement`. With `faster_trees`, the CPU uses the faster tree operator if it is
    installed.

    ONNX Runtime silently falls back to the CPU if a GPU library is missing. Here a
    missing library is an error, and so is a graph node that the device cannot run
    (`session.disable_cpu_ep_fallback`), or a listed provider without a node.

    Raises:
        RuntimeMissing: ONNX Runtime is not installed, or is too old (for the model).
        DeviceUnavailable: the device would not be used.
        InvalidArtifact: the file is not a model that ONNX Runtime can load.
    """
    module = import_onnxruntime()
    version = tuple(map(int, module.__version__.split(".")[:2]))
    is_old = version < OLDEST_ONNXRUNTIME
    # Only old releases of the OpenVINO build are supported.
    if is_old and (version < _OLDEST_OPENVINO or OPENVINO not in module.get_available_providers()):
        oldest = ".".join(map(str, OLDEST_ONNXRUNTIME))
        raise RuntimeMissing(
            f"ONNX Runtime {module.__version__} is too old; {oldest} is required: pip install "
            f"'onnxruntime>={oldest}', or 'onnxruntime-gpu>={oldest}' for CUDA"
        )
    check_device_libraries(module, placement)
    if is_old:
        _check_weights(onnx_file)
    names = list(dict(placement.providers))
    try:
        session = _create_session(module, onnx_file, placement, intra_op_num_threads, faster_trees)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises a dozen unrelated classes here
        reason = describe_error(error)
        if names == [_CPU]:
            raise InvalidArtifact(f"ONNX Runtime cannot load {onnx_file.name}: {reason}") from None
        raise DeviceUnavailable(
            f"the model does not run with {placement} ({names[0]}): {reason}"
        ) from None
    loaded = session.get_providers()
    if {*names} <= {*loaded} and _CPU not in names:
        on_cpu = operators_of(session, _CPU)
        if on_cpu:
            raise DeviceUnavailable(
                f"the model does not run with {placement}: {names[0]} cannot compute "
                f"{', '.join(sorted(on_cpu)[:5])}; use --device cpu, or for a server -C "
                f"server.providers={','.join(names)},{_CPU}"
            )
    used = [
        name
        for name in loaded
        if not placement.listed or name in placement.may_be_idle or operators_of(session, name)
    ]
    if unused := [name for name in names if name not in (*used, _CPU)]:
        raise DeviceUnavailable(
            f"{placement} is set, but ONNX Runtime uses {', '.join(used)} and not {unused[0]}: "
            "its hardware, driver or libraries are missing, one of its options is wrong, or it "
            "has no operator of the model"
        )
    if is_old and operators_of(session, _CPU) & FORESTS:
        raise RuntimeMissing(
            f"ONNX Runtime {module.__version__} may compute forests incorrectly, and the model "
            "has a forest: pip uninstall onnxruntime-openvino, then pip install "
            "'mlflow-onnxserve[cpu]'"
        )
    return session


def _create_session(
    module: ModuleType,
    onnx_file: Path,
    placement: Placement,
    intra_op_num_threads: int,
    faster_trees: bool,
) -> "ort.InferenceSession":
    """Return a session that may still lack a provider. Raises ONNX Runtime's errors."""

    def create(options: "ort.SessionOptions", *more: str) -> "ort.InferenceSession":
        """Return a session on the placement's providers and the providers `more`."""
        # ONNX Runtime's own fallback would retry on the CPU. The options forbid it, so
        # the error would be wrong.
        session: ort.InferenceSession = module.InferenceSession(
            str(onnx_file), options, [*providers.items(), *more], enable_fallback=0
        )
        return session

    providers = dict(placement.providers)
    openvino = providers.get(OPENVINO)
    if openvino is not None and openvino.get("device_type", "CPU") == "CPU":
        openvino.setdefault("num_of_threads", str(intra_op_num_threads))
        openvino.setdefault("precision", "FP32")
    options = session_options(module, intra_op_num_threads)
    if faster_trees and [*providers] == [_CPU]:
        faster = session_options(module, intra_op_num_threads)
        try:
            add_tree_operator(faster)
            return create(faster)
        except ModuleNotFoundError:
            pass  # The operator is optional.
        except Exception as error:  # noqa: BLE001 - see open_session
            session = create(options)
            if operators_of(session) & FORESTS:
                logger.warning(
                    "%s: ONNX Runtime computes the trees, because onnxserve-trees cannot: %s",
                    onnx_file.parent.name,
                    describe_error(error),
                )
            return session
    if _CPU in providers:
        return create(options)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        return create(options)
    except Exception:  # noqa: BLE001 - see open_session
        # A session with the CPU shows the reason: its operators, or an error that names
        # an operator.
        return create(session_options(module, intra_op_num_threads), _CPU)


_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "ExternalData"},
    "ExternalData": {2: ""},
}
"""The messages of onnx.proto that contain external data, by the numbers of their
fields. "" is a text: a location.
"""


def _check_weights(onnx_file: Path) -> None:
    """Raise InvalidArtifact if weights are outside of the folder. ONNX Runtime 1.24
    reads sparse tensors anywhere.
    """
    # Only the OpenVINO build needs protobuf.
    from google.protobuf import descriptor_pb2, message, message_factory

    schema = descriptor_pb2.FileDescriptorProto(name="weights", package="onnx")
    for kind, fields in _MESSAGES.items():
        declared = schema.message_type.add(name=kind)
        for number, inner in fields.items():
            # 3 is a repeated field, 11 a message, and 12 are bytes.
            of_type = {"type": 11, "type_name": f".onnx.{inner}"} if inner else {"type": 12}
            declared.field.add(name=f"field{number}", number=number, label=3, **of_type)
    model_class = message_factory.GetMessages([schema])["onnx.Model"]
    folder = onnx_file.parent.resolve()
    reason = f"ONNX Runtime cannot load {onnx_file.name}: "
    try:
        model = model_class.FromString(onnx_file.read_bytes())
    except message.DecodeError:
        raise InvalidArtifact(f"{reason}it is not an ONNX file") from None
    for name in _weight_locations(model):
        if (
            "\0" in name
            or "_ORT_MEM_ADDR_" in name
            or not (folder / name).resolve().is_relative_to(folder)
        ):
            raise InvalidArtifact(f"{reason}its weights {name[:100]!r} are outside of its folder")


def _weight_locations(model: Any) -> Iterator[str]:
    """Yield the locations of the external data of a message `onnx.Model`."""
    unread = [model]
    while unread:
        for declared, parts in unread.pop().ListFields():
            if declared.message_type:
                unread += parts
            else:
                yield from (text.decode(errors="replace") for text in parts)


def run_on_openvino(
    session: "ort.InferenceSession",
    names: Sequence[str],
    feeds: "Feeds",
    options: "ort.RunOptions | None" = None,
) -> list[Any]:
    """Compute the outputs. Raise ValueError for inputs that OpenVINO computes
    incorrectly, and errors of the session.

    OpenVINO computes integers in 32 bits, and some of its operators (Relu, Max,
    Softmax) convert NaN into a number.
    """
    for name, array in feeds.items():
        if not array.size:
            continue
        # The smallest number is NaN if one number is NaN, which differs from itself.
        if array.dtype.kind == "f" and array.min() != array.min():
            raise ValueError(
                f"{name!r} has a missing value (NaN), which OpenVINO may convert into a number"
            )
        if array.dtype.kind in "iu" and not -(2**31) <= array.min() <= array.max() < 2**31:
            raise ValueError(
                f"{name!r} has a number above 32 bits, which OpenVINO cannot represent"
            )
    return list(session.run(names, feeds, options))


@contextlib.contextmanager
def time_limit(seconds: float, on_excess: Callable[[], object]) -> Iterator[None]:
    """Call the function in another thread unless the block ends in time."""
    timer = threading.Timer(seconds, on_excess)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Arena:
    """The memory that the CPU `session` of ONNX Runtime keeps for its next large run.

    ONNX Runtime keeps the memory of the largest simultaneous runs: 174 MB for a small
    CNN with 1 to 512 rows in four threads. If each run returned its memory, 1,000 rows
    would take twice as long. Therefore a thread returns the memory after a pause. While
    the process uses more than half of its limit (`limit_memory`), each large run
    returns it.
    """

    def __init__(self, session: "ort.InferenceSession") -> None:
        self._session = session
        self._keeping = quiet_options()
        self._shrinking = quiet_options()
        self._terminated = quiet_options()
        for options in (self._shrinking, self._terminated):
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._terminated.terminate = True
        self._last_run = 0.0
        self._reference = weakref.ref(self, _keeper.arenas.discard)
        _keeper.arenas.add(self._reference)

    def run(
        self,
        outputs: Sequence[str],
        feeds: Mapping[str, object],
        options: "ort.RunOptions | None" = None,
    ) -> list[object]:
        """Compute a large run. Raises the errors of `InferenceSession.run`. `options`
        are ignored.
        """
        try:
            options = self._shrinking if _keeper.is_memory_short() else self._keeping
            return list(self._session.run(outputs, feeds, options))
        finally:
            self._last_run = time.monotonic()
            _keeper.watch(self._reference)

    def is_idle(self) -> bool:
        return time.monotonic() > self._last_run + _KEEP_SECONDS

    def shrink(self) -> None:
        """Return the memory of earlier runs to the system."""
        # This run computes no node; at its end, the arena shrinks.
        with contextlib.suppress(Exception):
            self._session.run([self._session.outputs_meta[0].name], {}, self._terminated)


class _ArenaKeeper:
    """Returns the memory of idle arenas in this process to the system, in a separate
    thread.
    """

    def __init__(self) -> None:
        self.limit = memory_limit() // 2
        # No lock: each operation on the sets is atomic.
        self.arenas: set[weakref.ref[Arena]] = set()
        self._grown: set[weakref.ref[Arena]] = set()
        self._starting = threading.Lock()
        self._thread = threading.Thread()

    def is_memory_short(self) -> bool:
        """Return True if this process uses more memory than the limit. Read the peak
        first, which takes 1 µs.
        """
        if sys.platform == "win32" or getrusage(RUSAGE_SELF).ru_maxrss * 1024 <= self.limit:
            return False
        with contextlib.suppress(OSError):
            return resident_bytes() > self.limit
        return True  # macOS has no /proc/self/statm.

    def watch(self, arena: "weakref.ref[Arena]") -> None:
        """Shrink the arena as soon as it is idle."""
        self._grown.add(arena)
        self.start()

    def start(self) -> None:
        """Start the thread, which does not exist after a fork."""
        if not self._thread.is_alive():
            with self._starting:
                if not self._thread.is_alive():
                    self._thread = threading.Thread(
                        target=self._follow, name="onnxserve-arenas", daemon=True
                    )
                    self._thread.start()

    def _follow(self) -> None:
        """Shrink each watched arena once it is idle or memory is short. End the worker
        if its memory stays used up: ONNX Runtime loses the memory of an arena that
        grows, if it cannot allocate the entry in its list.
        """
        used_up = 0
        while used_up < _MOST_USED_UP:
            time.sleep(_KEEP_SECONDS / 4)
            used_up += 1
            with contextlib.suppress(OSError, MemoryError):
                self._shrink_idle()
                if bytes_left() > _LEAST_BYTES:
                    used_up = 0
        must_end.set()
        logger.error("the memory of this worker stays used up: it starts again")

    def _shrink_idle(self) -> None:
        is_near = bytes_left() < self.limit / 2
        # Small runs may also have taken much memory.
        for reference in list(self.arenas if is_near else self._grown):
            arena = reference()
            if arena is None or arena.is_idle() or self.is_memory_short():
                # Discard the arena before it shrinks, so that a run that ends meanwhile
                # adds the arena again.
                self._grown.discard(reference)
                if arena is not None:
                    arena.shrink()
            # Without the reference, a replaced version is freed during the next sleep.
            del arena
        if is_near:
            ctypes.CDLL(None).malloc_trim(0)


def limit_memory(limit: int | None, processes: int = 1) -> None:
    """Set the maximum memory of this process. None means the machine's limit divided by
    the number of `processes`.
    """
    _keeper.limit = (limit or memory_limit() // processes) // 2
    _keeper.start()  # A process at its limit cannot start threads.


_keeper = _ArenaKeeper()


def quiet_options() -> "ort.RunOptions":
    """Return the options of a run that does not log. The exception contains the reason
    for a failure.
    """
    options = import_onnxruntime().RunOptions()
    options.log_severity_level = 4
    return options


def describe_error(error: BaseException) -> str:
    """Return ONNX Runtime's message in one line, without prefix codes and build paths.
    Our own errors are unchanged.
    """
    if isinstance(error, OnnxserveError):
        return error.message
    text = one_line(str(error))
    text = text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text
    text = _CPP.sub("", text)
    words = [word for word in text.split(" ") if not word.startswith("/")]
    return " ".join(words)[:500]


def check_device_libraries(module: ModuleType, placement: Placement) -> None:
    """Load the libraries of the device. Raises DeviceUnavailable if this build or
    NVIDIA's driver lacks the device.
    """
    available = module.get_available_providers()
    names = [name for name, _ in placement.providers]
    for name in names:
        if name in available:
            continue
        build = _BUILDS.get(name, name)
        remedy = ""
        if name in _BUILDS:
            extra = build.lower()
            remedy = f": pip uninstall onnxruntime, then pip install 'mlflow-onnxserve[{extra}]'"
        raise DeviceUnavailable(
            f"{placement} needs ONNX Runtime's {build} build; this build has "
            f"{', '.join(available)}{remedy}"
        )
    if "GPU" not in map(_BUILDS.get, names):
        return
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        raise DeviceUnavailable(
            f"{placement} needs NVIDIA's driver, and {_DRIVER} cannot be loaded; "
            "for a container, use docker run --gpus all"
        ) from None
    module.preload_dlls()  # The function finds CUDA and cuDNN in the nvidia-* wheels.


def session_options(module: ModuleType, intra_op_num_threads: int) -> "ort.SessionOptions":
    """Return the options of a session that logs only errors, and whose threads do not
    spin.
    """
    options = module.SessionOptions()
    options.intra_op_num_threads = intra_op_num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads take CPU time from the other workers (measured with two sessions
    # on few cores).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # `operators_of` needs the assignments.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def operators_of(session: "ort.InferenceSession", provider: str = "") -> set[str]:
    """Return the operators that a session of `session_options` runs after optimization,
    on all or on one provider.
    """
    parts = session.get_provider_graph_assignment_info()
    operators: set[str] = set()
    for part in parts:
        if provider in ("", part.ep_name):
            operators.update(node.op_type for node in part.get_nodes())
    return operators
