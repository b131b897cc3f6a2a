"""Dynamic batching on and off: a small torch CNN and 64 callers that send one image at
a time, in one process.

    python benchmarks/batching.py

All ways alternate, and the ratio of the medians is the result. The callers are threads
that wait for their responses, or an event loop with the same number of concurrent
requests. Without batching, the event loop computes requests itself, like the fast
worker. The script also prints the cost for a single caller and the sizes of the
batches.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import onnxruntime
import torch
from torch import nn

from mlflow_deploy_plugin.serve.runtime.batcher import Batcher, BatchPolicy
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.session import available_cores, open_session

CLIENTS = 64
ROUNDS = 7
SECONDS = 1.5
SIDE = 28

Ask = Callable[[Feeds], object]


def export_cnn(folder: Path) -> Path:
    """Return a CNN for 28 × 28 images with ten classes and a free batch dimension; its
    weights are random.
    """
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
    ]
    cnn = nn.Sequential(
        *layers,
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 49, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    file = folder / "cnn.onnx"
    torch.onnx.export(
        cnn.eval(),
        (torch.zeros(2, 1, SIDE, SIDE),),
        str(file),
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["x"],
        output_names=["y"],
        verbose=False,
    )
    return file


def throughput(ask: Ask, clients: int, seconds: float = SECONDS) -> float:
    """Return requests of one row per second by `clients` threads, each of which sends
    the next request after its response.
    """
    counts = [0] * clients
    stop = threading.Event()
    feeds = {"x": np.random.default_rng(0).random((1, 1, SIDE, SIDE), dtype=np.float32)}

    def client(number: int) -> None:
        while not stop.is_set():
            ask(feeds)
            counts[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def from_a_loop(
    batcher: Batcher | None,
    run: Ask,
    rows: list[int],
    clients: int,
    seconds: float = SECONDS,
) -> float:
    """Return the same for an event loop; None: it computes each request itself."""
    feeds = {"x": np.random.default_rng(0).random((1, 1, SIDE, SIDE), dtype=np.float32)}
    answers: SimpleQueue[object] = SimpleQueue()
    count = 0
    began = time.perf_counter()
    for _ in range(clients if batcher else 0):
        submit(batcher, feeds, rows, answers)
    while time.perf_counter() - began < seconds:
        if batcher:
            answers.get()
            submit(batcher, feeds, rows, answers)
        else:
            run(feeds)
        count += 1
    elapsed = time.perf_counter() - began
    for _ in range(clients if batcher else 0):
        answers.get()
    return count / elapsed


def submit(
    batcher: Batcher | None,
    feeds: Feeds,
    rows: list[int],
    answers: SimpleQueue[object],
) -> None:
    assert batcher is not None
    batcher.submit(feeds, float("inf"), lambda size, queue, compute: rows.append(size), answers.put)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(export_cnn(Path(folder)), intra_op_num_threads=available_cores())

    def run(feeds: Feeds) -> dict[str, Array]:
        return {"y": session.run(["y"], feeds)[0]}

    rows: list[int] = []
    batchers = {delay: Batcher(run, BatchPolicy(32, (), delay)) for delay in (0, 500)}

    def joined(batcher: Batcher) -> Ask:
        return lambda feeds: batcher.run(
            feeds,
            count=lambda size, queue, compute: rows.append(size),
        )

    ways: dict[str, Callable[[int], float]] = {
        "threads, off": lambda clients: throughput(run, clients),
    }
    for delay, batcher in batchers.items():
        ways[f"threads, {delay} µs"] = partial(throughput, joined(batcher))
    ways["loop, off"] = lambda clients: from_a_loop(None, run, rows, clients)
    for delay, batcher in batchers.items():
        ways[f"loop, {delay} µs"] = partial(from_a_loop, batcher, run, rows)
    print(
        f"onnxruntime {onnxruntime.__version__}, {available_cores()} cores, {ROUNDS} rounds of "
        f"{SECONDS} s",
    )
    for clients in (1, CLIENTS):
        measured: dict[str, list[float]] = {name: [] for name in ways}
        sizes: dict[str, float] = {}
        for _ in range(ROUNDS):
            for name, measure in ways.items():
                rows.clear()
                measured[name].append(measure(clients))
                sizes[name] = statistics.mean(rows) if rows else 1.0
        for name, values in measured.items():
            median = statistics.median(values)
            base = statistics.median(measured[name.partition(",")[0] + ", off"])
            print(
                f"{clients:3} clients, {name:16} {median:8.0f} requests/s  {median / base:5.2f}×"
                f"  {sizes[name]:5.1f} rows per batch",
            )


if __name__ == "__main__":
    main()
