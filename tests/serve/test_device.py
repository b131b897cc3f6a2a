"""A missing device is refused. A machine with a GPU cannot provoke the refusals, and
skips them.
"""

import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from mlflow_deploy_plugin.core.errors import DeviceUnavailable
from mlflow_deploy_plugin.core.spec.parts import ServerSpec
from mlflow_deploy_plugin.serve import device
from mlflow_deploy_plugin.serve.device import require_device
from mlflow_deploy_plugin.serve.runtime.session import import_onnxruntime
from tests.support.refusals import refused

no_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in import_onnxruntime().get_available_providers(),
    reason="this is ONNX Runtime's GPU build",
)


def test_cpu_is_available():
    require_device(ServerSpec())


@no_cuda
def test_missing_device_build_is_named():
    with pytest.raises(DeviceUnavailable, match=r"--device cuda.*GPU build"):
        require_device(ServerSpec(device="cuda"))


@no_cuda
def test_missing_provider_build_is_named():
    providers = ({"TensorrtExecutionProvider": {}}, {"CUDAExecutionProvider": {}})
    with refused(DeviceUnavailable, "server.providers", "GPU build", "mlflow-onnxserve[gpu]"):
        require_device(ServerSpec(providers=providers))


def _hang(*_):
    time.sleep(600)


def _crash(*_):
    os.abort()


@pytest.mark.parametrize(
    ("library", "seconds", "message"),
    [
        (_hang, 1.0, r"^--device cuda did not compute one addition in 1 s$"),
        (_crash, 120.0, r"^--device cuda cannot be tested: .*SIGABRT"),
    ],
)
def test_hanging_or_crashing_device_is_refused(monkeypatch, library, seconds, message):
    monkeypatch.setattr(device, "_compute_on", library)
    monkeypatch.setattr(device, "_TIMEOUT_SECONDS", seconds)
    with pytest.raises(DeviceUnavailable, match=message):
        require_device(ServerSpec(device="cuda"))


@pytest.mark.long
def test_workers_share_the_gpus(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mlflow_deploy_plugin.serve.device import "
        "claim_device_id as claim;print(claim(Path(sys.argv[1]), [0, 2]), flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]

    with ExitStack() as workers:

        def start():
            pipe = subprocess.PIPE
            worker = workers.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe))
            workers.callback(worker.kill)
            assert worker.stdout is not None
            return worker, int(worker.stdout.readline())

        started = [start() for _ in range(4)]
        assert [gpu for _, gpu in started] == [0, 2, 0, 2]
        started[1][0].kill()
        started[1][0].wait()
        assert start()[1] == 2  # The successor of a dead worker gets its GPU.
