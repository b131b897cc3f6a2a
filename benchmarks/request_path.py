"""Measure the microseconds of one request below the worker's connection, with capture
and metrics on.

Commands::

    .venv/bin/python benchmarks/request_path.py              # about a minute
    .venv/bin/python benchmarks/request_path.py --beside before=/path/to/a/checkout \\
        now=. py313=.:/path/to/python3.13
    # with API keys
    .venv/bin/python benchmarks/request_path.py --beside open=. keys=. keys-limited=.
    .venv/bin/python benchmarks/request_path.py --beside plain=. canary=. sampled=. \\
        unsampled=.
    # functions around the version: `before` adds a column, `after` returns one output
    .venv/bin/python benchmarks/request_path.py --beside plain=. before-step=. \\
        after-step=. both-steps=.
    .venv/bin/python benchmarks/request_path.py --observed   # logs and traces

There are two models: a logistic regression of 30 floats, and a pipeline of the flights'
15 columns (strings, integers, doubles, booleans). A row of the table is one form of
body. Its columns are the CPU microseconds of the complete processing of a request: the
connection receives its bytes, and writes its response to no socket. The second column
is the 99th percentile of its rounds. `--beside` compares checkouts, interpreters or
settings. One process per checkout alternates with the others, so that a busy machine
affects all of them. It runs the script of its checkout, because modules may have moved.
`--observed` alternates within one process between a server without logs and traces, and
servers that log or trace none (`0`) or each (`1`) of the requests. A row with
`traceparent 00` has this header of a caller that is not traced. The metrics are in
shared memory, as under gunicorn. A separate process creates the models once, so the
measured process imports neither MLflow nor pandas.
"""

import asyncio
import gc
import hashlib
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

MODELS = Path(tempfile.gettempdir()) / "onnxserve-request-path"
ROUNDS = 15
ROUND_SECONDS = 0.02
WIDTH = 30
MODEL_NAMES = ("numbers", "flights")
KEY = "onnxserve_" + 43 * "k"
STRINGS = ("carrier", "origin", "dest")
INTEGERS = ("month", "weekday", "hour", "distance")
DOUBLES = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "visib")
FLIGHT: dict[str, Any] = {
    "carrier": "AA",
    "origin": "JFK",
    "dest": "LAX",
    "month": 7,
    "weekday": 3,
    "hour": 17,
    "distance": 2475,
}
FLIGHT |= {name: 10.25 + place for place, name in enumerate(DOUBLES)} | {"holiday": False}
_BEFORE = """
def before(request):
    return {**request.inputs, "sent": [len(request.headers)]}
"""
_AFTER = """
def after(outputs, request):
    return outputs["label"]
"""
STEPS = {"before-step": _BEFORE, "after-step": _AFTER, "both-steps": _BEFORE + _AFTER}
STEPPED = ("1 x 30 dataframe_split", "1 x 30 inputs, columns", "flight dataframe_records")
"""The requests that a server with steps receives."""


def make_models(root: Path) -> None:
    """Return the models as MLmodel folders."""
    import numpy as np
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    import mlflow_deploy_plugin

    random = np.random.default_rng(0)
    numbers = pd.DataFrame(
        random.normal(size=(500, WIDTH)),
        columns=[f"feature_{place}" for place in range(WIDTH)],
    )
    target = (numbers.sum(axis=1) > 0).astype(int)
    mlflow_deploy_plugin.save_model(
        LogisticRegression().fit(numbers, target),
        root / "numbers",
        input_example=numbers.head(5),
    )
    flights = pd.DataFrame(
        {
            **{name: random.choice([FLIGHT[name], "B6", "UA"], 500) for name in STRINGS},
            **{name: random.integers(0, 30, 500) for name in INTEGERS},
            **{name: random.uniform(0, 30, 500) for name in DOUBLES},
            "holiday": random.integers(0, 2, 500).astype(bool),
        },
    )
    columns = make_column_transformer(
        (StandardScaler(), [*INTEGERS, *DOUBLES]),
        (OneHotEncoder(handle_unknown="ignore"), [*STRINGS, "holiday"]),
    )
    pipeline = make_pipeline(columns, LogisticRegression()).fit(flights, target)
    mlflow_deploy_plugin.save_model(pipeline, root / "flights", input_example=flights.head(5))


def open_servers(root: Path, label: str = "") -> dict[str, Any]:
    """Return a ready server in this process, per model.

    Args:
        label: `keys…`: its key is KEY, which has its own limit if the label contains
            the word `limited`. `canary`: a second variant of the same version has a
            tenth of the weight. `sampled`, `unsampled`: a tenth of the requests is
            captured, or none. A key of STEPS: the endpoints have these functions.
    """
    from mlflow_deploy_plugin.core.statedir.files import (
        KEYS,
        SPEC,
        WANTED,
        write_atomically,
        write_state,
    )
    from mlflow_deploy_plugin.core.statedir.models import KeyEntry, ValidKeys, Wanted
    from mlflow_deploy_plugin.serve.assembly import open_server

    servers = {}
    fraction = {"sampled": 0.1, "unsampled": 0.0}.get(label, 1.0)
    for name in MODEL_NAMES:
        variant = {
            "model_uri": "models:/m/1",
            "model": "m",
            "version": "1",
            "folder": str(MODELS / name),
        }
        variants = {"v": {**variant, "weight": 90}}
        if label == "canary":
            variants["w"] = {**variant, "weight": 10}
        endpoint = {
            "variants": variants,
            "capture": {"fraction": fraction},
            "serve": {"steps": STEPS.get(label)},
        }
        wanted = {"generation": 1, "endpoints": {name: endpoint}}
        write_state(root / name / WANTED, Wanted.model_validate(wanted))
        if label.startswith("keys"):
            spec = (
                f"{{name: {name}, variants: {{v: {{model: models:/m/1}}}}, server: {{api_keys: "
                "true}}"
            )
            write_atomically(root / name / SPEC, spec.encode())
            limits = ("999999999/day",) if "limited" in label else ()
            entry = KeyEntry(name="caller", scopes=("infer",), limits=limits)
            write_state(
                root / name / KEYS,
                ValidKeys(keys={hashlib.sha256(KEY.encode()).hexdigest(): entry}),
            )
        servers[name] = open_server(root / name)
    for server in servers.values():
        while server.repository.not_ready_reason():
            time.sleep(0.05)
    return servers


Body = tuple[str, str, str, dict[str, str], bytes]
"""The label, the model, the path, the headers and the body of a request."""


def bodies() -> list[Body]:
    """Return the body of each request."""
    draw = random.Random(0)
    row = [draw.gauss(0, 1) for _ in range(WIDTH)]
    record = {f"feature_{place}": value for place, value in enumerate(row)}
    documents = [
        *_documents_of_a_row(record),
        *_documents_of_a_flight(),
    ]
    in_json = [
        (
            label,
            model,
            path,
            {"content-type": "application/json"},
            json.dumps(document, separators=(",", ":")).encode(),
        )
        for label, model, path, document in documents
    ]
    return [*in_json[:4], _csv(record), *in_json[4:], *_other_bodies(record)]


Document = tuple[str, str, str, Any]
"""The label, the model, the path and the JSON document of a request."""


def _tensor(shape: list[int], values: list[float]) -> dict[str, Any]:
    return {"name": "X", "shape": shape, "datatype": "FP32", "data": values}


def _documents_of_a_row(record: dict[str, float]) -> list[Document]:
    row = list(record.values())
    split = {"columns": list(record), "data": [row]}
    columns = {name: [value] for name, value in record.items()}
    tensor = _tensor([1, WIDTH], row)
    return [
        ("1 x 30 dataframe_split", "numbers", "/invocations", {"dataframe_split": split}),
        ("1 x 30 dataframe_records", "numbers", "/invocations", {"dataframe_records": [record]}),
        ("1 x 30 instances, rows", "numbers", "/invocations", {"instances": [row]}),
        ("1 x 30 inputs, columns", "numbers", "/invocations", {"inputs": columns}),
        ("1 x 30 V2", "numbers", "/v2/models/numbers/infer", {"inputs": [tensor]}),
        ("1 x 30 /predict", "numbers", "/predict", record),
        ("1 x 30 /predict/batch", "numbers", "/predict/batch", [record]),
    ]


def _documents_of_a_flight() -> list[Document]:
    flights = {"columns": list(FLIGHT), "data": [list(FLIGHT.values())]}
    return [
        ("flight dataframe_split", "flights", "/invocations", {"dataframe_split": flights}),
        ("flight dataframe_records", "flights", "/invocations", {"dataframe_records": [FLIGHT]}),
    ]


def _csv(record: dict[str, float]) -> Body:
    text = ",".join(record) + "\n" + ",".join(map(repr, record.values())) + "\n"
    headers = {"content-type": "text/csv"}
    return "1 x 30 CSV", "numbers", "/invocations", headers, text.encode()


def _other_bodies(record: dict[str, float]) -> list[Body]:
    arrow_type = {"content-type": "application/vnd.apache.arrow.stream"}
    return [
        _v2_binary(list(record.values())),
        ("1 x 30 Arrow", "numbers", "/invocations", arrow_type, _arrow(record)),
        ("flight Arrow", "flights", "/invocations", arrow_type, _arrow(FLIGHT)),
        (
            "50 x 30 JSON Lines",
            "numbers",
            "/invocations",
            {"content-type": "application/jsonl"},
            50 * (json.dumps(record).encode() + b"\n"),
        ),
    ]


def _v2_binary(row: list[float]) -> Body:
    import numpy as np

    tensor = _tensor([1, WIDTH], row)
    tensor["parameters"] = {"binary_data_size": 4 * WIDTH}
    del tensor["data"]
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {
        "content-type": "application/octet-stream",
        "inference-header-content-length": str(len(head)),
    }
    body = head + np.array(row, np.float32).tobytes()
    return "1 x 30 V2 binary", "numbers", "/v2/models/numbers/infer", headers, body


def _arrow(record: dict[str, Any]) -> bytes:
    import pyarrow as pa

    table = pa.table({name: [value] for name, value in record.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


class NoSocket:
    """A transport that keeps the last written bytes."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written = data

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None

    def set_write_buffer_limits(self, **limits: int) -> None:
        pass


async def answer_by_name(label: str) -> None:
    """Print the names of the requests. Then print the microseconds of each request
    whose name is read.
    """
    from mlflow_deploy_plugin.serve.http.workers import worker_app

    worker_app.INLINE_SECONDS = math.inf  # a busy machine must not move requests off the loop
    root = Path(tempfile.mkdtemp(prefix="request-path-", dir="/dev/shm"))
    servers = open_servers(root, label)
    key = f"Authorization: Bearer {KEY}\r\n" if label.startswith("keys") else ""
    apps = {name: worker_app.WorkerApp(server, True, 1) for name, server in servers.items()}
    requests: dict[str, Callable[[], Any]] = {}
    for shown, model, path, headers, body in bodies():
        if label in STEPS and shown not in STEPPED:
            continue
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"POST {path} HTTP/1.1\r\nHost: a\r\n{key}{fields}Content-Length: {len(body)}\r\n\r\n"
        )
        requests[shown] = await _connected(apps[model], head.encode() + body)
    gc.freeze()
    print(json.dumps(list(requests)), flush=True)
    for line in sys.stdin:
        print(_microseconds(requests[line.strip()]), flush=True)
    shutil.rmtree(root)


async def compare_observers() -> None:
    """Print the microseconds of a request with a row of 30 floats to servers with and
    without logs and traces, and the ratios to the server without them.
    """
    from mlflow_deploy_plugin.core.logs import configure_logging
    from mlflow_deploy_plugin.serve.http.workers import worker_app
    from mlflow_deploy_plugin.serve.observability.tracing import Observer, open_tracer

    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - open until this process ends
    configure_logging("text", "worker")
    worker_app.INLINE_SECONDS = math.inf  # a busy machine must not move requests off the loop
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
    os.environ["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
    tracers = []
    for ratio in "01":
        os.environ["OTEL_TRACES_SAMPLER_ARG"] = ratio
        tracers.append(open_tracer())
    unselected = {
        "plain": Observer(),
        "log 0": Observer(None, 0.0),
        "trace 0": Observer(tracers[0]),
        "log, trace 0": Observer(tracers[0], 0.0),
    }
    selected = {
        "plain": Observer(),
        "log 1": Observer(None, 1.0),
        "trace 1": Observer(tracers[1]),
    }
    # A caller that is not traced.
    child = {"plain": Observer(), "trace 1": Observer(tracers[1])}
    root = Path(tempfile.mkdtemp(prefix="request-path-", dir="/dev/shm"))
    server = open_servers(root)["numbers"]
    _, _, path, _, body = bodies()[0]
    for parent, observers in (
        ("", unselected),
        (f"traceparent: 00-{32 * '1'}-{16 * '1'}-00\r\n", child),
        # Spans and log lines would displace the other requests from the caches.
        ("", selected),
    ):
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\n{parent}Content-Type: application/json\r\n"
        message = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        requests = {}
        for name, observer in observers.items():
            app = worker_app.WorkerApp(replace(server, observer=observer), True, 1)
            requests[name] = await _connected(app, message)
        taken: dict[str, list[float]] = {name: [] for name in requests}
        order = list(requests)
        for _ in range(20 * ROUNDS):
            order.reverse()
            for name in order:
                started = time.thread_time()
                for _ in range(20):
                    requests[name]()
                taken[name].append((time.thread_time() - started) / 20 * 1e6)
        # Other processes disturb the lowest decile least.
        lowest = {name: statistics.quantiles(values, n=10)[0] for name, values in taken.items()}
        for name, microseconds in lowest.items():
            shown = f"{name}{', traceparent 00' if parent else ''}"
            print(f"{shown:28}{microseconds:8.1f}{microseconds / lowest['plain']:8.3f}", flush=True)
    shutil.rmtree(root)


async def _connected(app: Any, message: bytes) -> Callable[[], Any]:
    """Return a function that sends the message on a connection, which has answered the
    message once.
    """
    from mlflow_deploy_plugin.serve.http.workers.connection import HttpConnection

    connection = HttpConnection(app, set())
    transport = NoSocket()
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.data_received(message)
    # The first request runs in a thread, because its duration is not known yet.
    while not transport.written:
        await asyncio.sleep(0.01)
    assert transport.written.startswith(b"HTTP/1.1 200"), transport.written[:500]
    return partial(connection.data_received, message)


def _microseconds(request: Callable[[], Any]) -> float:
    started = time.thread_time()
    repeats = 0
    while (seconds := time.thread_time() - started) < ROUND_SECONDS:
        for _ in range(100):
            request()
        repeats += 100
    return seconds / repeats * 1e6


def compare(arguments: list[str]) -> None:
    """Print the microseconds of each request in the first checkout, and the ratios of
    the others to it.
    """
    children = dict(map(_start, arguments))
    names: list[str] = []
    for child in children.values():  # A process is ready when it has printed the names.
        found = json.loads(child.stdout.readline()) if child.stdout else []
        names = [name for name in names or found if name in found]
    first, *others = children
    heads = [f"{first}, µs", "p99", *(f"{label} / {first}" for label in others)]
    print(f"| request | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name in names:
        taken = _alternate(children, name)
        ratios = [_median_ratio(taken[label], taken[first]) for label in others]
        median = statistics.median(taken[first])
        cells = [f"{median:.1f}", f"{max(taken[first]):.1f}", *(f"{ratio:.3f}" for ratio in ratios)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for child in children.values():
        child.communicate()  # The process exits at the end of its input.


def _start(argument: str) -> tuple[str, subprocess.Popen[str]]:
    """Return the label in the argument, and the process of its checkout."""
    label, _, where = argument.partition("=")
    checkout, _, python = where.partition(":")
    child = subprocess.Popen(
        [python or sys.executable, "benchmarks/request_path.py", "--answer", label],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(Path(checkout).resolve()), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return label, child


def _alternate(children: dict[str, subprocess.Popen[str]], name: str) -> dict[str, list[float]]:
    """Return the microseconds of a request by checkout, without the first round."""
    taken: dict[str, list[float]] = {label: [] for label in children}
    labels = list(children)
    for _ in range(ROUNDS + 1):
        labels.reverse()
        for label in labels:
            taken[label].append(_answer(children[label], name))
    return {label: values[1:] for label, values in taken.items()}


def _answer(child: subprocess.Popen[str], name: str) -> float:
    print(name, file=child.stdin, flush=True)
    if child.stdout:
        return float(child.stdout.readline())
    return math.nan


def _median_ratio(values: list[float], base: list[float]) -> float:
    return statistics.median(mine / its for mine, its in zip(values, base, strict=True))


def main() -> None:
    match sys.argv[1:]:
        case ["--make-models"]:
            make_models(MODELS)
        case ["--answer", label]:
            asyncio.run(answer_by_name(label))
        case [] | ["--beside" | "--observed", *_]:
            if not all((MODELS / name).is_dir() for name in MODEL_NAMES):
                # An earlier version of this script may not have all requests.
                shutil.rmtree(MODELS, ignore_errors=True)
                subprocess.run([sys.executable, __file__, "--make-models"], check=True)
            if sys.argv[1:] == ["--observed"]:
                asyncio.run(compare_observers())
            else:
                compare(sys.argv[2:] or [f"now={Path(__file__).parents[1]}"])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
