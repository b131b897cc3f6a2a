"""Measure the cost of shipping the spool: the agent's CPU seconds per million captured
requests, and its share of a busy core.

    # the cost of a million; half a minute
    .venv/bin/python -m benchmarks.shipping
    # also the agent's share with a server at full speed
    .venv/bin/python -m benchmarks.shipping --busy
    # the cost, of other code
    PYTHONPATH=/path/to/another/checkout .venv/bin/python benchmarks/shipping.py

The two models are the same as in `benchmarks/request_path.py`: 30 floats, and the
flights' 15 mixed columns. For the cost, this process writes requests of one row with
different values to a spool, and ships them to a folder. With `--busy`, agent,
supervisor and one worker share core 0, and wrk runs on core 1.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import request_path

KINDS = ("numbers", "flights")
VARIETY = 997
SETTLING_SECONDS = 3.0


def captured(kind: str) -> Iterator[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Return the captured model, feeds and outputs of requests of one row: `VARIETY`
    outputs, and new floats in each request.
    """
    from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
    from mlflow_deploy_plugin.serve.spool.captured_model import CapturedModel

    loaded = OnnxModel.load(request_path.MODELS / kind)
    bound = CapturedModel("m", "1", loaded.schema, loaded.artifact.prediction)
    draw = np.random.default_rng(0)
    found = []
    for _ in range(VARIETY):
        row = {name: [draw.normal()] for name in loaded.schema.names}
        if kind == "flights":
            row = {name: [value] for name, value in request_path.FLIGHT.items()}
            row |= {name: [draw.choice(["AA", "B6", "UA", "LAX"])] for name in request_path.STRINGS}
            row |= {name: [int(draw.integers(0, 30))] for name in request_path.INTEGERS}
            row |= {name: [float(draw.uniform(0, 30))] for name in request_path.DOUBLES}
        feeds = loaded.schema.from_columns(row)
        # A checkout from before 64-bit numbers were kept does not have this.
        sent = getattr(
            feeds,
            "sent",
            feeds,
        )
        found.append((bound, dict(sent), dict(loaded.run(feeds, None))))
    while True:
        for model, feeds, outputs in found:
            varied = {
                name: draw.normal(size=array.shape).astype(array.dtype)
                if array.dtype.kind == "f"
                else array
                for name, array in feeds.items()
            }
            yield model, varied, outputs


def write_spool(spool: Path, kind: str, requests: int) -> float:
    """Fill the spool, and return the CPU seconds of writing."""
    from mlflow_deploy_plugin.serve.spool.codec import RequestRecord
    from mlflow_deploy_plugin.serve.spool.writer import CaptureWriter

    writer = CaptureWriter(spool)
    now = time.time_ns() // 1000
    ids = [os.urandom(16).hex() for _ in range(2 * requests)]
    source = captured(kind)
    work = [(next(source), ids[2 * n], ids[2 * n + 1], now + 30 * n) for n in range(requests)]
    began = time.process_time()
    for (model, feeds, outputs), request_id, prediction_id, moment in work:
        writer.write(
            RequestRecord(kind, kind, request_id, prediction_id, moment, moment),
            model,
            feeds,
            outputs,
            10_000,
        )
    spent = time.process_time() - began
    writer.close()
    return spent


def cost(kind: str, requests: int, rounds: int) -> None:
    """Print the CPU seconds per million requests of writing and of shipping (the best
    round), and the sizes.
    """
    from mlflow_deploy_plugin.serve.agent.ship import Shipper

    spent = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="onnxserve-shipping-", dir="/dev/shm") as folder:
            writing = write_spool(Path(folder, "spool"), kind, requests)
            bytes_in = sum(path.stat().st_size for path in Path(folder, "spool").iterdir())
            shipper = Shipper(Path(folder, "spool"), str(Path(folder, "log")))
            began = time.process_time()
            rows = shipper.ship()
            spent.append((time.process_time() - began, writing))
            files = list(Path(folder, "log").rglob("*.parquet"))
            bytes_out = sum(path.stat().st_size for path in files)
    assert rows == requests, (rows, requests)
    shipping, writing = (min(values) * 1e6 / requests for values in zip(*spent, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{kind:8}  writing {writing:5.2f} s  shipping {shipping:5.2f} s per million; "
        f"{bytes_in / requests:.0f} B a request in the spool, {bytes_out / requests:.0f} B in the "
        f"log, {len(files)} files; peak memory {peak} MiB",
    )


def busy(kind: str, seconds: float) -> None:
    """Print requests per second, and the agent's share of the core at the same time."""
    import psutil

    port = 18_431
    with tempfile.TemporaryDirectory(prefix="onnxserve-shipping-", dir="/dev/shm") as folder:
        asking = _load_command(kind, port, Path(folder, "post.lua"))
        server = _start_server(kind, port, Path(folder))
        try:
            _wait_until_ready(server, Path(folder, "server.log"))
            agent = next(
                process
                for process in psutil.Process(server.pid).children(recursive=True)
                if process.name() == "agent"
            )
            subprocess.run([*asking, f"-d{SETTLING_SECONDS:.0f}"], check=True, capture_output=True)
            before = _spent(agent)
            answered = subprocess.run(
                [*asking, f"-d{seconds:.0f}"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            share = (_spent(agent) - before) / seconds
            rate = next(
                line.split()[1] for line in answered.splitlines() if line.startswith("Requests/sec")
            )
            memory = agent.memory_info().rss / 2**20
            spool = Path(folder, "state", "spool")
            waiting = sum(path.stat().st_size for path in spool.iterdir()) / 2**20
            print(
                f"{kind:8}  {rate} requests/s; the agent takes {share:.1%} of their core and "
                f"{memory:.0f} MiB; {waiting:.0f} MiB wait in the spool",
            )
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def _load_command(kind: str, port: int, script: Path) -> list[str]:
    """Write the script of wrk, and return its command without the duration."""
    label = {"numbers": "1 x 30 dataframe_split", "flights": "flight dataframe_split"}[kind]
    path, body = next(
        (path, body) for name, _, path, _, body in request_path.bodies() if name == label
    )
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = {json.dumps(body.decode())}\n'
        'wrk.headers["Content-Type"] = "application/json"\n',
    )
    command = ["taskset", "-c", "1", "wrk", "-t1", "-c8", "-s", str(script)]
    return [*command, f"http://127.0.0.1:{port}{path}"]


def _start_server(kind: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    command = ["taskset", "-c", "0", sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve"]
    command += [str(request_path.MODELS / kind), "-p", str(port), "-w", "1"]
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--state-dir", str(folder / "state")],
            env={**os.environ, "ONNXSERVE_HOME": str(folder / "home")},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _spent(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _wait_until_ready(server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 90
    while "onnxserve: " not in log.read_text():
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the server did not start: {log.read_text()[-600:]}")
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--seconds", type=float, default=12.0)
    options = parser.parse_args()
    if not (request_path.MODELS / "flights").is_dir():
        subprocess.run([sys.executable, request_path.__file__, "--make-models"], check=True)
    for kind in KINDS:
        cost(kind, options.requests, options.rounds)
    for kind in KINDS if options.busy else ():
        busy(kind, options.seconds)


if __name__ == "__main__":
    main()
