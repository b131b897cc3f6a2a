"""The check of a server's device before the start, and the assignment of a GPU to each
worker.
"""

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlflow_deploy_plugin.core.errors import DeadlineExceeded, DeviceUnavailable, OnnxserveError
from mlflow_deploy_plugin.core.processes.worker import ProcessCrashed, Worker
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.core.statedir.files import lock_file
from mlflow_deploy_plugin.serve.runtime.session import (
    Placement,
    check_device_libraries,
    import_onnxruntime,
    open_session,
)

# The ONNX graph y = x + x, float32 of shape (1).
_ADDITION = bytes.fromhex(
    "080812003a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d",
)
_REASON = re.compile(
    rb"(?<=with error: )\S+: cannot open shared object file|(?<=\[OpenVINO\] )[^\n]+",
)
"""The reason in ONNX Runtime's log why a provider cannot be loaded."""
_TIMEOUT_SECONDS = 120.0  # TensorRT first compiles even the graph of one addition.


def require_device(server: ServerSpec) -> None:
    """Raise DeviceUnavailable unless ONNX Runtime computes on the device, each of its
    GPUs, and each provider.
    """
    placement = Placement(server.device, listed=server.providers)
    if placement == Placement():
        return
    with tempfile.TemporaryFile() as output:
        worker = Worker(stderr=output)
        try:
            worker.call(_compute_on, server, seconds=_TIMEOUT_SECONDS)
        except DeadlineExceeded:
            raise DeviceUnavailable(
                f"{placement} did not compute one addition in {_TIMEOUT_SECONDS:g} s",
            ) from None
        except ProcessCrashed as error:
            raise DeviceUnavailable(f"{placement} cannot be tested: {error.message}") from None
        except OnnxserveError as error:
            output.seek(0)
            reason = _REASON.search(output.read())
            details = f" ({reason[0].decode()})" if reason else ""
            raise DeviceUnavailable(f"{error.message}{details}") from None
        finally:
            worker.end()


def claim_device_id(state_dir: Path, device_ids: Sequence[int]) -> int:
    """Claim the GPU with the fewest workers for this worker, and return its id.

    The claim is a flock on a file in the state folder. It ends with the process, so a
    new worker can claim the GPU.
    """
    folder = state_dir / "gpus"
    folder.mkdir(parents=True, exist_ok=True)
    slot = 0
    while True:
        for device_id in device_ids:
            descriptor = os.open(
                folder / f"{device_id}.{slot}",
                os.O_RDWR | os.O_CREAT,
                0o600,
            )
            try:
                lock_file(descriptor)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return device_id
        slot += 1


def _compute_on(server: ServerSpec) -> None:
    """Compute an addition on each provider, or on each GPU if no providers are listed.
    Raises DeviceUnavailable.
    """
    # Imported here, because this function runs in its own process; the supervisor needs
    # no numpy.
    import numpy as np

    base = Placement(server.device, listed=server.providers)
    check_device_libraries(import_onnxruntime(), base)
    # Each listed provider is tested separately, because the first one would compute the
    # only node.
    placements = [replace(base, listed=(entry,)) for entry in server.providers]
    if not placements:
        device_ids = server.device_ids or (0,)
        placements = [replace(base, device_id=device_id) for device_id in device_ids]
    feeds = {"x": np.ones(1, np.float32)}
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(_ADDITION)
        file.flush()
        for placement in placements:
            try:
                open_session(Path(file.name), placement).run(None, feeds)
            except DeviceUnavailable:
                if server.providers or not server.is_on_nvidia:
                    raise
                gpu = f"GPU {placement.device_id}" if server.device_ids else "it"
                raise DeviceUnavailable(
                    f"{placement} was requested, but ONNX Runtime cannot compute on {gpu}: the "
                    "GPU is missing or not usable, its driver is too old, or a CUDA library is "
                    "missing",
                ) from None
