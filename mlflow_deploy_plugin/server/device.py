"""A check that the device of a server is really there, made before anything is fetched or started.

A process of its own computes one addition on the device: ONNX Runtime writes a page of text to stderr if a library is
missing, and CUDA takes hundreds of megabytes of a process that only wants to know. `python -m …server.device cuda`
answers with its exit status, and with one line on stdout if that is 1.
"""

import re
import subprocess
import sys
import tempfile
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


def require_device(device: Device) -> None:
    """Return if ONNX Runtime computes on `device`.

    Raises:
        DeviceUnavailable: it does not; the message says what is missing.
    """
    if device == "cpu":
        return
    try:
        probe = subprocess.run(
            [sys.executable, "-m", __name__, device],
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


def _compute_on(device: Device) -> None:
    # imported here, so that the supervisor, which only asks, stays without numpy
    import numpy as np

    from mlflow_deploy_plugin.runtime import check_device_libraries, import_onnxruntime, open_session

    check_device_libraries(import_onnxruntime(), device)
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(_ADDITION)
        file.flush()
        try:
            open_session(Path(file.name), device).run(None, {"x": np.ones(1, np.float32)})
        except DeviceUnavailable:
            raise DeviceUnavailable(
                f"--device {device} was asked for, but ONNX Runtime cannot compute on it: the GPU is not there or not "
                "usable, its driver is too old, or a CUDA library is missing"
            ) from None


if __name__ == "__main__":
    try:
        _compute_on(cast(Device, sys.argv[1]))
    except OnnxserveError as error:
        sys.stdout.write(error.message + "\n")
        sys.exit(1)
