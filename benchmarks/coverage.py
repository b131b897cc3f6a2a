"""Which models are served, as ONNX or as pyfunc, and whether they answer as their original, asked through HTTP.

    .venv/bin/python benchmarks/coverage.py                   # everything; five minutes on two cores
    .venv/bin/python benchmarks/coverage.py --only hist text  # cases whose name has one of these in it

Every estimator of scikit-learn, some sixty pipelines, boosters of three libraries and nets. Each is logged as any user
would (`log_model`, which logs by MLflow's own flavor what has no ONNX form), served by `onnxserve serve`, a dozen to a
server, and asked hostile rows (`covering/rows.py`) that the proof never drew. A judge of its own
(`covering/judge.py`) compares each answer with the original's: `equal` (ONNX), `pyfunc` (equal, and why it is no ONNX),
`refused`, `wrong` or `crashed`. The exit status is 1 where any is one of the last three.
"""

import argparse
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core has a process
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # numba would take this file for the package `coverage`

from benchmarks.covering import boosters, estimators, libraries, nets, pipelines
from benchmarks.covering.judge import OUTCOMES, Case, Verdict, judge

_WIDTH = 150
_TOGETHER = 12
"""Cases that one server serves."""


def every_case() -> dict[str, Callable[[], Case]]:
    return dict([*estimators.cases(), *pipelines.cases(), *boosters.cases(), *nets.cases(), *libraries.cases()])


def verdicts_on(names: list[str]) -> tuple[list[Verdict], list[str]]:
    """The verdicts on cases by their names, and why there is nothing to judge of others."""
    logging.disable(logging.WARNING)
    cases, without = {}, []
    for name in names:
        try:
            cases[name] = every_case()[name]()
        except LookupError as error:
            without.append(f"{name}: {error}")
    return judge(cases), without


def report(verdicts: list[Verdict]) -> str:
    """One line a case, the bad ones last."""
    lines = []
    for one in sorted(verdicts, key=lambda one: (OUTCOMES.index(one.outcome), one.name.lower())):
        wrong = " ".join(f"{kind}={count}" for kind, count in one.wrong.items())
        said = " ".join(f"{wrong} {one.said}".split())[:_WIDTH]
        lines.append(f"{one.outcome:8} {one.name:48} {one.rows:6} rows {one.ties:4} ties {one.seconds:6.1f} s  {said}")
    return "\n".join(lines)


def summary(verdicts: list[Verdict], seconds: float) -> str:
    """The counts and shares of the outcomes, of all cases and by kind."""
    parts = {"boosters": "booster ", "nets": " net "}
    kinds = {"all": verdicts, **{kind: [one for one in verdicts if part in one.name] for kind, part in parts.items()}}
    lines = [f"{'':10}{'models':>8}" + "".join(f"{outcome:>16}" for outcome in OUTCOMES)]
    for kind, some in kinds.items():
        counts = Counter(one.outcome for one in some)
        shares = (f"{counts[outcome]} ({counts[outcome] / max(len(some), 1):.1%})" for outcome in OUTCOMES)
        lines.append(f"{kind:10}{len(some):8}" + "".join(f"{share:>16}" for share in shares))
    return "\n".join([*lines, f"{sum(one.rows for one in verdicts):,} rows through HTTP, {seconds:.0f} s"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the cases' names")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args(arguments)
    wanted = [part.lower() for part in asked.only]
    names = [name for name in every_case() if not wanted or any(part in name.lower() for part in wanted)]
    start = time.perf_counter()
    verdicts: list[Verdict] = []
    without: list[str] = []
    with ProcessPoolExecutor(asked.processes) as pool:
        parts = [names[position :: -(-len(names) // _TOGETHER)] for position in range(-(-len(names) // _TOGETHER))]
        for done in as_completed([pool.submit(verdicts_on, part) for part in parts]):
            found, none = done.result()
            verdicts += found
            without += none
            said = ", ".join(f"{one.name}: {one.outcome}" for one in found)
            print(f"{len(verdicts) + len(without):4} of {len(names)}: {said}", file=sys.stderr)
    print(report(verdicts))
    print(f"\nnothing to ask ({len(without)}): " + "; ".join(sorted(without)))
    print(f"\n{summary(verdicts, time.perf_counter() - start)}")
    return 1 if any(one.outcome in ("refused", "wrong", "crashed") for one in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
