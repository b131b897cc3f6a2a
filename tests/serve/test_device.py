"""A missing device is refused. A machine with a GPU cannot provoke the refusals, and
skips them.
"""

import os
import subprocess
import sys
import time

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


def test_the_cpu_is_always_there():
    require_device(ServerSpec())


@no_cuda
def test_a_device_that_the_runtime_was_not_built_for_is_refused_by_name():
    with pytest.raises(DeviceUnavailable, match=r"--device cuda.*GPU build"):
        require_device(ServerSpec(device="cuda"))


@pytest.mark.parametrize(
    ("server", "names"),
    [
        (
            ServerSpec(providers=({"OpenVINOExecutionProvider": {}},)),
            ["server.providers", "OpenVINO build", "mlflow-onnxserve[openvino]"],
        ),
        (
            ServerSpec(
                providers=({"TensorrtExecutionProvider": {}}, {"CUDAExecutionProvider": {}})
            ),
            ["server.providers", "GPU build", "mlflow-onnxserve[gpu]"],
        ),
        (
            ServerSpec(providers=({"FooExecutionProvider": {}},)),
            ["server.providers", "CPUExecutionProvider"],
        ),
    ],
)
def test_a_provider_that_the_runtime_was_not_built_for_is_refused_by_name(server, names):
    if "OpenVINOExecutionProvider" in import_onnxruntime().get_available_providers():
        pytest.skip("this is ONNX Runtime's OpenVINO build")
    with refused(DeviceUnavailable, *names):
        require_device(server)


def _hang(*_):
    time.sleep(600)


def _crash(*_):
    os.abort()


@pytest.mark.parametrize(
    ("library", "seconds", "message"),
    [
        (_hang, 3.0, r"^--device cuda did not compute one addition in 3 s$"),
        (_crash, 120.0, r"^--device cuda cannot be tested: .*SIGABRT"),
    ],
)
def test_a_device_whose_libraries_hang_or_crash_is_refused(monkeypatch, library, seconds, message):
    monkeypatch.setattr(device, "_compute_on", library)
    monkeypatch.setattr(device, "_TIMEOUT_SECONDS", seconds)
    with pytest.raises(DeviceUnavailable, match=message):
        require_device(ServerSpec(device="cuda"))


@no_cuda
def test_serve_refuses_it_in_one_line_before_it_fetches_anything(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "serve",
        "models:/nowhere/1",
        "--device",
        "cuda",
    ]
    ended = subprocess.run(
        command,
        env={"ONNXSERVE_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [ended.stderr.strip()]
    assert ended.stderr.startswith("Error: --device cuda needs ONNX Runtime's GPU build")
    assert not (tmp_path / "home").exists()


@pytest.mark.long
def test_each_gpu_gets_a_worker_and_the_successor_of_a_dead_one_its_gpu(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mlflow_deploy_plugin.serve.device import "
        "claim_device_id as claim;print(claim(Path(sys.argv[1]), [0, 2]), flush=True); "
        "sys.stdin.read()"
    )

    def worker():
        command = [sys.executable, "-c", code, str(tmp_path)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    workers = [worker() for _ in range(4)]
    try:
        assert [gpu for _, gpu in workers] == ["0", "2", "0", "2"]
        workers[1][0].kill()
        workers[1][0].communicate()
        workers.append(worker())
        assert workers[-1][1] == "2"
    finally:
        for process, _ in workers:
            process.kill()
            process.communicate()
