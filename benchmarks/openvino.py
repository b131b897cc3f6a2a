"""Compare onnxserve's sessions on ONNX Runtime's CPU provider and on OpenVINO, and
servers on both over HTTP.

    # about 3 minutes; needs torch, and PyPI for the OpenVINO build
    python benchmarks/openvino.py
    # with an installed build (pip install --target FOLDER)
    python benchmarks/openvino.py --site FOLDER

The models are the digits CNN and ResNet18 (3 × 224 × 224) in float32, with 1, 8 and 32
rows. Both builds of ONNX Runtime contain the same module, so each has its own process.
The processes alternate in each round, and the medians are compared. The script prints
the table for RESULTS.md: milliseconds per run, the speed relative to the CPU provider,
and the largest difference of the outputs, relative to the largest output.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

BUILD = "onnxruntime-openvino==1.24.1"
Build = Literal["cpu", "openvino"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "openvino": "OpenVINOExecutionProvider"}
MODELS: dict[str, tuple[int, ...]] = {"digits": (1, 8, 8), "resnet18": (3, 224, 224)}
ROWS = (1, 8, 32)
WARM_RUNS = 5
LEAST_RUNS = 3
SECONDS = 0.5


def save_models(folder: Path) -> None:
    """Save both models as MLmodel folders below `folder`."""
    import torch

    from mlflow_deploy_plugin.wrap.flavor.save import save_model
    from projects.digits_cnn.fitting import DigitsCNN
    from projects.image_resnet18.network import resnet18

    for name, build in (("digits", DigitsCNN), ("resnet18", resnet18)):
        torch.manual_seed(0)
        save_model(build().eval(), str(folder / name), input_example=rows_of(name, 2))


def rows_of(model: str, rows: int) -> np.ndarray:
    return np.random.default_rng(0).random((rows, *MODELS[model]), dtype=np.float32)


def answer(folder: Path, device: Build, threads: int) -> None:
    """Measure each case that arrives at standard input as a line [model, rows], until
    the input ends.
    """
    import onnxruntime

    from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
    from mlflow_deploy_plugin.serve.runtime.session import Placement

    print(json.dumps(onnxruntime.__version__), flush=True)
    placement = Placement(listed=({PROVIDERS[device]: {}},))
    models = {name: OnnxModel.load(folder / name, placement, threads) for name in MODELS}
    for line in sys.stdin:
        name, rows = json.loads(line)
        model = models[name]
        x = rows_of(name, rows)
        feeds = {model.artifact.inputs[0].name: x}
        for _ in range(WARM_RUNS):
            outputs = model.run(feeds)
        np.save(folder / f"{device}.npy", next(iter(outputs.values())))
        runs = 0
        began = time.perf_counter()
        while runs < LEAST_RUNS or time.perf_counter() - began < SECONDS:
            model.run(feeds)
            runs += 1
        print(json.dumps((time.perf_counter() - began) / runs), flush=True)


def ask(process: "subprocess.Popen[str]", case: object = None) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    if case is not None:
        process.stdin.write(json.dumps(case) + "\n")
        process.stdin.flush()
    return json.loads(process.stdout.readline())


def compare_sessions(
    folder: Path,
    environments: dict[str, dict[str, str]],
    threads: int,
    rounds: int,
) -> None:
    with ExitStack() as stack:
        processes = {}
        for device, environment in environments.items():
            command = [
                sys.executable,
                __file__,
                "--answer",
                device,
                "--folder",
                str(folder),
                "--threads",
                str(threads),
            ]
            pipes: Any = {
                "stdin": subprocess.PIPE,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.DEVNULL,
            }
            process = subprocess.Popen(command, env=environment, text=True, **pipes)
            processes[device] = stack.enter_context(process)
            print(f"{device}: onnxruntime {ask(process)}")
        print("\n| | cpu | openvino | speed | difference |\n|---|---|---|---|---|")
        for name in MODELS:
            for rows in ROWS:
                taken: dict[str, list[float]] = {device: [] for device in processes}
                for _ in range(rounds):
                    for device, process in processes.items():
                        taken[device].append(ask(process, [name, rows]))
                cpu, openvino = (statistics.median(taken[device]) for device in ("cpu", "openvino"))
                expected, computed = (
                    np.load(folder / f"{device}.npy") for device in ("cpu", "openvino")
                )
                difference = np.abs(computed - expected).max() / np.abs(expected).max()
                figures = (
                    f"{1e3 * cpu:.3f} ms | {1e3 * openvino:.3f} ms | {cpu / openvino:.2f}× | "
                    f"{difference:.0e}"
                )
                print(f"| {name}, {rows} row{'s' * (rows > 1)} | {figures} |", flush=True)
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()


def compare_servers(
    folder: Path,
    environments: dict[str, dict[str, str]],
    threads: int,
    rounds: int,
) -> None:
    """Print the median time of a request with one row, to servers that answer at the
    same time.
    """
    import requests

    from tests.support.waiting import free_port

    body = json.dumps({"inputs": rows_of("digits", 1).tolist()})
    with ExitStack() as stack:
        urls = {}
        session = requests.Session()
        for device, environment in environments.items():
            urls[device] = f"http://127.0.0.1:{free_port()}"
            command = [
                sys.executable,
                "-m",
                "mlflow_deploy_plugin.cli",
                "serve",
                str(folder / "digits"),
            ]
            command += [
                "-C",
                f"server.providers={PROVIDERS[device]}",
                "-p",
                urls[device].rpartition(":")[2],
            ]
            command += [
                "-C",
                f"server.intra_op_num_threads={threads}",
                "--state-dir",
                str(folder / f"{device}-state"),
            ]
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            while process.poll() is None and not is_ready(f"{urls[device]}/ping"):
                time.sleep(0.1)
        taken: dict[str, list[float]] = {device: [] for device in urls}
        for _ in range(100 * rounds):
            for device, url in urls.items():
                began = time.perf_counter()
                headers = {"Content-Type": "application/json"}
                response = session.post(
                    f"{url}/invocations",
                    data=body,
                    headers=headers,
                    timeout=30,
                )
                taken[device].append(time.perf_counter() - began)
                response.raise_for_status()
    cpu, openvino = (1e3 * statistics.median(taken[device]) for device in ("cpu", "openvino"))
    print(
        f"| digits, 1 row over HTTP | {cpu:.3f} ms | {openvino:.3f} ms | {cpu / openvino:.2f}× | |",
    )


def is_ready(url: str) -> bool:
    import requests

    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--site",
        help="folder with the OpenVINO build; default: a temporary folder",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of a run")
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="rounds in which the builds alternate",
    )
    parser.add_argument("--answer", choices=["cpu", "openvino"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer(options.folder, options.answer, options.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        site = options.site or str(folder / "site")
        if not options.site:
            pip = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--target",
                site,
                BUILD,
            ]
            subprocess.run(pip, check=True)
        save_models(folder)
        on_cpu = {**os.environ, "PYTHONPATH": str(ROOT), "ONNXSERVE_HOME": str(folder / "home")}
        environments = {
            "cpu": on_cpu,
            "openvino": {**on_cpu, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        }
        print(f"{options.threads} threads, {options.rounds} rounds")
        compare_sessions(folder, environments, options.threads, options.rounds)
        compare_servers(folder, environments, options.threads, options.rounds)


if __name__ == "__main__":
    main()
