"""Large runs of a small CNN on one thread, with three ways to treat their memory: kept,
returned after each run, and ours.

    .venv/bin/python benchmarks/arena.py

The time is CPU time, user and system. The ways alternate, and the minimum of each way
is printed. The memory of each way is measured in a separate process, whose four threads
run 1 to 512 rows for some seconds.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.batching import SIDE, export_cnn
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.serve.runtime.session import (
    import_onnxruntime,
    limit_memory,
    open_session,
)

ROWS = (64, 256, 1000, 10_000)
WAYS = ("kept", "returned after each run", "ours", "ours, memory is short")
THREADS = 4
MOST_ROWS = 512
SECONDS = 4.0
MLMODEL = "flavors:\n  onnx:\n    data: model.onnx\n    onnx_version: '1'\n"


def open_way(way: str, folder: Path) -> Callable[[Any], Any]:
    """Return the function that runs the CNN."""
    if way.startswith("ours"):
        return OnnxModel.load(folder).run
    session = open_session(folder / "model.onnx")
    options = import_onnxruntime().RunOptions()
    if way != "kept":
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return lambda feeds: session.run(None, feeds, options)


def pictures(rows: int) -> dict[str, Any]:
    return {"x": np.zeros((rows, 1, SIDE, SIDE), np.float32)}


def time_runs(folder: Path) -> None:
    ways = {way: open_way(way, folder) for way in WAYS}
    print(f"{'CPU ms per run':18}" + "".join(f"{way:>28}" for way in WAYS))
    for rows in ROWS:
        feeds = pictures(rows)
        least = dict.fromkeys(WAYS, float("inf"))
        for turn in range(3 + max(4, 40_000 // rows)):
            for way, run in ways.items():
                limit_memory(1 if "short" in way else None)
                run(feeds)  # allocate again
                started = time.process_time()
                run(feeds)
                if turn >= 3:
                    least[way] = min(least[way], time.process_time() - started)
        figures = (
            f"{1e3 * seconds:.2f} ({seconds / least['kept']:.2f})" for seconds in least.values()
        )
        print(f"{rows:>11,} rows  " + "".join(f"{figure:>28}" for figure in figures), flush=True)


def measure_memory(way: str, folder: Path) -> None:
    """Print the memory of this process in addition to the loaded CNN: maximum, right
    after the runs, and three seconds later.
    """
    run = open_way(way, folder)
    random = np.random.default_rng(0)
    limit_memory(1 if "short" in way else None)
    run(pictures(1))
    sizes = [pictures(int(rows)) for rows in random.integers(1, MOST_ROWS, 64)]
    process = psutil.Process()
    end = time.perf_counter() + SECONDS
    before = process.memory_info().rss
    held = []

    def client(number: int) -> None:
        place = 7 * number
        while time.perf_counter() < end:
            run(sizes[place % len(sizes)])
            place += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    while time.perf_counter() < end:
        time.sleep(0.02)
        held.append(process.memory_info().rss)
    for thread in threads:
        thread.join()
    after = process.memory_info().rss
    time.sleep(3)
    figures = (max(held), after, process.memory_info().rss)
    print(
        f"{way:28}" + "".join(f"{(bytes_ - before) / 1e6:>22.0f}" for bytes_ in figures),
        flush=True,
    )


def main() -> None:
    if len(sys.argv) > 1:
        measure_memory(sys.argv[1], Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_cnn(folder).rename(folder / "model.onnx")
        (folder / "MLmodel").write_text(MLMODEL)
        time_runs(folder)
        print(
            "\n"
            f"{'MB in addition to the CNN':28}{'at most':>22}{'right after':>22}{'3 s later':>22}",
        )
        for way in WAYS:
            subprocess.run([sys.executable, __file__, way, name], check=True)


if __name__ == "__main__":
    main()
