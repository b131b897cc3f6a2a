"""The memory and time that a loaded version takes, measured in a process of its own that holds nothing else.

`python -m mlflow_deploy_plugin.gate.measure FOLDER ROWS BATCH` loads the model, prints the memory that this has added
to the process, and measures one round for each line that it reads. The rounds of two versions alternate, so that other
load on this machine meets both; the ratio is the median over the rounds.
"""

import json
import pickle
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError
from mlflow_deploy_plugin.gate.model import load_version
from mlflow_deploy_plugin.runtime import Array, Feeds

ROUNDS = 7
_ROUND_SECONDS = 0.05
_MAX_TIMES, _MIN_TIMES = 300, 3
_START_TIMEOUT_SECONDS = 300.0
_ROUND_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, eq=False)
class MeasuredCost:
    """The cost of one version.

    Attributes:
        memory: bytes that loading it and predicting a batch added to its process.
        rows, batches: by round, the seconds of each prediction for one row, and for a batch.
    """

    memory: float
    rows: tuple[Array, ...]
    batches: tuple[Array, ...]


def measure_costs(folders: Sequence[Path], rows: Feeds, batch: int, rounds: int = ROUNDS) -> list[MeasuredCost]:
    """Measure the versions side by side, in alternate rounds.

    Raises:
        InferenceError: a version does not load, refuses the rows, or does not answer in time.
    """
    with tempfile.TemporaryDirectory(prefix="onnxserve-measure-") as temporary, ExitStack() as processes:
        file = Path(temporary, "rows")
        file.write_bytes(pickle.dumps({name: array[:batch] for name, array in rows.items()}))
        # the children load at the same time: only the memory of loading counts, and each process has its own
        children = [processes.enter_context(_start_child(folder, file, batch)) for folder in folders]
        memory = [child.read_answer(_START_TIMEOUT_SECONDS)["memory"] for child in children]
        answers = [[child.measure_round() for child in children] for _ in range(rounds)]
    return [
        MeasuredCost(
            memory[place],
            tuple(np.array(answer[place]["rows"]) for answer in answers),
            tuple(np.array(answer[place]["batches"]) for answer in answers),
        )
        for place in range(len(folders))
    ]


def median_ratio(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """Return the median over the rounds of the ratio of the medians."""
    return float(np.median([np.median(one) / np.median(other) for one, other in zip(ours, theirs, strict=True)]))


class _Child:
    """The process that measures one version; `log` gets its stderr."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._process, self._log = process, log

    def measure_round(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # read_answer says why it has ended
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        return self.read_answer(_ROUND_TIMEOUT_SECONDS)

    def read_answer(self, timeout: float) -> dict[str, Any]:
        """Return the next answer of the process, which writes one line at a time."""
        assert self._process.stdout is not None
        with selectors.PollSelector() as selector:  # select() refuses a file that is opened after 1,023 others
            selector.register(self._process.stdout, selectors.EVENT_READ)
            is_ready = selector.select(timeout)
        if not is_ready:
            raise InferenceError(f"the model did not answer a measurement within {timeout:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise InferenceError(f"the process that measures the model has ended: {(last or ['no reason'])[0][:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def _start_child(folder: Path, rows: Path, batch: int) -> Iterator[_Child]:
    command = [sys.executable, "-m", "mlflow_deploy_plugin.gate.measure", str(folder), str(rows), str(batch)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            yield _Child(process, log)
        finally:
            process.kill()
            process.communicate()


def _main(folder: str, rows_file: str, batch: str) -> None:
    import psutil  # imported late: the parent does not need it

    from mlflow_deploy_plugin.runtime import import_onnxruntime

    output, sys.stdout = sys.stdout, sys.stderr  # a model may print
    rows: Feeds = pickle.loads(Path(rows_file).read_bytes())
    total = len(next(iter(rows.values())))
    many = {name: array[np.resize(np.arange(total), int(batch))] for name, array in rows.items()}
    ones = [{name: array[place : place + 1] for name, array in rows.items()} for place in range(total)]
    import_onnxruntime()  # every server has it in memory anyway, so it does not count for the model
    process = psutil.Process()
    before = process.memory_info().rss
    model = load_version(Path(folder))
    model.predict(ones[0])
    model.predict(many)
    print(json.dumps({"memory": max(process.memory_info().rss - before, 0)}), file=output, flush=True)
    for _ in sys.stdin:
        answer = {"rows": _times(model, ones), "batches": _times(model, [many])}
        print(json.dumps(answer), file=output, flush=True)


def _times(model: Any, inputs: list[Feeds]) -> list[float]:
    """Predict the inputs in turn for `_ROUND_SECONDS`; return the seconds of each prediction."""
    times: list[float] = []
    end = time.perf_counter() + _ROUND_SECONDS
    while len(times) < _MIN_TIMES or (len(times) < _MAX_TIMES and time.perf_counter() < end):
        start = time.perf_counter()
        model.predict(inputs[len(times) % len(inputs)])
        times.append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    _main(*sys.argv[1:])
