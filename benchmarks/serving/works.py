"""The measurements: each work starts its servers, checks their responses, sends
requests in interleaved rounds, and yields rows.
"""

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import models, table
from .environments import NotInstalled, environment, versions
from .load import Measured, Target, closed_loop, constant_rate, post, wrk_loop
from .peers import (
    BENTOML,
    ECHO,
    FASTAPI,
    FLASK,
    HERE,
    LITSERVE,
    MLFLOW,
    MLSERVER,
    MOSEC,
    OURS,
    Peer,
)
from .servers import NotStarted, Server, free_port, running

CONNECTIONS = 8
BATCH_CONNECTIONS = 64
WRK = shutil.which("wrk")
ONE_ROW = "1 row × 30 floats"
_CAPTURE_OFF = ("-C", "capture.fraction=0")


@dataclass
class Bench:
    """One run of the benchmark."""

    folder: Path
    rounds: int
    seconds: float
    say: Callable[[str], None]
    peers: frozenset[str] | None = None
    notes: list[str] = field(default_factory=list)
    _started: int = 0

    def wants(self, peer: Peer) -> bool:
        return self.peers is None or any(word.lower() in peer.name.lower() for word in self.peers)

    def work_folder(self) -> Path:
        self._started += 1
        folder = self.folder / "runs" / str(self._started)
        folder.mkdir(parents=True)
        return folder


@dataclass(frozen=True)
class Asked:
    """A server and its request."""

    server: Server
    target: Target
    polls: bool = False


def one_row(bench: Bench) -> Iterator[table.Row]:
    """Measure one row of thirty floats, with all servers."""
    model, data, answers = models.small(bench.folder)
    row = data.to_numpy()[:1].tolist()
    body = models.as_json(inputs=row)
    v2 = models.as_json(inputs=[{"name": "x", "shape": [1, 30], "datatype": "FP64", "data": row}])
    split = models.as_split(data.head(1))
    expected = [int(answers[0])]
    targets = (
        (MLFLOW, 50),
        (FLASK, 12),
        (FASTAPI, 10),
        (LITSERVE, 8),
        (BENTOML, 8),
        (MLSERVER, 8),
        (MOSEC, 2.5),
        (ECHO, None),
    )
    with ExitStack() as stack:
        ours = _ours(bench, stack, model.ours, body, expected)
        silent = _ours(bench, stack, model.ours, body, expected, *_CAPTURE_OFF)
        array = _ours(bench, stack, models.small_array(bench.folder).ours, body, expected)
        answer = len(_body_of(ours.target, ours.server))
        others = {
            peer: asked
            for peer, _ in targets
            if (
                asked := _peer(
                    bench,
                    stack,
                    peer,
                    model,
                    _form(peer, body, v2, split),
                    expected,
                    answer,
                )
            )
        }
        everyone = [ours, silent, array, *others.values()]
        measured = _rounds(
            bench,
            everyone,
            lambda asked: closed_loop(asked.target, CONNECTIONS, bench.seconds),
        )
        by_wrk = (
            _rounds(
                bench,
                everyone,
                lambda asked: wrk_loop(asked.target, CONNECTIONS, bench.seconds),
            )
            if WRK
            else []
        )
        half = 0.5 * float(np.median([m.rate for m in measured[0]]))
        asked_openly = [ours, *(others[peer] for peer in (ECHO,) if peer in others)]
        opened = _rounds(
            bench,
            asked_openly,
            lambda asked: constant_rate(asked.target, bench.seconds, half),
        )
    for client, rounds in (("", measured), (" (wrk)", by_wrk)):
        by_peer = dict(zip(others, rounds[3:], strict=True)) if rounds else {}
        if rounds:
            yield table.compared(
                f"{ONE_ROW}{client}, from an array",
                "from a frame",
                rounds[2],
                rounds[0],
                0.95,
            )
        for peer, target in targets:
            if peer is ECHO and peer in by_peer:
                # wrk sends requests to the echo twice as fast as the polling client.
                of_echo = (None, None) if client else (0.25, 0.35)
                yield table.compared(
                    ONE_ROW + client,
                    ECHO.name,
                    rounds[0],
                    by_peer[peer],
                    of_echo[0],
                )
                yield table.compared(
                    f"{ONE_ROW}{client}, capture off",
                    ECHO.name,
                    rounds[1],
                    by_peer[peer],
                    of_echo[1],
                )
            elif peer in by_peer:
                yield table.compared(ONE_ROW + client, peer.name, rounds[0], by_peer[peer], target)
    if not by_wrk:
        bench.notes.append("wrk is not installed: only the polling client was used")
    for measurements, name, target in zip(
        opened,
        ("own p50", f"{ECHO.name}, its own p50"),
        (1.0, None),
        strict=False,
    ):
        tails = [m.p99 * 1e3 for m in measurements]
        medians = [5 * m.p50 * 1e3 for m in measurements]
        yield table.times_less(
            f"open loop at {half:,.0f}/s: p99 compared with 5 × p50",
            name,
            tails,
            medians,
            "ms",
            target,
        )
    wrong = sum(m.wrong for rounds in (*measured, *by_wrk, *opened) for m in rounds)
    bench.notes.append(f"{ONE_ROW}: {wrong} wrong answers of all servers together")


def mixed_row(bench: Bench) -> Iterator[table.Row]:
    """Measure one flight: strings, integers, booleans and floats."""
    model, rows, answers = models.flights(bench.folder)
    expected = [bool(answers[0])]
    forms = {
        "dataframe_split": models.as_split(rows.head(1)),
        "dataframe_records": models.as_json(
            dataframe_records=json.loads(rows.head(1).to_json(orient="records")),
        ),
    }
    yield from _against_mlflow(bench, model, "1 flight, mixed columns, {}", forms, expected, 25)


def big_table(bench: Bench) -> Iterator[table.Row]:
    """Measure 10,000 rows of thirty floats: JSON and Arrow."""
    model, data, _ = models.small(bench.folder)
    rows = models.tiled(data)
    expected = _scikit_learn(model, rows)
    forms = {"JSON": models.as_split(rows)}
    yield from _against_mlflow(
        bench,
        model,
        "10,000 rows × 30, {}",
        forms,
        expected,
        5,
        models.as_arrow(rows),
    )


def _against_mlflow(
    bench: Bench,
    model: models.Model,
    work: str,
    forms: dict[str, bytes],
    expected: list[Any],
    target: float,
    arrow: bytes | None = None,
) -> Iterator[table.Row]:
    """Send the same bodies to MLflow's own server and to ours; an Arrow body of ours is
    compared with MLflow's JSON.
    """
    with ExitStack() as stack:
        first = next(iter(forms.values()))
        ours = _ours(bench, stack, model.ours, first, expected)
        theirs = _peer(bench, stack, MLFLOW, model, first, expected, 0)
        if theirs is None:
            return
        asked = []
        for body in forms.values():
            asked += [
                _asked(OURS, ours.server, body, expected),
                _asked(MLFLOW, theirs.server, body, expected),
            ]
        if arrow is not None:
            raw = post(
                "/invocations",
                arrow,
                "application/vnd.apache.arrow.stream",
                Accept="application/json",
            )
            asked.append(replace(ours, target=replace(ours.target, raw=raw)))
        connections = CONNECTIONS if len(expected) == 1 else 2
        measured = _rounds(
            bench,
            asked,
            lambda one: closed_loop(one.target, connections, bench.seconds),
        )
    for position, name in enumerate(forms):
        mine = measured[2 * position]
        other = measured[2 * position + 1]
        yield table.compared(work.format(name), MLFLOW.name, mine, other, target)
    if arrow is not None:
        yield table.compared(
            work.format("Arrow"),
            f"{MLFLOW.name}, JSON",
            measured[-1],
            measured[1],
            20,
        )


def batching(bench: Bench) -> Iterator[table.Row]:
    """Measure images from 64 clients, as binary tensors: ours with and without
    batching, and LitServe with batching.
    """
    for name, size, make in (
        ("torch CNN", 8, models.digits_cnn),
        ("ResNet18, 3×32×32", 4, models.resnet18),
    ):
        model, image, expected = make(bench.folder)
        body = models.as_json(inputs=image.tolist())
        with ExitStack() as stack:
            on = (
                "-C",
                f"server.max_batch_size={size}",
                "-C",
                "server.max_queue_delay_microseconds=500",
            )
            ours = _ours(bench, stack, model.ours, body, expected, *on)
            off = _ours(bench, stack, model.ours, body, expected, "-C", "server.max_batch_size=1")
            lit = replace(
                LITSERVE,
                name=f"{LITSERVE.name}, batches of {size}",
                command=(*LITSERVE.command, str(size)),
            )
            theirs = _peer(bench, stack, lit, model, body, expected, 0)
            everyone = [ours, off] + ([theirs] if theirs else [])
            measured = _rounds(
                bench,
                everyone,
                lambda a: closed_loop(a.target, BATCH_CONNECTIONS, bench.seconds),
            )
        work = f"{name}, batches of {size}"
        yield table.compared(work, "onnxserve, batching off", measured[0], measured[1], 1.2)
        if theirs:
            yield table.compared(work, lit.name, measured[0], measured[2], 1.0)


def start_and_memory(bench: Bench) -> Iterator[table.Row]:
    """Measure the time from the command to the first response, and the memory of the
    worker at that time.
    """
    model, data, answers = models.small(bench.folder)
    row = data.to_numpy()[:1].tolist()
    v2 = models.as_json(inputs=[{"name": "x", "shape": [1, 30], "datatype": "FP64", "data": row}])
    split = models.as_split(data.head(1))
    plain = models.as_json(inputs=row)
    expected = [int(answers[0])]
    targets = {MLFLOW: (5, 3), BENTOML: (None, None), MLSERVER: (None, None)}
    peers = [peer for peer in targets if bench.wants(peer)]
    seconds: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    for _ in range(bench.rounds):
        for peer in (OURS, *peers):
            with ExitStack() as stack:
                if peer is OURS:
                    server = _ours(bench, stack, model.ours, split, expected).server
                elif asked := _peer(
                    bench,
                    stack,
                    peer,
                    model,
                    _form(peer, plain, v2, split),
                    expected,
                    0,
                ):
                    server = asked.server
                else:
                    continue
                seconds.setdefault(peer.name, []).append(server.start_seconds)
                memory.setdefault(peer.name, []).append(_worker_memory(server))
    mine = OURS.name
    for peer in (peer for peer in peers if peer.name in seconds):
        other, (faster, smaller) = peer.name, targets[peer]
        yield table.times_less(
            "start to first response",
            other,
            seconds[mine],
            seconds[other],
            "s",
            faster,
        )
        yield table.times_less(
            "memory of the worker (PSS)",
            other,
            memory[mine],
            memory[other],
            "MB",
            smaller,
        )


WORKS: dict[str, Callable[[Bench], Iterator[table.Row]]] = {
    "one-row": one_row,
    "mixed": mixed_row,
    "table": big_table,
    "batching": batching,
    "start": start_and_memory,
}


def _form(peer: Peer, body: bytes, v2: bytes, split: bytes) -> bytes:
    """Return the row in the form that this server's users send; MLflow takes rows
    without names only for tensors.
    """
    if peer is MLFLOW:
        return split
    if peer.is_v2:
        return v2
    return body


def _worker_memory(server: Server) -> float:
    """Return the memory of the largest process in megabytes; for ours only gunicorn's,
    without agent and supervisor.
    """
    processes = server.processes()
    workers = [process for process in processes if process.name() == "gunicorn"]
    return max(process.memory_full_info().pss for process in workers or processes) / 1e6


def _rounds(
    bench: Bench,
    everyone: Sequence[Asked],
    measure: Callable[[Asked], Measured],
) -> list[list[Measured]]:
    """Run the rounds in the order A B C A B C …, so that a disturbance of the machine
    affects all servers.
    """
    measured: list[list[Measured]] = [[] for _ in everyone]
    for asked in everyone:
        if asked.polls:
            asked.server.pause()
    for number in range(bench.rounds):
        bench.say(f"  round {number + 1} of {bench.rounds}")
        for asked, results in zip(everyone, measured, strict=True):
            if asked.polls:
                asked.server.go_on()
            results.append(measure(asked))
            if asked.polls:
                asked.server.pause()
    for asked in everyone:
        if asked.polls:
            asked.server.go_on()
    return measured


def _ours(
    bench: Bench,
    stack: ExitStack,
    model: Path,
    body: bytes,
    expected: list[Any],
    *config: str,
) -> Asked:
    words = {"ours": str(model)}
    command = (*OURS.command, *config)
    return _started(bench, stack, replace(OURS, command=command), Path("/"), words, body, expected)


def _peer(
    bench: Bench,
    stack: ExitStack,
    peer: Peer,
    model: models.Model,
    body: bytes,
    expected: list[Any],
    answer: int,
) -> Asked | None:
    """Return the started peer; None if it cannot be started,
    with a note of the reason.
    """
    if not bench.wants(peer):
        return None
    try:
        programs = environment(peer.requirements[0].split("=")[0], peer.requirements)
        words = {
            "mlflow": model.mlflow,
            "onnx": model.onnx,
            "pickled": model.pickled,
            "answer": answer,
        }
        asked = _started(bench, stack, peer, programs, words, body, expected)
    except (NotInstalled, NotStarted) as error:
        bench.notes.append(f"{peer.name} was skipped: {error}")
        return None
    if (note := f"{peer.name}: {versions(programs, *peer.shown)}") not in bench.notes:
        bench.notes.append(note)
    return asked


def _started(
    bench: Bench,
    stack: ExitStack,
    peer: Peer,
    programs: Path,
    words: dict[str, Any],
    body: bytes,
    expected: list[Any],
) -> Asked:
    port = free_port()
    work = bench.work_folder()
    words = {**words, "bin": programs, "port": port, "here": HERE, "work": work}
    if peer is MLSERVER:
        _write_mlserver(work, port, words["onnx"])
    command = [word.format(**words) for word in peer.command]
    variables = {name: value.format(**words) for name, value in peer.environment.items()}
    url = f"http://127.0.0.1:{port}{peer.path}"
    question = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    server = stack.enter_context(
        running(peer.name, command, port, work / "log", variables, question),
    )
    return _asked(peer, server, body, expected)


def _asked(peer: Peer, server: Server, body: bytes, expected: list[Any]) -> Asked:
    """Return the request with this body after checking its response; every later
    response must contain the same bytes.
    """
    raw = post(peer.path, body)
    answer = _body_of(Target(server.port, raw, b""), server)
    if peer is ECHO or peer.name == ECHO.name:
        return Asked(server, Target(server.port, raw, answer))
    document = json.loads(answer)
    values = document["outputs"][0]["data"] if peer.is_v2 else document["predictions"]
    found = np.asarray(values, dtype=np.float64).ravel()
    wanted = np.asarray(expected, dtype=np.float64).ravel()
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-3, atol=1e-4):
        raise AssertionError(f"{server.name} answers {answer[:200]!r}; expected {wanted[:5]}")
    fragment = answer[answer.index(b'"data":') :] if peer.is_v2 else answer
    return Asked(server, Target(server.port, raw, fragment), peer.polls)


def _body_of(target: Target, server: Server) -> bytes:
    head, _, body = target.raw.partition(b"\r\n\r\n")
    path = head.split(b" ")[1].decode()
    question = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}",
        body,
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(question, timeout=60) as answer:
        return bytes(answer.read())


def _write_mlserver(work: Path, port: int, onnx: Path) -> None:
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
    }
    settings |= {"parallel_workers": 0, "debug": False}
    (work / "settings.json").write_text(json.dumps(settings))
    model = {
        "name": "small",
        "implementation": "mlserver_onnx.OnnxModel",
        "parameters": {"uri": str(onnx)},
    }
    (work / "model-settings.json").write_text(json.dumps(model))


def _scikit_learn(model: models.Model, rows: Any) -> list[Any]:
    import pickle

    with model.pickled.open("rb") as file:
        answers: list[Any] = pickle.load(file).predict(rows).tolist()
    return answers
