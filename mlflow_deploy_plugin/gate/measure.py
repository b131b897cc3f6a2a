"""What a loaded version costs: memory and time, measured in a process of its own that holds nothing else.

`python -m mlflow_deploy_plugin.gate.measure FOLDER ROWS BATCH` loads the model, says what it added to the process'
memory, and measures one round for every line that it reads. Of two versions the rounds alternate, so that whatever else
this machine does meets both; the ratio is the median over the rounds.
"""

import json
import pickle
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlflow_deploy_plugin.errors import InferenceError
from mlflow_deploy_plugin.gate.model import load_version
from mlflow_deploy_plugin.runtime import Array, Feeds

ROUNDS = 7
_ROUND_SECONDS = 0.05
_MOST, _LEAST = 300, 3
_START_SECONDS = 300.0
_ANSWER_SECONDS = 120.0


@dataclass(frozen=True, eq=False)
class MeasuredCost:
    """What one version costs.

    Attributes:
        memory: bytes that loading it and answering a batch added to its process.
        rows / batches: seconds of each answer to one row, and to a batch, by round.
    """

    memory: float
    rows: tuple[Array, ...]
    batches: tuple[Array, ...]


def measure_costs(folders: Sequence[Path], rows: Feeds, batch: int, rounds: int = ROUNDS) -> list[MeasuredCost]:
    """The cost of each version, side by side.

    Raises:
        InferenceError: one does not load, does not answer the rows, or not in time.
    """
    with tempfile.TemporaryDirectory(prefix="onnxserve-measure-") as temporary, ExitStack() as processes:
        file = Path(temporary, "rows")
        file.write_bytes(pickle.dumps({name: array[:batch] for name, array in rows.items()}))
        # one after the other: of the loading it is the memory that counts, and that is each process' own
        children = [processes.enter_context(_child(folder, file, batch)) for folder in folders]
        memory = [child.hear(_START_SECONDS)["memory"] for child in children]
        answers = [[child.ask() for child in children] for _ in range(rounds)]
    return [
        MeasuredCost(
            memory[place],
            tuple(np.array(answer[place]["rows"]) for answer in answers),
            tuple(np.array(answer[place]["batches"]) for answer in answers),
        )
        for place in range(len(folders))
    ]


def median_ratio(ours: Sequence[Array], theirs: Sequence[Array]) -> float:
    """The median over the rounds of the ratio of the medians."""
    return float(np.median([np.median(one) / np.median(other) for one, other in zip(ours, theirs, strict=True)]))


class _Child:
    def __init__(self, process: subprocess.Popen[bytes], folder: Path, log: IO[bytes]) -> None:
        self._process, self._folder, self._log = process, folder, log

    def ask(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last is told below
        return self.hear(_ANSWER_SECONDS)

    def hear(self, seconds: float) -> dict[str, Any]:
        """Its next line: it writes one at a time, and whole."""
        assert self._process.stdout is not None
        with selectors.PollSelector() as answers:  # select() refuses what this process opens after 1,023 other files
            answers.register(self._process.stdout, selectors.EVENT_READ)
            heard = answers.select(seconds)
        if not heard:
            raise InferenceError(f"the model did not answer a measurement within {seconds:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise InferenceError(f"the process that measures the model has ended: {(last or ['no reason'])[0][:300]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def _child(folder: Path, rows: Path, batch: int) -> Iterator[_Child]:
    command = [sys.executable, "-m", "mlflow_deploy_plugin.gate.measure", str(folder), str(rows), str(batch)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            yield _Child(process, folder, log)
        finally:
            process.kill()
            process.communicate()


def _main(folder: str, rows_file: str, batch: str) -> None:
    import psutil  # here: the parent does without

    from mlflow_deploy_plugin.runtime import import_onnxruntime

    answers, sys.stdout = sys.stdout, sys.stderr  # a model may print
    rows: Feeds = pickle.loads(Path(rows_file).read_bytes())
    total = len(next(iter(rows.values())))
    many = {name: array[np.resize(np.arange(total), int(batch))] for name, array in rows.items()}
    ones = [{name: array[place : place + 1] for name, array in rows.items()} for place in range(total)]
    import_onnxruntime()  # what every server has in memory already is not the model's
    process = psutil.Process()
    before = process.memory_info().rss
    model = load_version(Path(folder))
    model.predict(ones[0])
    model.predict(many)
    _say(answers, {"memory": max(process.memory_info().rss - before, 0)})
    for _ in sys.stdin:
        _say(answers, {"rows": _times(model, ones), "batches": _times(model, [many])})


def _times(model: Any, inputs: list[Feeds]) -> list[float]:
    """Seconds of each answer, for a twentieth of a second."""
    times: list[float] = []
    end = time.perf_counter() + _ROUND_SECONDS
    while len(times) < _LEAST or (len(times) < _MOST and time.perf_counter() < end):
        start = time.perf_counter()
        model.predict(inputs[len(times) % len(inputs)])
        times.append(time.perf_counter() - start)
    return times


def _say(output: IO[str], answer: dict[str, Any]) -> None:
    output.write(json.dumps(answer) + "\n")
    output.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
