"""Measure the effect of promotions on concurrent requests: 50 swaps under load, none of
which may cause an error.

    # 50 swaps, about three minutes on two cores
    .venv/bin/python benchmarks/swap.py
    .venv/bin/python benchmarks/swap.py --swaps 5 --seconds 2

The script runs a real MLflow server, `onnxserve serve models:/swap/Production` with
two workers, and clients that send requests in an open loop at half the rate of a closed
loop. A swap is a stage transition like a click in MLflow's UI: version 2 is moved to
Production, and then archived. Every response is checked: its `X-Model-Version` and its
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
import warnings
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
    warnings.simplefilter("ignore", FutureWarning)  # the stages' deprecation
    if not cores_given():
        print("two cores are needed: one for the servers, one for the clients", file=sys.stderr)
        return 1
    os.sched_setaffinity(0, {CLIENT_CORE})
    folder = Path(tempfile.mkdtemp(prefix="onnxserve-swap-"))
    try:
        with ExitStack() as stack:
            _start_mlflow(folder, stack)
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


def _start_mlflow(folder: Path, stack: ExitStack) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--app-name", "onnxserve", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    question = urllib.request.Request(f"http://127.0.0.1:{port}/health")
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "ONNXSERVE_HOME": str(folder / "home"),
    }
    stack.enter_context(
        running("MLflow", command, port, folder / "mlflow.log", environment, question),
    )
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"


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
    MlflowClient().transition_model_version_stage(NAME, "1", "Production")
    return {version: f"[[{COLUMNS + int(version)}.0]]".encode() for version in ("1", "2")}


def _onnxserve(folder: Path, stack: ExitStack) -> Server:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow_deploy_plugin.cli",
        "serve",
        f"models:/{NAME}/Production",
    ]
    command += ["-p", str(port), "-w", str(WORKERS), "--state-dir", str(folder / "state")]
    question = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        BODY,
        {"Content-Type": "application/json"},
    )
    environment = {"ONNXSERVE_HOME": str(folder / "home")}
    return stack.enter_context(
        running("onnxserve", command, port, folder / "serve.log", environment, question),
    )


def _swap(folder: Path, number: int, pause: float) -> Swap:
    from mlflow import MlflowClient

    version, stage = ("2", "Production") if number % 2 == 0 else ("1", "Archived")
    MlflowClient().transition_model_version_stage(NAME, "2", stage)
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
    p50, p95 = np.percentile(seconds, [50, 95])
    during = np.zeros(len(answers.due), dtype=bool)
    late = 0
    for swap in swaps:
        during |= (answers.due >= swap.told - 0.05) & (answers.due < swap.served + 0.05)
        other = 3 - int(swap.version)
        late += int((answers.within(swap.served, swap.served + 0.5).version == other).sum())
    swapping = answers.only(during)
    quiet = answers.only(~during)
    rows = []
    for name, part in (("quiet", quiet), ("during swaps", swapping)):
        ms = (
            np.percentile(part.latency, [50, 99, 99.9]) * 1e3
            if len(part.latency)
            else [float("nan")] * 3
        )
        rows.append(ms)
        print(
            f"{name}: {len(part.due)} requests, p50 {ms[0]:.2f} ms, p99 {ms[1]:.2f} ms, p99.9 "
            f"{ms[2]:.2f} ms",
        )
    print(
        f"added latency (during / quiet): p50 × {rows[1][0] / rows[0][0]:.2f}, p99 × "
        f"{rows[1][1] / rows[0][1]:.2f}",
    )
    print(
        f"swaps={len(swaps)} rate={peak / 2:,.0f}/s (peak {peak:,.0f}/s) "
        f"requests={len(answers.due)} longest={answers.latency.max():.2f} s",
    )
    print(
        f"click→served in every worker: p50 {p50:.2f} s, p95 {p95:.2f} s, maximum "
        f"{seconds.max():.2f} s",
    )
    print(f"failed={answers.failed} mixed={answers.mixed} late={late}")
    missed = [
        name
        for name, holds in {
            "failed=0": answers.failed == 0,
            "mixed=0": answers.mixed == 0,
            "late=0": late == 0,
            f"click→served p95 < {SERVED_SECONDS:g} s": p95 < SERVED_SECONDS,
        }.items()
        if not holds
    ]
    print(f"targets: {'all met' if not missed else 'MISSED ' + ', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
