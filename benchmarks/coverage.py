"""Determine which models are served as ONNX or as pyfunc, and if their predictions
equal the original's, through HTTP.

    # everything; five minutes on two cores
    .venv/bin/python benchmarks/coverage.py
    # cases whose name contains one of these words
    .venv/bin/python benchmarks/coverage.py --only hist text
    # the converters that others use, on the same cases and rows
    .venv/bin/python benchmarks/coverage.py --plain
    # the estimators that scikit-learn's own examples fit: a random part in ten minutes
    .venv/bin/python benchmarks/coverage.py --gallery --seconds 600

The cases are those of `projects/converters`: every estimator of scikit-learn, some 180
pipelines and boosters of three libraries, and neural networks. Each is logged by
`log_model`, which uses MLflow's own flavor for models without an ONNX form, and served
by `onnxserve serve`, a dozen per server. Each receives hostile rows (`rows.py`) that
the proof does not use. A separate judge (`judge.py`) compares each prediction with the
original's: `equal` (ONNX), `pyfunc` (equal, with the reason for the missing ONNX form),
`refused`, `wrong` or `crashed`. The exit status is 1 if any case is refused, wrong or
crashed, or if none was judged.

`--converter module:function` judges another converter, without a server. Its function
receives a fitted model and the example (a table, a matrix, a list of texts), and
returns a ModelProto, its bytes, or a function of such rows. The outputs are the label
and the probabilities, or the prediction. An error refuses the model; an error like
KeyError is a crash. `--plain` is `--converter projects.converters.plain:convert`.
"""

import argparse
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core runs one process
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == "__main__":
    # numba would import this file as `coverage`
    sys.path.remove(str(Path(__file__).resolve().parent))

from projects.converters import estimators, gallery, nets, pipelines
from projects.converters.converted import load_converter
from projects.converters.judge import OUTCOMES, SEED, Case, Verdict, judge, judge_converter

_WIDTH = 150
_TOGETHER = 12
"""The cases that one server serves."""


def every_case() -> dict[str, Callable[[], Case]]:
    return dict([*estimators.cases(), *pipelines.cases(), *nets.cases()])


def verdicts_on(
    names: list[str], converter: str | None, seed: int
) -> tuple[list[Verdict], list[tuple[str, str]]]:
    """Return the verdicts on the cases with these names, or of one example of the
    gallery, and the names of other cases with the reasons why they cannot be judged.
    """
    logging.disable(logging.WARNING)
    sources = every_case()
    if names[0].endswith(".py"):
        sources = dict(gallery.cases(Path(names[0])))
        names = list(sources)
    cases = {}
    without = []
    for name in names:
        try:
            cases[name] = sources[name]()
        except LookupError as error:
            without.append((name, str(error)))
    if converter is None:
        return judge(cases, seed), without
    return judge_converter(cases, load_converter(converter), seed), without


def alone(
    example: list[str], converter: str | None, seed: int
) -> tuple[list[Verdict], list[tuple[str, str]]]:
    """Return `verdicts_on` from a process that ends with the example."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["projects.converters.gallery"])  # it takes seconds
    try:
        with ProcessPoolExecutor(1, context) as pool:
            return pool.submit(verdicts_on, example, converter, seed).result()
    except Exception as error:  # noqa: BLE001 - the process may be killed
        return [], [(Path(example[0]).name, f"not judged: {type(error).__name__} {error}")]


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
        const="projects.converters.plain:convert",
        help="judge skl2onnx, onnxmltools, and the exports of CatBoost, torch and Keras",
    )
    parser.add_argument(
        "--gallery", action="store_true", help="judge the estimators of scikit-learn's examples"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the hostile rows")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, help="then judge no further cases")
    asked = parser.parse_args()
    if asked.converter is not None:
        try:
            load_converter(asked.converter)
        except (ImportError, AttributeError, ValueError) as error:
            parser.error(f"--converter {asked.converter}: {error}")
    wanted = [part.lower() for part in asked.only]
    every = map(str, gallery.examples()) if asked.gallery else every_case()
    names = [name for name in every if not wanted or any(part in name.lower() for part in wanted)]
    random.Random(0).shuffle(names)  # a part of the cases has all kinds
    together = 1 if asked.gallery else _TOGETHER
    parts = [names[start : start + together] for start in range(0, len(names), together)]
    executor = ThreadPoolExecutor if asked.gallery else ProcessPoolExecutor
    work = alone if asked.gallery else verdicts_on
    verdicts: list[Verdict] = []
    without: list[tuple[str, str]] = []
    begun = time.monotonic()
    ended = 0
    with executor(asked.processes) as pool:
        futures = [pool.submit(work, part, asked.converter, asked.seed) for part in parts]
        for done in as_completed(futures):
            if done.cancelled():
                continue
            found, none = done.result()
            verdicts += found
            without += none
            ended += 1
            print(f"{ended} of {len(parts)} parts", file=sys.stderr, flush=True)
            if asked.seconds is not None and time.monotonic() - begun > asked.seconds:
                for future in futures:
                    future.cancel()
    print(report(verdicts))
    print(f"\n{ended} of {len(parts)} parts; seed {asked.seed}; not judged ({len(without)}):")
    for reason, count in Counter(reason for _, reason in without).most_common():
        print(f"{count} {reason}: {' '.join(name for name, why in without if why == reason)}")
    count = len(verdicts) if asked.gallery else len(names) - len(without)
    print(f"\n{summary(verdicts, count)}")
    is_equal = all(one.outcome in ("equal", "pyfunc") for one in verdicts)
    return 0 if verdicts and is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
