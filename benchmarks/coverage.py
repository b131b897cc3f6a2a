"""Which models convert, and whether what is proven answers as its original on rows that the proof never drew.

    .venv/bin/python benchmarks/coverage.py                   # everything; two minutes on two cores
    .venv/bin/python benchmarks/coverage.py --only hist text  # cases whose name has one of these in it

Every estimator of scikit-learn, some sixty pipelines, boosters of three libraries and nets. Each is saved as any user
would, then asked hostile rows (`covering/rows.py`), and judged beside its original by a judge of its own
(`covering/judge.py`): `equal`, `refused` with a reason, `wrong` (the artifact answers otherwise, or not at all) or
`crashed` (logging ended in a traceback). The exit status is 1 where any is wrong or crashed.
"""

import argparse
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

from benchmarks.covering import boosters, estimators, nets, pipelines
from benchmarks.covering.judge import Case, Verdict, judge

_WIDTH = 150


def every_case() -> dict[str, Callable[[], Case]]:
    return dict([*estimators.cases(), *pipelines.cases(), *boosters.cases(), *nets.cases()])


def verdict(name: str) -> Verdict | str:
    """The verdict on a case by its name, or why there is nothing to judge."""
    try:
        case = every_case()[name]()
    except LookupError as error:
        return str(error)
    return judge(name, case)


def report(verdicts: list[Verdict]) -> str:
    """One line a case, the bad ones last."""
    order = ["equal", "refused", "wrong", "crashed"]
    lines = []
    for one in sorted(verdicts, key=lambda one: (order.index(one.outcome), one.name.lower())):
        wrong = " ".join(f"{kind}={count}" for kind, count in one.wrong.items())
        said = " ".join(f"{wrong} {one.said}".split())[:_WIDTH]
        lines.append(f"{one.outcome:8} {one.name:48} {one.rows:6} rows {one.ties:4} ties {one.seconds:6.1f} s  {said}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the cases' names")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args(arguments)
    wanted = [part.lower() for part in asked.only]
    names = [name for name in every_case() if not wanted or any(part in name.lower() for part in wanted)]
    start = time.perf_counter()
    verdicts, without = [], []
    with ProcessPoolExecutor(asked.processes) as pool:
        for done in as_completed(found := {pool.submit(verdict, name): name for name in names}):
            result = done.result()
            if isinstance(result, str):
                without.append(f"{found[done]}: {result}")
            else:
                verdicts.append(result)
                print(f"{len(verdicts):4} of {len(names)}: {result.name}: {result.outcome}", file=sys.stderr)
    print(report(verdicts))
    counts = Counter(one.outcome for one in verdicts)
    print(f"\nnothing to ask ({len(without)}): " + "; ".join(sorted(without)))
    print(
        f"\n{len(verdicts)} models: {counts['equal']} equal, {counts['refused']} refused, {counts['wrong']} wrong, "
        f"{counts['crashed']} crashed; {sum(one.rows for one in verdicts)} rows, {time.perf_counter() - start:.0f} s"
    )
    return 1 if counts["wrong"] or counts["crashed"] else 0


if __name__ == "__main__":
    sys.exit(main())
