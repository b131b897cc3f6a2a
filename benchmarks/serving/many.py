"""Several models of scikit-learn on one server: speed of trees, memory and CPU.

MLServer loads `model.joblib` with its scikit-learn runtime, without worker processes
(`parallel_workers: 0`), which is its faster form for these models. BentoML serves the
models' ONNX graphs. `mlflow models serve` has one server per model. The measured
servers have one core, and the client another. Each request has one row of 30 floats in
the form of the server's users: V2 with 64-bit floats for MLServer and onnxserve.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import mlflow.sklearn
import numpy as np
import pandas as pd
import yaml
from mlflow.models import infer_signature
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import onnxserve

from . import table
from .environments import NotInstalled, environment, versions
from .load import Target, closed_loop, mixed_loop
from .peers import BENTOML_MODELS, MLFLOW, MLSERVER_MODELS, OURS_MODELS, Peer
from .servers import NotStarted, Server, free_port
from .works import CONNECTIONS, Asked, Bench, ask, form, launched, rounds_of, write_mlserver

COLUMNS = 30
BATCHES = (1, 100)
NAMES = [f"x{place}" for place in range(COLUMNS)]
ESTIMATORS = {
    "logistic": lambda seed: LogisticRegression(),
    "forest": lambda seed: RandomForestClassifier(50, random_state=seed),
    "boosting": lambda seed: GradientBoostingClassifier(random_state=seed),
}
MOST_MLFLOW = 10
"""Servers of `mlflow models serve` that run at once; more are extrapolated."""
HEAD = (
    "| models | server | MB (PSS) | ratio | CPU s per 1,000 requests | ratio | requests/s, p99 "
    "| start |\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Model:
    """A fitted model.

    Attributes:
        pickled: the file of MLServer.
        wrapped: the folder of onnxserve, with the graph for BentoML.
        saved: the folder of MLflow.
    """

    name: str
    estimator: Any
    pickled: Path
    wrapped: Path
    saved: Path


@dataclass(frozen=True)
class Fleet:
    """The servers of several models (one, except for MLflow), and the path of each."""

    peer: Peer
    servers: list[Server]

    def asked(self, models: Sequence[Model], rows: pd.DataFrame) -> list[Asked]:
        """Return the request with these rows to each model, after its response was
        compared with scikit-learn's.
        """
        servers = self.servers if len(self.servers) > 1 else self.servers * len(models)
        return [
            ask(
                replace(self.peer, path=self.peer.path.format(name=model.name)),
                server,
                form(self.peer, rows, model.name),
                model.estimator.predict(rows.to_numpy()).tolist(),
            )
            for model, server in zip(models, servers, strict=True)
        ]


@dataclass(frozen=True)
class Cost:
    """The memory and the CPU time of a fleet.

    Attributes:
        megabytes: the proportional set size of all processes after the load.
        cpu: seconds of all processes per 1,000 requests of a closed loop.
    """

    megabytes: float
    cpu: float
    speed: str
    start_seconds: float


def estimators(bench: Bench) -> Iterator[table.Row]:
    """Compare with MLServer: a logistic regression, 50 trees, and boosting."""
    models, rows = _fitted(bench, len(ESTIMATORS))
    wrong = 0
    with ExitStack() as stack:
        fleets = [_started(bench, stack, peer, models) for peer in (OURS_MODELS, MLSERVER_MODELS)]
        ours, theirs = fleets
        if ours is None or theirs is None:
            return
        for place, model in enumerate(models):
            for size in BATCHES:
                pair = [fleet.asked(models, rows.head(size))[place] for fleet in (ours, theirs)]
                mine, others = rounds_of(bench, pair, closed_loop)
                wrong += sum(one.wrong for one in [*mine, *others])
                work = f"{model.name}, {size} × {COLUMNS} floats"
                yield table.compared(work, theirs.peer.name, mine, others, None)
    bench.notes.append(f"estimators: {wrong} wrong answers of both servers together")


def memory(bench: Bench) -> Iterator[str]:
    """Measure the memory of servers with several models, and their CPU time per 1,000
    requests, one server after the other.
    """
    models, rows = _fitted(bench, max(bench.models))
    alike = rows.abs().head(1) + 1  # Each model answers 1, so each response is the same.
    for number in bench.models:
        first: Cost | None = None
        for peer in (OURS_MODELS, MLSERVER_MODELS, BENTOML_MODELS, MLFLOW):
            bench.say(f"  {number} models: {peer.name}")
            count = min(number, MOST_MLFLOW) if peer is MLFLOW else number
            cost = _cost(bench, peer, models[:count], alike)
            if cost is None:
                continue
            first = first or cost
            megabytes = cost.megabytes * number / count
            note = f" ({number} × the share of {count})" if count < number else ""
            ratios = [
                f"{a / b:.2f}" for a, b in ((megabytes, first.megabytes), (cost.cpu, first.cpu))
            ]
            cells = [f"{number}", peer.name, f"{megabytes:,.0f}{note}", ratios[0]]
            cells += [f"{cost.cpu:.3f}", ratios[1], cost.speed, f"{cost.start_seconds:.1f} s"]
            yield f"| {' | '.join(cells)} |"


def _cost(bench: Bench, peer: Peer, models: Sequence[Model], row: pd.DataFrame) -> Cost | None:
    with ExitStack() as stack:
        fleet = _started(bench, stack, peer, models)
        if fleet is None:
            return None
        targets = [_alike(asked.target) for asked in fleet.asked(models, row)]
        connections = max(CONNECTIONS, len(fleet.servers))
        mixed_loop(targets, connections, bench.seconds)
        before = _cpu_seconds(fleet)
        load = mixed_loop(targets, connections, bench.seconds, warm_up=0)
        used = _cpu_seconds(fleet) - before
        processes = [process for server in fleet.servers for process in server.processes()]
        megabytes = sum(process.memory_full_info().pss for process in processes) / 1e6
        if load.wrong:
            raise AssertionError(f"{peer.name}: {load.wrong} wrong responses")
        seconds = sum(server.start_seconds for server in fleet.servers)
        speed = f"{load.rate:,.0f}/s, {load.p99 * 1e3:.0f} ms"
        return Cost(megabytes, used / load.requests * 1e3, speed, seconds)


def _cpu_seconds(fleet: Fleet) -> float:
    """Return the CPU seconds of all processes so far."""
    processes = [process for server in fleet.servers for process in server.processes()]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _alike(target: Target) -> Target:
    """Return the target of which the response may have other probabilities than the
    first model's.
    """
    return replace(target, expected=target.expected.partition(b"]")[0])


def _started(bench: Bench, stack: ExitStack, peer: Peer, models: Sequence[Model]) -> Fleet | None:
    """Return the started servers; None: they are not wanted or not available, with a
    note of the reason.
    """
    if peer is not OURS_MODELS and not bench.wants(peer):
        return None
    note = ""
    servers = []
    try:
        programs = Path("/")
        if peer is not OURS_MODELS:
            programs = environment(peer.requirements, bench.installs)
        for group in [[model] for model in models] if peer is MLFLOW else [models]:
            servers.append(_launched(bench, stack, peer, programs, group))
        if peer is not OURS_MODELS:
            note = f"{peer.name}: {versions(programs, *peer.shown)}"
    except (NotInstalled, NotStarted) as error:
        note = f"{peer.name}: {error}"
        servers = []
    if note and note not in bench.notes:
        bench.notes.append(note)
    return Fleet(peer, servers) if servers else None


def _launched(
    bench: Bench, stack: ExitStack, peer: Peer, programs: Path, models: Sequence[Model]
) -> Server:
    """Start a server of these models, and return it when its last model answers."""
    work = bench.work_folder()
    port = free_port()
    if peer is OURS_MODELS:
        documents = [
            {"name": model.name, "variants": {"main": {"model": str(model.wrapped)}}}
            for model in models
        ]
        (work / "spec.yaml").write_text(yaml.safe_dump_all(documents))
    if peer is MLSERVER_MODELS:
        settings = [
            {
                "name": model.name,
                "implementation": "mlserver_sklearn.SKLearnModel",
                "parameters": {"uri": str(model.pickled)},
            }
            for model in models
        ]
        write_mlserver(work, port, settings)
    if peer is BENTOML_MODELS:
        for model in models:
            (work / f"{model.name}.onnx").symlink_to(model.wrapped / "model.onnx")
    last = models[-1]
    words = {"bin": programs, "port": port, "work": work, "mlflow": last.saved}
    words |= {"models": work, "onnx": work}
    asked = replace(peer, path=peer.path.format(name=last.name))
    body = form(peer, pd.DataFrame(np.ones((1, COLUMNS)), columns=NAMES), last.name)
    return launched(stack, asked, words, body)


def _fitted(bench: Bench, number: int) -> tuple[list[Model], pd.DataFrame]:
    """Return different fitted models, on disk in each form: a logistic regression, a
    forest, gradient boosting, and again from the start; and their 500 rows of float64.
    """
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(500, COLUMNS)), columns=NAMES)
    values = rows.to_numpy()
    kinds = [*ESTIMATORS]
    models = []
    for index in range(number):
        kind = kinds[index % len(kinds)]
        target = (values[:, 0] + values[:, index % COLUMNS] > 0).astype(int)
        estimator = ESTIMATORS[kind](index).fit(values, target)
        folder = bench.folder / "many" / f"{kind}-{index}"
        model = Model(
            folder.name, estimator, folder / "model.joblib", folder / "ours", folder / "mlflow"
        )
        models.append(model)
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        joblib.dump(estimator, model.pickled)
        onnxserve.save_model(estimator, model.wrapped, input_example=values[:5])
        if index < MOST_MLFLOW:
            mlflow.sklearn.save_model(
                estimator,
                model.saved,
                signature=infer_signature(rows, target),
                serialization_format="cloudpickle",
                pip_requirements=["scikit-learn"],
            )
    return models, rows
