"""Measure the cost of a shadow for the client: the same request with and without a
shadow, in one process.

    .venv/bin/python benchmarks/shadow.py              # about a minute

The models are the same as in `benchmarks/request_path.py`. `cpu` is the answering
thread's time for one request, in bursts that fit into the queue of copies. `p50` and
`p99` are wall-clock times of requests every two milliseconds, while the shadow's thread
works. `full` is the wall-clock time of requests without pauses. The script prints
medians over rounds in which the servers alternate, as ratios to the server without a
shadow. On a busy machine, only the ratios are meaningful.
"""

import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import request_path

if TYPE_CHECKING:
    from mlflow_deploy_plugin.serve.http.app import ServerApp
    from mlflow_deploy_plugin.serve.messages import RawRequest

ROUNDS = 15
BURST = 200
PACED = 250
GAP_SECONDS = 0.002
FULL_SECONDS = 0.5


def open_apps(root: Path) -> dict[str, "ServerApp"]:
    """Return the servers by the model in their shadow."""
    from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
    from mlflow_deploy_plugin.core.statedir.models import Wanted
    from mlflow_deploy_plugin.serve.assembly import open_server
    from mlflow_deploy_plugin.serve.http.app import ServerApp

    folder = str(request_path.MODELS / "numbers")
    copy = root / "copy"
    shutil.copytree(folder, copy)
    main = {"model_uri": "models:/m/1", "model": "m", "version": "1", "folder": folder}
    shadow = main | {"version": "2", "folder": str(copy), "shadow": True}
    apps = {}
    for name, variants in {"none": {"main": main}, "one": {"main": main, "new": shadow}}.items():
        wanted = {"generation": 1, "endpoints": {"e": {"variants": variants}}}
        write_state(root / name / WANTED, Wanted.model_validate(wanted))
        apps[name] = ServerApp(open_server(root / name))
    for app in apps.values():
        while app.server.repository.not_ready_reason():
            time.sleep(0.05)
    return apps


def request() -> "RawRequest":
    from mlflow_deploy_plugin.serve.messages import RawRequest

    draw = random.Random(0)
    names = [f"feature_{place}" for place in range(request_path.WIDTH)]
    body = {"dataframe_split": {"columns": names, "data": [[draw.gauss(0, 1) for _ in names]]}}
    return RawRequest(
        "POST",
        "/invocations",
        {"content-type": "application/json"},
        json.dumps(body).encode(),
    )


def drained(app: "ServerApp") -> None:
    """Wait until the shadow's thread is idle."""
    while app.server.shadows.waiting:
        time.sleep(0.01)


def burst(app: "ServerApp") -> float:
    """Return the microseconds of this thread's time per response."""
    asked = request()
    began = time.thread_time()
    for _ in range(BURST):
        app.handle(asked)
    taken = time.thread_time() - began
    drained(app)
    return taken / BURST * 1e6


def paced(app: "ServerApp") -> tuple[float, float]:
    """Return the median and the 99th percentile of the responses' wall-clock
    microseconds.
    """
    asked = request()
    taken = []
    for _ in range(PACED):
        time.sleep(GAP_SECONDS)
        began = time.perf_counter()
        app.handle(asked)
        taken.append(time.perf_counter() - began)
    drained(app)
    ordered = sorted(taken)
    return ordered[PACED // 2] * 1e6, ordered[PACED * 99 // 100] * 1e6


def full(app: "ServerApp") -> float:
    """Return the wall-clock microseconds per response for many requests without a
    pause.
    """
    asked = request()
    answers = 0
    began = time.perf_counter()
    while (taken := time.perf_counter() - began) < FULL_SECONDS:
        app.handle(asked)
        answers += 1
    drained(app)
    return taken / answers * 1e6


def main() -> None:
    if not (request_path.MODELS / "flights").is_dir():
        subprocess.run([sys.executable, request_path.__file__, "--make-models"], check=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        apps = open_apps(Path(root))
        found: dict[str, list[tuple[float, ...]]] = {name: [] for name in apps}
        for _ in range(ROUNDS):
            for name, app in apps.items():
                found[name].append((burst(app), *paced(app), full(app)))
        medians = {
            name: [statistics.median(row) for row in zip(*rows, strict=True)]
            for name, rows in found.items()
        }
        print(f"{'shadow':8}{'cpu':>10}{'p50':>10}{'p99':>10}{'full':>10}   microseconds")
        for name, figures in medians.items():
            print(f"{name:8}" + "".join(f"{figure:10.1f}" for figure in figures))
        ratios = (one / none for none, one in zip(medians["none"], medians["one"], strict=True))
        print(f"{'ratio':8}" + "".join(f"{ratio:10.3f}" for ratio in ratios))
        for app in apps.values():
            app.server.close()


if __name__ == "__main__":
    main()
