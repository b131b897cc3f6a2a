"""Measure the cost of the target onnxserve:/docker per request, and the effect of a new
image on concurrent requests.

    .venv/bin/python benchmarks/docker_target.py --image onnxserve:cpu

The same tiny model is deployed three times with one worker each: on this machine, in a
container with a published port, and in a container with this machine's network. wrk
sends requests to each in turn. Then the second server is replaced repeatedly under
load, by clients that keep their connections and clients that open a connection per
request. Every response is checked. The exit status is 1 if a request fails.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).parents[1]))

from mlflow.deployments import get_deploy_client

from benchmarks.serving.load import Target, post, wrk_loop
from tests.support.deployments import save_models

BODY = json.dumps({"inputs": [[1.0, 2.0]]}).encode()
CLIENTS = 8


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--image", default="onnxserve:cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--replacements", type=int, default=10)
    return parser.parse_args()


def main() -> int:
    options = _parse_options()
    threads = {"server.intra_op_num_threads": 1}  # Otherwise each session has a thread per core.
    image = {"container.image": options.image, **threads}
    places: dict[str, tuple[str, dict[str, Any]]] = {
        "this machine": ("onnxserve", threads),
        "docker": ("onnxserve:/docker", image),
        "docker, network host": ("onnxserve:/docker", {**image, "container.network": "host"}),
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ONNXSERVE_HOME"] = f"{folder}/home"
        model = save_models(Path(folder) / "models").once
        clients = {name: get_deploy_client(target) for name, (target, _) in places.items()}
        names = {name: f"bench{number}" for number, name in enumerate(places)}
        try:
            urls = {}
            for name, (_, config) in places.items():
                made = clients[name].create_deployment(names[name], model, config=config)
                urls[name] = str(made["url"])
            rates = _rates(urls, options.rounds, options.seconds)
            _print_table(rates, options.rounds)
            return _replace(
                clients["docker"],
                names["docker"],
                urls["docker"],
                options.replacements,
            )
        finally:
            for name, client in clients.items():
                client.delete_deployment(names[name])


def _print_table(rates: dict[str, list[float]], rounds: int) -> None:
    print(f"| server | requests/s, median of {rounds} | ratio |\n|---|---|---|")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, median in medians.items():
        print(f"| {name} | {median:,.0f} | {median / medians['this machine']:.2f} |")


def _rates(urls: dict[str, str], rounds: int, seconds: float) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in urls}
    for _ in range(rounds):
        for name, url in urls.items():
            target = Target(int(url.rpartition(":")[2]), post("/invocations", BODY), b"")
            rates[name].append(wrk_loop(target, CLIENTS, seconds).rate)
    return rates


def _replace(client: Any, name: str, url: str, replacements: int) -> int:
    answers: Counter[str] = Counter()
    seconds: list[float] = []
    is_over = threading.Event()

    def ask(keeps: bool) -> None:
        connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
        while not is_over.is_set():
            begun = time.monotonic()
            try:
                connection.request(
                    "POST",
                    "/invocations",
                    BODY,
                    {"Content-Type": "application/json"},
                )
                response = connection.getresponse()
                answers[f"{response.status} {response.read().decode()[:80]}"] += 1
            except (OSError, HTTPException) as error:
                answers[repr(error)] += 1
                connection.close()
            seconds.append(time.monotonic() - begun)
            if not keeps:
                connection.close()

    threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    took = []
    for number in range(replacements):
        begun = time.monotonic()
        client.update_deployment(name, config={"container.pids": 600 + number})
        took.append(time.monotonic() - begun)
    is_over.set()
    for thread in threads:
        thread.join()
    (right, count), *wrong = answers.most_common()
    seconds.sort()
    print(
        "\n"
        f"{replacements} replacements, {statistics.median(took):.1f} s each: {answers.total():,} "
        f"requests, {answers.total() - count} failed; p50 {seconds[len(seconds) // 2] * 1e3:.1f} "
        f"ms, p99 {seconds[len(seconds) * 99 // 100] * 1e3:.1f} ms, longest "
        f"{seconds[-1] * 1e3:.0f} ms",
    )
    print("\n".join(f"{count} × {answer}" for answer, count in wrong), end="")
    return 0 if not wrong and right.startswith("200 ") else 1


if __name__ == "__main__":
    sys.exit(main())
