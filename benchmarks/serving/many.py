"""Several models of scikit-learn on one server: the speed of trees, memory and CPU.

MLServer loads the pickled estimators with its scikit-learn runtime, without worker
processes (`parallel_workers: 0`), which is its faster form for these models. BentoML
serves the models' ONNX graphs. `mlflow models serve` has one server per model.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pandas as pd

from . import models, table
from .load import Measured, closed_loop, mixed_loop
from .peers import BENTOML_MODELS, MLFLOW, MLSERVER_MODELS, OURS_MODELS, Peer
from .servers import Server
from .works import CONNECTIONS, Bench, ask, rounds_of, start

BATCHES = (1, 100)
MOST_MLFLOW = 10
"""Servers of `mlflow models serve` that run at once; more are extrapolated."""
HEAD = (
    "| models | server | MB | ratio of MB | CPU s per 1,000 requests | ratio of CPU "
    "| requests/s, p99 | start |\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Cost:
    """The megabytes of all processes, and their CPU seconds per 1,000 requests."""

    megabytes: float
    cpu: float
    load: Measured
    start_seconds: float


def estimators(bench: Bench) -> Iterator[table.Row]:
    """Compare with MLServer: a logistic regression, 50 trees, and boosting; V2 with
    64-bit floats.
    """
    served, rows = models.several(bench.folder, len(models.ESTIMATORS))
    peers = (OURS_MODELS, MLSERVER_MODELS)
    wrong = 0
    with ExitStack() as stack:
        started = [start(bench, stack, peer, served, rows.head(1)) for peer in peers]
        if not all(started):
            return
        servers = [requests[0].server for requests in started]
        for model in served:
            for size in BATCHES:
                pairs = zip(peers, servers, strict=True)
                asked = [ask(peer, server, model, rows.head(size)) for peer, server in pairs]
                ours, theirs = rounds_of(bench, asked, closed_loop)
                wrong += sum(one.wrong for one in [*ours, *theirs])
                work = f"{model.name}, {size} × {models.COLUMNS} floats"
                yield table.compared(work, MLSERVER_MODELS.name, ours, theirs, None)
    bench.note(f"estimators: {wrong} wrong answers of both servers together")


def memory(bench: Bench) -> Iterator[str]:
    """Measure the memory of servers with several models, and their CPU time per 1,000
    requests of one row in a closed loop, one server after the other. Both are sums over
    all processes, and the memory is that after the load.
    """
    served, rows = models.several(bench.folder, max(bench.models))
    row = rows.head(1).abs() + 1  # Every model answers 1.
    costs: dict[tuple[Peer, int], Cost | None] = {}
    for number in bench.models:
        for peer in (OURS_MODELS, MLSERVER_MODELS, BENTOML_MODELS, MLFLOW):
            bench.say(f"  {number} models: {peer.name}")
            count = min(number, MOST_MLFLOW) if peer is MLFLOW else number
            if (peer, count) not in costs:
                costs[peer, count] = _cost(bench, peer, served[:count], row)
            cost = costs[peer, count]
            ours = costs[OURS_MODELS, number]
            if cost is None or ours is None:
                continue
            megabytes = cost.megabytes * number / count
            note = f" ({number} × the share of {count})" if count < number else ""
            cells = [f"{number}", peer.name, f"{megabytes:,.0f}{note}"]
            cells += [f"{megabytes / ours.megabytes:.2f}", f"{cost.cpu:.3f}"]
            speed = f"{cost.load.rate:,.0f}/s, {cost.load.p99 * 1e3:.0f} ms"
            cells += [f"{cost.cpu / ours.cpu:.2f}", speed, f"{cost.start_seconds:.1f} s"]
            yield f"| {' | '.join(cells)} |"
    wrong = sum(cost.load.wrong for cost in costs.values() if cost)
    bench.note(f"memory: {wrong} wrong answers of all servers together")


def _cost(
    bench: Bench, peer: Peer, served: Sequence[models.Model], row: pd.DataFrame
) -> Cost | None:
    with ExitStack() as stack:
        asked = start(bench, stack, peer, served, row)
        if not asked:
            return None
        servers = list({one.server.pid: one.server for one in asked}.values())
        # The models' probabilities differ, so only the labels are compared.
        targets = [
            replace(one.target, expected=one.target.expected.partition(b"]")[0]) for one in asked
        ]
        connections = max(CONNECTIONS, len(servers))
        mixed_loop(targets, connections, bench.seconds)
        before = _cpu_seconds(servers)
        load = mixed_loop(targets, connections, bench.seconds, warm_up=0)
        cpu = (_cpu_seconds(servers) - before) / load.requests * 1e3
        start_seconds = sum(server.start_seconds for server in servers)
        return Cost(_megabytes(servers), cpu, load, start_seconds)


def _cpu_seconds(servers: Sequence[Server]) -> float:
    processes = [process for server in servers for process in server.processes()]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _megabytes(servers: Sequence[Server]) -> float:
    """Return the memory of all processes: a file once, however many processes map it,
    and otherwise the proportional set size. That of a file would depend on the other
    programs of this machine, because uv links the same libraries into environments.
    """
    used = 0
    files: dict[str, int] = {}
    for process in [process for server in servers for process in server.processes()]:
        for part in process.memory_maps():
            if part.path.startswith("/"):
                used += part.anonymous
                files[part.path] = max(files.get(part.path, 0), part.rss - part.anonymous)
            else:
                used += part.pss
    return (used + sum(files.values())) / 1e6
