"""Measure the cost of the console's charts: the page with and without them, one chart,
and the agent's work for them.

python benchmarks/console.py

One process runs MLflow's Flask app on SQLite. The servers of the endpoints do not run,
and each endpoint has one hour of history for two versions. The script prints
milliseconds of CPU, the median of rounds in which the cases alternate.
"""

import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import orjson

ENDPOINTS = 50
ROUNDS = 9
BOUNDS = ("0.0005", "0.001", "0.0025", "0.005", "0.01")


def prepare(home: Path) -> None:
    """Configure MLflow and onnxserve for a folder,
    with endpoints and their histories.
    """
    os.environ |= {
        "ONNXSERVE_HOME": str(home),
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{home}/mlflow.db",
    }
    os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = str(home / "artifacts")
    from mlflow_deploy_plugin.core.settings import load_settings
    from mlflow_deploy_plugin.core.spec.document import new_endpoint
    from mlflow_deploy_plugin.core.store.database import open_store

    settings = load_settings()
    store = open_store(settings.store_url)
    for number in range(ENDPOINTS):
        name = f"e{number:02}"
        store.add_endpoint("onnxserve", new_endpoint(name, "models:/m/Production"))
        folder = settings.state_dir(name) / "history"
        folder.mkdir(parents=True)
        (folder / "hour.jsonl").write_bytes(
            b"\n".join(history_line(name, left) for left in reversed(range(360))),
        )
    store.close()


def history_line(endpoint: str, left: int) -> bytes:
    versions = [[endpoint, "main", "m", version] for version in ("1", "2")]
    document = {
        "at": time.time() - 10 * left,
        "seconds": 10.0,
        "requests": [[*one, status, 70] for one in versions for status in ("200", "400")],
        "durations": [[*one, dict.fromkeys(BOUNDS, 14)] for one in versions],
        "rows": {endpoint: 280},
        "labels": 5,
    }
    return orjson.dumps(document)


def agent_reading(endpoints: int, folder: Path) -> Callable[[], object]:
    """Return the agent's work of every ten seconds, for a server with this number of
    endpoints.
    """
    from mlflow_deploy_plugin.core.statedir.history import _read_counts
    from mlflow_deploy_plugin.serve.observability.metrics import Metrics

    metrics = Metrics(folder)
    for number in range(endpoints):
        for version in ("1", "2"):
            for status in ("200", "400"):
                metrics.count_request((f"e{number}", "main", "m", version, "v2", status), 0.003)
    return lambda: _read_counts(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        from mlflow.server import app

        from mlflow_deploy_plugin.ui import overview
        from mlflow_deploy_plugin.ui.app import extend
        from mlflow_deploy_plugin.ui.logins.login import Login

        extend(app, Login(), app)
        client = app.test_client()

        def page(drawn: int) -> None:
            overview._DRAWN = drawn
            client.get("/onnxserve")

        cases: dict[str, Callable[[], object]] = {
            **{
                f"page of {ENDPOINTS} endpoints, {drawn} drawn": partial(page, drawn)
                for drawn in (0, 6, 50)
            },
            "the small charts of one": lambda: client.get("/onnxserve/pictures?endpoint=e00"),
            "all charts of one": lambda: client.get("/onnxserve/pictures?endpoint=e00&whole=1"),
            **{
                f"the agent reads counters, {count} endpoints": agent_reading(
                    count,
                    Path(folder, f"counted-{count}"),
                )
                for count in (1, 50)
            },
        }
        taken: defaultdict[str, list[float]] = defaultdict(list)
        for _ in range(ROUNDS):
            for name, run in cases.items():
                begun = time.process_time()
                run()
                taken[name].append(1000 * (time.process_time() - begun))
        for name, found in taken.items():
            print(f"| {name} | {statistics.median(found):.1f} ms |")


if __name__ == "__main__":
    main()
