"""Measure the effect of promotions on concurrent requests: 50 swaps under load, none of
which may cause an error.

    # 50 swaps, about three minutes on two cores
    .venv/bin/python benchmarks/swap.py
    .venv/bin/python benchmarks/swap.py --swaps 5 --seconds 2

The script runs a real MLflow server, `onnxserve serve models:/swap@champion` with two
workers, and clients that send requests in an open loop at half the rate of a closed
loop. A swap moves the alias to the other version, like a click in MLflow's UI. Every
response is checked: its `X-Model-Version` and its
value must belong to the same version, and when every worker serves the new version, no
response may be of the old version. "During swaps" is the time from the agent's message
to the workers until all of them serve the version. The exit status is 1 if a target is
missed.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving.load import Target, closed_loop, post
from benchmarks.serving.servers import CLIENT_CORE, Server, cores_given, free_port, running
from benchmarks.serving.timeline import Answers, OpenLoop
from tests.support.services.mlflow_server import MlflowServer

COLUMNS = 30
NAME = "swap"
WORKERS = 2
SERVED_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
BODY = json.dumps({"inputs": [[1.0] * COLUMNS]}).encode()


@dataclass(frozen=True)
class Swap:
    """Times of the monotonic clock: the registry accepted the transition, the agent
    informed the workers, and every worker serves the version.
    """

    version: str
    clicked: float
    told: float
    served: float


def main() -> int:
    options = _options()
    if not cores_given():
        print("two cores are needed: one for the servers, one for the clients", file=sys.stderr)
        return 1
    os.sched_setaffinity(0, {CLIENT_CORE})
    folder = Path(tempfile.mkdtemp(prefix="onnxserve-swap-"))
    try:
        with ExitStack() as stack:
            mlflow = MlflowServer(folder, app="onnxserve", options=("--workers", "1"))
            stack.enter_context(mlflow.running())
            os.environ["MLFLOW_TRACKING_URI"] = mlflow.url
            values = _register()
            server = _onnxserve(folder, stack)
            raw = post("/invocations", BODY)
            peak = closed_loop(Target(server.port, raw, values["1"]), 32, options.seconds).rate
            loop = OpenLoop(server.port, raw, values, peak / 2, folder / "answers.npy")
            with loop:
                time.sleep(options.seconds)
                swaps = [_swap(folder, number, options.pause) for number in range(options.swaps)]
                answers = loop.stop()
        return _report(answers, swaps, peak)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument(
        "--seconds",
        type=float,
        default=5.0,
        help="seconds of measuring the peak, and of load before the first swap (5)",
    )
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two swaps (1)")
    return parser.parse_args()


def _register() -> dict[str, bytes]:
    """Register two versions of a small model, the first in Production, and return the
    response of each.
    """
    import mlflow  # imported here and below, not in the client's process
    import onnx.parser
    from mlflow import MlflowClient

    for amount in (1, 2):
        graph = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 21]>\n'
            f"adder (float[N,{COLUMNS}] x) => (float[N,1] y) <float[1] amount = {{{amount}.0}}, "
            "int64[1] axis = {1}> "
            "{ total = ReduceSum(x, axis)\n y = Add(total, amount) }",
        )
        with mlflow.start_run():
            mlflow.onnx.log_model(
                graph,
                name="m",
                registered_model_name=NAME,
                pip_requirements=["onnxruntime"],
            )
    MlflowClient().set_registered_model_alias(NAME, "champion", "1")
    return {version: f"[[{COLUMNS + int(version)}.0]]".encode() for version in ("1", "2")}


def _onnxserve(folder: Path, stack: ExitStack) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve"]
    command += [f"models:/{NAME}@champion", "-p", str(port), "-w", str(WORKERS)]
    command += ["--state-dir", str(folder / "state")]
    headers = {"Content-Type": "application/json"}
    url = f"http://127.0.0.1:{port}/invocations"
    question = urllib.request.Request(url, BODY, headers)
    environment = {"ONNXSERVE_HOME": str(folder / "home")}
    server = running("onnxserve", command, port, folder / "serve.log", environment, question)
    return stack.enter_context(server)


def _swap(folder: Path, number: int, pause: float) -> Swap:
    from mlflow import MlflowClient

    version = "2" if number % 2 == 0 else "1"
    MlflowClient().set_registered_model_alias(NAME, "champion", version)
    clicked = time.monotonic()
    told = _wait(folder, lambda state: _wanted(state) == version)
    served = _wait(folder, lambda state: _served(state) == [version] * WORKERS)
    time.sleep(pause)
    return Swap(version, clicked, told, served)


def _wait(folder: Path, condition: Callable[[Path], bool]) -> float:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition(folder / "state"):
        if time.monotonic() > deadline:
            raise TimeoutError((folder / "serve.log").read_text()[-2000:])
        time.sleep(0.005)
    return time.monotonic()


def _wanted(state: Path) -> str:
    (endpoint,) = json.loads((state / "wanted.json").read_text())["endpoints"].values()
    (variant,) = endpoint["variants"].values()
    return str(variant["version"])


def _served(state: Path) -> list[str]:
    served = []
    for file in sorted((state / "workers").glob("[!.]*.json")):
        (endpoint,) = json.loads(file.read_text())["endpoints"].values()
        served += [str(variant["version"]) for variant in endpoint.values()]
    return served


def _report(answers: Answers, swaps: list[Swap], peak: float) -> int:
    seconds = np.array([swap.served - swap.clicked for swap in swaps])
    during = np.zeros(len(answers.due), dtype=bool)
    late = 0
    for swap in swaps:
        during |= (answers.due >= swap.told - 0.05) & (answers.due < swap.served + 0.05)
        other = 3 - int(swap.version)
        late += int((answers.within(swap.served, swap.served + 0.5).version == other).sum())
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    quiet, swapping = (
        np.percentile(answers.only(chosen).latency, [50, 99]) * 1e3 for chosen in (~during, during)
    )
    is_met = p95 < SERVED_SECONDS and not answers.failed + answers.mixed + late
    print("| | measured | p99 |\n|---|---|---|")
    print(f"| a moved alias is served by every worker | {p50:.2f} s | {p99:.2f} s |")
    print(f"| latency without swaps | {quiet[0]:.2f} ms | {quiet[1]:.2f} ms |")
    print(f"| latency during {len(swaps)} swaps | {swapping[0]:.2f} ms | {swapping[1]:.2f} ms |")
    print(f"| requests, at half of {peak:,.0f}/s | {len(answers.due):,} | |")
    counts = f"{answers.failed}; {answers.mixed}; {late}"
    print(f"| failed; another version's value; old version afterwards | {counts} | |")
    print(f"targets: {'all met' if is_met else 'MISSED'}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
