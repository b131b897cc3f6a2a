"""Measure the microseconds that the steps of an endpoint add to a request.

    .venv/bin/python benchmarks/steps.py                     # about half a minute

Servers in this process have the same model, one without steps: `before` adds a column
to the columns that it received, and `after` returns a part of the outputs. Their rounds
alternate, so that a busy machine affects all of them. A row of the table is one form of
body and the functions of the steps: the median CPU time of the complete answer below
the worker's connection without and with steps, with capture and metrics on, their
ratio, and their difference. The models are those of `benchmarks/request_path.py`. The
exit status is 1 if a difference exceeds `MOST_MICROSECONDS`.
"""

import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import request_path

MOST_MICROSECONDS = 15.0
ROUNDS = 60
ROUND_REQUESTS = 200
BEFORE = """
def before(request):
    return {**request.inputs, "sent": [len(request.headers)]}
"""
AFTER = """
def after(outputs, request):
    return outputs["label"]
"""
STEPS = {"before": BEFORE, "after": AFTER, "both": BEFORE + AFTER}
LABELS = ("1 x 30 dataframe_split", "1 x 30 inputs, columns", "flight dataframe_records")


def open_server(root: Path, model: str, steps: str | None) -> Any:
    """Return a ready server of the model in this process."""
    from mlflow_deploy_plugin.core.statedir.files import WANTED, write_state
    from mlflow_deploy_plugin.core.statedir.models import Wanted
    from mlflow_deploy_plugin.serve import assembly

    variant = {
        "model_uri": "models:/m/1",
        "model": "m",
        "version": "1",
        "folder": str(request_path.MODELS / model),
    }
    endpoint = {"variants": {"v": variant}, "serve": {"steps": steps}}
    wanted = {"generation": 1, "endpoints": {model: endpoint}}
    write_state(root / WANTED, Wanted.model_validate(wanted))
    server = assembly.open_server(root)
    while reason := server.repository.not_ready_reason():
        print(reason, file=sys.stderr)
        time.sleep(0.2)
    return server


def answering(server: Any, body: request_path.Body) -> Callable[[], Any]:
    """Return a function that answers the request with the plan of its path."""
    from mlflow_deploy_plugin.serve.http.plan import PlanTable
    from mlflow_deploy_plugin.serve.messages import RawRequest

    plans = PlanTable(server)
    _, _, path, headers, content = body

    def answer() -> Any:
        return plans.answer(RawRequest("POST", path, headers, content))

    response = answer()
    assert response is not None, f"there is no plan for {body[0]}"
    assert response.status == 200, response.body
    return answer


def microseconds(answer: Callable[[], Any]) -> float:
    began = time.thread_time()
    for _ in range(ROUND_REQUESTS):
        answer()
    return (time.thread_time() - began) / ROUND_REQUESTS * 1e6


def main() -> int:
    if not request_path.MODELS.exists():
        command = [sys.executable, request_path.__file__, "--make-models"]
        subprocess.run(command, check=True)
    worst = 0.0
    print("| body | steps | without, µs | with, µs | ratio | difference, µs |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        bodies = [body for body in request_path.bodies() if body[0] in LABELS]
        for number, body in enumerate(bodies):
            answers = []
            for name, steps in {"": None, **STEPS}.items():
                root = Path(folder, f"{number}-{name}")
                root.mkdir()
                answers.append(answering(open_server(root, body[1], steps), body))
            gc.freeze()  # As in a worker.
            rounds = [[microseconds(answer) for answer in answers] for _ in range(ROUNDS)]
            plain, *stepped = zip(*rounds, strict=True)
            for name, times in zip(STEPS, stepped, strict=True):
                pairs = list(zip(plain, times, strict=True))
                added = statistics.median(second - first for first, second in pairs)
                ratio = statistics.median(second / first for first, second in pairs)
                worst = max(worst, added)
                medians = f"{statistics.median(plain):.1f} | {statistics.median(times):.1f}"
                print(f"| {body[0]} | {name} | {medians} | {ratio:.2f} | {added:.1f} |")
    print(f"worst difference: {worst:.1f} µs of at most {MOST_MICROSECONDS}")
    return int(worst > MOST_MICROSECONDS)


if __name__ == "__main__":
    sys.exit(main())
