"""Compare onnxserve with MLServer 1.7.1 on the same models of scikit-learn: speed,
latency, and the memory of 1, 10 and 100 models.

    # MLServer in an environment of its own, with the scikit-learn of this one
    uv venv /tmp/mlserver
    uv pip install --python /tmp/mlserver mlserver==1.7.1 mlserver-sklearn==1.7.1 \\
        scikit-learn==1.9.1 'pandas<3'
    # some minutes on two cores
    .venv/bin/python benchmarks/mlserver.py --mlserver /tmp/mlserver
    MLSERVER_ENV=/tmp/mlserver .venv/bin/python benchmarks/mlserver.py --models 1 10

MLServer loads `model.joblib` with its scikit-learn runtime, and onnxserve serves the
same models as wrapped. MLServer runs without worker processes (`parallel_workers: 0`),
which is its faster form for these models. The requests are V2 with 64-bit floats. The
measured server has one core, and the client another; the rounds are interleaved, and
every answer is checked. The memory is the proportional set size of all processes of a
server, after a request to each model.
"""

import argparse
import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).parents[1]))

import joblib
import numpy as np
import yaml
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import onnxserve
from benchmarks.serving import table
from benchmarks.serving.load import Target, closed_loop, post
from benchmarks.serving.servers import CLIENT_CORE, Server, cores_given, free_port, running

COLUMNS = 30
CONNECTIONS = 8
ESTIMATORS = {
    "logistic": lambda seed: LogisticRegression(),
    "forest": lambda seed: RandomForestClassifier(50, random_state=seed),
    "boosting": lambda seed: GradientBoostingClassifier(random_state=seed),
}
KINDS = [*ESTIMATORS]
OURS = "onnxserve"
THEIRS = "MLServer"


@dataclass(frozen=True)
class Model:
    """A fitted model.

    Attributes:
        pickled: the file of MLServer.
        wrapped: the folder of onnxserve.
        estimator: for the expected answers.
    """

    name: str
    pickled: Path
    wrapped: Path
    estimator: Any


def main() -> int:
    options = _options()
    if not cores_given():
        print("two cores are needed: one for the server, one for the client", file=sys.stderr)
        return 1
    os.sched_setaffinity(0, {CLIENT_CORE})
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, COLUMNS))
    with tempfile.TemporaryDirectory(prefix="onnxserve-mlserver-") as name:
        folder = Path(name)
        models = _fit(folder, rows, max(len(KINDS), *options.models))
        print(table.HEAD, flush=True)
        for row in _speed(folder, models[: len(KINDS)], rows, options):
            print(row, flush=True)
        for row in _memory(folder, models, rows, options):
            print(row, flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    environment = os.environ.get("MLSERVER_ENV", "")
    parser.add_argument(
        "--mlserver", type=Path, default=environment or None, required=not environment
    )
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="per server and round (2)")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 100], help="rows per request")
    parser.add_argument("--models", type=int, nargs="*", default=[1, 10, 100])
    return parser.parse_args()


def _fit(folder: Path, rows: np.ndarray, number: int) -> list[Model]:
    """Return different fitted models of (500, 30) float64 rows, on disk in both forms:
    a logistic regression, a forest, gradient boosting, and again from the start.
    """
    models = []
    for index in range(number):
        kind = KINDS[index % len(KINDS)]
        target = (rows[:, 0] + rows[:, index % COLUMNS] > 0).astype(int)
        name = f"{kind}-{index}"
        estimator = ESTIMATORS[kind](index).fit(rows, target)
        model = Model(name, folder / f"{name}.joblib", folder / name, estimator)
        joblib.dump(estimator, model.pickled)
        onnxserve.save_model(estimator, model.wrapped, input_example=rows[:5])
        models.append(model)
    return models


def _speed(
    folder: Path, models: Sequence[Model], rows: np.ndarray, options: argparse.Namespace
) -> Iterator[table.Row]:
    served = {model.name: model for model in models}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(start(folder / "speed", served, rows))
            for start in (_ours, _theirs(options.mlserver))
        ]
        for model in models:
            for size in options.batches:
                targets = [_target(server, model.name, model, rows[:size]) for server in servers]
                rounds = [
                    [closed_loop(target, CONNECTIONS, options.seconds) for target in targets]
                    for _ in range(options.rounds)
                ]
                ours, theirs = zip(*rounds, strict=True)
                wrong = sum(one.wrong for pair in rounds for one in pair)
                work = f"{model.name}, {size} × {COLUMNS} floats, {wrong} wrong"
                rows_per_second = [
                    f"{size * np.median([one.rate for one in side]):,.0f} rows/s"
                    for side in (ours, theirs)
                ]
                work += f" ({' and '.join(rows_per_second)})"
                yield table.compared(work, THEIRS, ours, theirs, None)


def _memory(
    folder: Path, models: Sequence[Model], rows: np.ndarray, options: argparse.Namespace
) -> Iterator[table.Row]:
    """Start each server with several models, one server after the other."""
    for number in options.models:
        served = {model.name: model for model in models[:number]}
        memory: list[float] = []
        seconds: list[float] = []
        for start in (_ours, _theirs(options.mlserver)):
            with start(folder / f"memory-{number}", served, rows) as server:
                for name, model in served.items():
                    _target(server, name, model, rows[:1])
                memory.append(_megabytes(server))
                seconds.append(server.start_seconds)
        (our_memory, their_memory), (our_seconds, their_seconds) = memory, seconds
        work = f"{number} models"
        yield table.times_less(
            f"memory of {work}", THEIRS, [our_memory], [their_memory], "MB", None
        )
        yield table.times_less(
            f"start of {work}", THEIRS, [our_seconds], [their_seconds], "s", None
        )


def _megabytes(server: Server) -> float:
    return sum(process.memory_full_info().pss for process in server.processes()) / 1e6


@contextmanager
def _ours(folder: Path, served: Mapping[str, Model], rows: np.ndarray) -> Iterator[Server]:
    folder.mkdir(exist_ok=True)
    port = free_port()
    spec = folder / "spec.yaml"
    documents = [
        {"name": name, "variants": {"main": {"model": str(model.wrapped)}}}
        for name, model in served.items()
    ]
    spec.write_text(yaml.safe_dump_all(documents))
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "serve", "--spec", str(spec)]
    command += ["--port", str(port), "--state-dir", str(folder / "state")]
    with _started(OURS, command, port, folder, {}, served, rows) as server:
        yield server


def _theirs(environment: Path) -> Any:
    @contextmanager
    def start(folder: Path, served: Mapping[str, Model], rows: np.ndarray) -> Iterator[Server]:
        port = free_port()
        models = folder / "mlserver"
        for name, model in served.items():
            (models / name).mkdir(parents=True)
            (models / name / "model-settings.json").write_text(
                json.dumps(
                    {
                        "name": name,
                        "implementation": "mlserver_sklearn.SKLearnModel",
                        "parameters": {"uri": str(model.pickled)},
                    }
                )
            )
        ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
        settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
        (models / "settings.json").write_text(json.dumps(settings))
        command = [str(environment / "bin" / "mlserver"), "start", str(models)]
        variables = {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
        with _started(THEIRS, command, port, folder, variables, served, rows) as server:
            yield server

    return start


@contextmanager
def _started(
    name: str,
    command: Sequence[str],
    port: int,
    folder: Path,
    variables: Mapping[str, str],
    served: Mapping[str, Model],
    rows: np.ndarray,
) -> Iterator[Server]:
    """Yield the server when its last model answers."""
    *_, last = served
    question = _question(port, last, rows[:1])
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **variables}
    with running(name, command, port, folder / f"{name}.log", threads, question) as server:
        yield server


def _body(rows: np.ndarray) -> bytes:
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP64", "data": rows.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def _question(port: int, name: str, rows: np.ndarray) -> urllib.request.Request:
    url = f"http://127.0.0.1:{port}/v2/models/{name}/infer"
    return urllib.request.Request(url, _body(rows), {"Content-Type": "application/json"})


def _target(server: Server, name: str, model: Model, rows: np.ndarray) -> Target:
    """Return the request with these rows, after the answer was compared with
    scikit-learn's. Every later answer must contain the same numbers.
    """
    with urllib.request.urlopen(_question(server.port, name, rows), timeout=60) as response:
        answer = response.read()
    labels = json.loads(answer)["outputs"][0]["data"]
    if np.ravel(labels).tolist() != model.estimator.predict(rows).tolist():
        raise AssertionError(f"{server.name} answers {answer[:300]!r}")
    path = f"/v2/models/{name}/infer"
    return Target(server.port, post(path, _body(rows)), answer[answer.index(b'"data":') :])


if __name__ == "__main__":
    sys.exit(main())
