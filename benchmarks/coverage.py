"""Determine which models are served as ONNX or as pyfunc, and if their predictions
equal the original's, through HTTP.

    # everything; five minutes on two cores
    .venv/bin/python benchmarks/coverage.py
    # cases whose name contains one of these words
    .venv/bin/python benchmarks/coverage.py --only hist text

The cases are every estimator of scikit-learn, some 180 pipelines and boosters of three
libraries, and neural networks. Each is logged by `log_model`, which uses MLflow's own
flavor for models without an ONNX form, and served by `onnxserve serve`, a dozen per
server. Each receives hostile rows (`covering/rows.py`) that the proof does not use. A
separate judge (`covering/judge.py`) compares each prediction with the original's:
`equal` (ONNX), `pyfunc` (equal, with the reason for the missing ONNX form), `refused`,
`wrong` or `crashed`. The exit status is 1 if any case is refused, wrong or crashed.
"""

import argparse
import logging
import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core runs one process
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":
    # numba would import this file as `coverage`
    sys.path.remove(str(Path(__file__).resolve().parent))

from benchmarks.covering import estimators, nets, pipelines
from benchmarks.covering.judge import OUTCOMES, SEED, Case, Verdict, judge, judge_converter

_WIDTH = 150
_TOGETHER = 12
"""The cases that one server serves."""


def every_case() -> dict[str, Callable[[], Case]]:
    return dict(
        [
            *estimators.cases(),
            *pipelines.cases(),
            *nets.cases(),
        ],
    )


def verdicts_on(
    names: list[str], converter: str | None, seed: int
) -> tuple[list[Verdict], list[str]]:
    """Return the verdicts on the cases with these names, and the reasons why other
    cases cannot be judged.
    """
    logging.disable(logging.WARNING)
    cases = {}
    without = []
    for name in names:
        try:
            cases[name] = every_case()[name]()
        except LookupError as error:
            without.append(f"{name}: {error}")
    if converter is None:
        return judge(cases, seed), without
    module, _, function = converter.partition(":")
    return judge_converter(cases, getattr(import_module(module), function), seed), without


def report(verdicts: list[Verdict]) -> str:
    """Return one line per case, with the failed cases last."""
    lines = []
    for one in sorted(verdicts, key=lambda one: (OUTCOMES.index(one.outcome), one.name.lower())):
        wrong = " ".join(f"{kind}={count}" for kind, count in one.wrong.items())
        said = " ".join(f"{wrong} {one.said}".split())[:_WIDTH]
        lines.append(
            f"{one.outcome:8} {one.name:48} {one.rows:6} rows {one.ties:4} ties "
            f"{one.seconds:6.1f} s  {said}",
        )
    return "\n".join(lines)


def summary(verdicts: list[Verdict], count: int) -> str:
    """Return a table of the outcomes, of all cases and by kind."""
    kinds = {"models": "", "boosters": "booster", "nets": " net "}
    heads = [f"of {count}", "judged", *OUTCOMES]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for kind, part in kinds.items():
        some = [one.outcome for one in verdicts if part in one.name]
        counts = [str(some.count(outcome)) for outcome in OUTCOMES]
        lines.append(f"| {kind} | {len(some)} | {' | '.join(counts)} |")
    wrong = [one for one in verdicts if one.outcome == "wrong"]
    plain = sum(any(kind in ("fresh", "trained") for kind in one.wrong) for one in wrong)
    edges = sum(all(kind.startswith("edges") for kind in one.wrong) for one in wrong)
    unanswered = sum(one.unanswered == one.wrong.total() for one in wrong)
    lines += [
        f"{sum(one.rows for one in verdicts):,} compared rows. Of the wrong, {plain} are wrong for "
        f"fresh or trained rows, {edges} only where the prediction jumps, and {unanswered} only "
        "refuse rows.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the cases' names")
    parser.add_argument("--converter", help="module:function that is judged instead of onnxserve")
    parser.add_argument(
        "--plain",
        dest="converter",
        action="store_const",
        const="benchmarks.covering.plain:convert",
        help="judge skl2onnx, onnxmltools, and the exports of CatBoost, torch and Keras",
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the hostile rows")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, help="then judge no further cases")
    asked = parser.parse_args()
    wanted = [part.lower() for part in asked.only]
    names = [
        name for name in every_case() if not wanted or any(part in name.lower() for part in wanted)
    ]
    random.Random(0).shuffle(names)  # a part of the cases has all kinds
    parts = [names[start : start + _TOGETHER] for start in range(0, len(names), _TOGETHER)]
    verdicts: list[Verdict] = []
    without: list[str] = []
    begun = time.monotonic()
    with ProcessPoolExecutor(asked.processes) as pool:
        futures = [pool.submit(verdicts_on, part, asked.converter, asked.seed) for part in parts]
        for done in as_completed(futures):
            if done.cancelled():
                continue
            found, none = done.result()
            verdicts += found
            without += none
            count = len(verdicts) + len(without)
            print(f"{count} of {len(names)}", file=sys.stderr, flush=True)
            if asked.seconds is not None and time.monotonic() - begun > asked.seconds:
                for future in futures:
                    future.cancel()
    print(report(verdicts))
    print(f"\nnot judged ({len(without)}): " + "; ".join(sorted(without)))
    print(f"\n{summary(verdicts, len(names) - len(without))}")
    return 1 if any(one.outcome in ("refused", "wrong", "crashed") for one in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
