"""A check that the device of a server is really there, before anything is fetched or started; and each worker's GPU.

A process of its own computes one addition on the device: ONNX Runtime writes a page of text to stderr if a library is
missing, and CUDA takes hundreds of megabytes of a process that only wants to know. `python -m …server.device cuda 0 1`
answers with its exit status, and with one line on stdout if that is 1.
"""

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import cast

from mlflow_deploy_plugin.errors import DeviceUnavailable, OnnxserveError
from mlflow_deploy_plugin.processes import exit_reason
from mlflow_deploy_plugin.spec import Device

# The ONNX graph y = x + x, float32 of shape (1).
_ADDITION = bytes.fromhex(
    "080812003a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02"
    "080142040a00100d"
)
_TIMEOUT_SECONDS = 120  # TensorRT compiles even an addition


def require_device(device: Device, device_ids: Sequence[int] = ()) -> None:
    """Return if ONNX Runtime computes on `device`, and on each of its GPUs that is named.

    Raises:
        DeviceUnavailable: it does not; the message says what is missing.
    """
    if device == "cpu":
        return
    try:
        probe = subprocess.run(
            [sys.executable, "-m", __name__, device, *map(str, device_ids)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceUnavailable(f"--device {device} did not compute one addition in {_TIMEOUT_SECONDS} s") from None
    if probe.returncode == 0:
        return
    if probe.returncode == 1 and (lines := probe.stdout.strip().splitlines()):
        library = re.search(r"with error: (\S+: cannot open shared object file)", probe.stderr)
        raise DeviceUnavailable(lines[-1] + (f" ({library[1]})" if library else ""))
    raise DeviceUnavailable(f"--device {device}: the process that tried it {exit_reason(probe.returncode)}")


def claim_device_id(state_dir: Path, device_ids: Sequence[int]) -> int:
    """Return the GPU of this worker: the first of those that the fewest living workers of the state folder have.

    The claim is a lock on a file (flock), which ends with the process, so that a worker's successor gets its GPU.
    """
    folder = state_dir / "gpus"
    folder.mkdir(parents=True, exist_ok=True)
    for place in count():
        for device_id in device_ids:
            descriptor = os.open(folder / f"{device_id}.{place}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return device_id
    raise AssertionError("count() has no end")


def _compute_on(device: Device, device_ids: Sequence[int]) -> None:
    # imported here, so that the supervisor, which only asks, stays without numpy
    import numpy as np

    from mlflow_deploy_plugin.runtime import Placement, check_device_libraries, import_onnxruntime, open_session

    check_device_libraries(import_onnxruntime(), device)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(_ADDITION)
        file.flush()
        for device_id in device_ids or (0,):
            try:
                open_session(Path(file.name), Placement(device, device_id)).run(None, {"x": np.ones(1, np.float32)})
            except DeviceUnavailable:
                which = f"GPU {device_id}" if device_ids else "it"
                raise DeviceUnavailable(
                    f"--device {device} was asked for, but ONNX Runtime cannot compute on {which}: the GPU is not "
                    "there or not usable, its driver is too old, or a CUDA library is missing"
                ) from None


if __name__ == "__main__":
    try:
        _compute_on(cast(Device, sys.argv[1]), [int(text) for text in sys.argv[2:]])
    except OnnxserveError as error:
        sys.stdout.write(error.message + "\n")
        sys.exit(1)
