"""Count how many of the estimators in scikit-learn's own gallery of examples are served
as ONNX, or as pyfunc, with the predictions of the original.

    # all examples; an hour on two cores
    .venv/bin/python benchmarks/gallery.py
    # examples whose path contains one of these words
    .venv/bin/python benchmarks/gallery.py --only ensemble tree

The examples are those of scikit-learn's sdist, run unchanged, each in a process of its
own, which then judges (`covering/judge.py`) every estimator of which the example called
`fit`, with rows of what it was fitted on. Examples that download data are left out.
"""

import argparse
import inspect
import os
import random
import re
import resource
import runpy
import sys
import tarfile
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from hashlib import sha256
from io import BytesIO
from multiprocessing import TimeoutError, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core runs one process
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import sklearn
from sklearn.utils import all_estimators

from benchmarks.coverage import report
from benchmarks.covering.converted import within
from benchmarks.covering.judge import OUTCOMES, Case, Verdict, empty_database, judge
from benchmarks.serving.environments import CACHE

_DOWNLOADS = re.compile(r"\bfetch_\w+\(|urlopen|urlretrieve|https?://\S+\.(csv|gz|bz2)")
_SECONDS = 90  # of an example, until it is ended
_CPU_SECONDS = 300  # of its process
_MOST = 10  # estimators of one example, drawn by chance
_BYTES = 6 * 2**30
_COLUMNS = 100  # of wider rows, some columns would take most of the time


@dataclass
class Judged:
    """What an example gave: the error that ended it, the verdicts on estimators that it
    fitted, and why others are not judged.
    """

    path: Path
    error: str
    verdicts: list[Verdict] = field(default_factory=list)
    without: Counter[str] = field(default_factory=Counter)


def examples() -> Path:
    """Return the folder of the examples of the installed scikit-learn, from the sdist
    that PyPI lists.
    """
    folder = CACHE / f"scikit_learn-{sklearn.__version__}"
    if not folder.exists():
        listed = urllib.request.urlopen("https://pypi.org/simple/scikit-learn/", timeout=60)
        sdist = rf'href="([^"]+/{folder.name}.tar.gz)#sha256=(\w+)"'
        address, digest = re.search(sdist, listed.read().decode()).groups()
        content = urllib.request.urlopen(address, timeout=60).read()
        if sha256(content).hexdigest() != digest:
            raise SystemExit(f"{address} has another digest than PyPI lists")
        with tarfile.open(fileobj=BytesIO(content)) as archive:
            archive.extractall(CACHE, filter="data")
    return folder / "examples"


def fitted(path: Path) -> tuple[dict[int, tuple[Any, Any]], str]:
    """Run an example, and return the estimators of which its own code called `fit`,
    with the rows of the last call, and the error that ended it.
    """
    found: dict[int, tuple[Any, Any]] = {}

    def recorded(method: Any) -> Any:
        @wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            answer = method(self, *args, **kwargs)
            if sys._getframe(1).f_code.co_filename == str(path):
                found[id(self)] = self, args[0] if args else kwargs.get("X")
            return answer

        return call

    parents = {parent for _, kind in all_estimators() for parent in kind.__mro__}
    for parent in parents:
        for name in ("fit", "fit_transform", "fit_predict"):
            if inspect.isfunction(method := vars(parent).get(name)):
                setattr(parent, name, recorded(method))
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, unlimited[1]))
    try:
        with within(_SECONDS):
            runpy.run_path(str(path), run_name="__main__")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - not our code
        return found, f"{type(error).__name__} {str(error)[:80]}"
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, unlimited)
    return found, ""


def case_of(estimator: Any, rows: Any) -> Case:
    """Return the case of a fitted estimator.

    Raises:
        LookupError: it cannot be judged, with the reason.
    """
    if not hasattr(estimator, "predict"):
        raise LookupError("only transforms" if hasattr(estimator, "transform") else "no new rows")
    if hasattr(rows, "toarray"):
        rows = rows.toarray()
    if isinstance(rows, list) and not isinstance(rows[0], str):
        rows = np.asarray(rows)
    if isinstance(rows, pd.Series):
        rows = rows.tolist()
    if not isinstance(rows, (pd.DataFrame, list)) and np.ndim(rows) != 2:
        raise LookupError("rows of another form")
    if np.ndim(rows) == 2 and np.shape(rows)[1] > _COLUMNS:
        raise LookupError(f"more than {_COLUMNS} columns")
    order = np.random.default_rng(0).permutation(len(rows))
    parts = order[: max(len(rows) // 2, 10)][:200], order[::-1][:100]
    if isinstance(rows, pd.DataFrame):
        example, fresh = (rows.iloc[part].reset_index(drop=True) for part in parts)
    elif isinstance(rows, list):
        example, fresh = ([rows[at] for at in part] for part in parts)
    else:
        example, fresh = (rows[part] for part in parts)
    try:
        estimator.predict(example)
    except Exception as error:
        raise LookupError(f"its own predict fails: {type(error).__name__}") from error
    return Case(estimator, example, fresh)


def judged(path: Path) -> Judged:
    """Run an example in this process, and judge estimators that it fitted."""
    found, error = fitted(path)
    cases = {}
    without: Counter[str] = Counter()
    for number, (estimator, rows) in enumerate(found.values()):
        name = f"{path.stem} {number}: {type(estimator).__name__}"
        try:
            cases[name] = case_of(estimator, rows)
        except LookupError as reason:
            without[str(reason)] += 1
    drawn = random.Random(0).sample(sorted(cases), min(len(cases), _MOST))
    without[f"more than {_MOST} of one example"] += len(cases) - len(drawn)
    try:
        return Judged(path, error, judge({name: cases[name] for name in drawn}), without)
    except Exception as fault:  # noqa: BLE001 - an original may refuse its own rows
        return Judged(path, f"unjudged: {type(fault).__name__}: {fault}")


def alone(path: Path) -> Judged:
    """Judge an example in a process that has nothing else to do, and is silent."""
    if _DOWNLOADS.search(path.read_text()):
        return Judged(path, "downloads")
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    with TemporaryDirectory(prefix="onnxserve-gallery-") as folder:
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, sys.stdout.fileno())
        os.dup2(silence, sys.stderr.fileno())
        return judged(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the examples' paths")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=np.inf, help="then judge no further")
    asked = parser.parse_args()
    paths = sorted(examples().rglob("*.py"))
    random.Random(0).shuffle(paths)  # a part of the examples has all kinds
    if asked.only:
        paths = [path for path in paths if any(part in str(path) for part in asked.only)]
    empty_database()  # once, before the processes fork
    done: list[Judged] = []
    end = time.monotonic() + asked.seconds
    with get_context("fork").Pool(asked.processes, maxtasksperchild=1) as pool:
        results = pool.imap_unordered(alone, paths)
        with suppress(TimeoutError):  # the system ends a process that takes too much
            while len(done) < len(paths):
                done.append(results.next(min(_CPU_SECONDS * 2, end - time.monotonic())))
                print(f"{done[-1].path.name} {done[-1].error}", file=sys.stderr, flush=True)
    verdicts = [verdict for one in done for verdict in one.verdicts]
    errors = Counter(one.error.partition(" ")[0] or "ran to its end" for one in done)
    errors["not judged"] = len(paths) - len(done)
    print(report(verdicts))
    print(f"\nexamples: {listed(errors)}")
    print(
        f"estimators that are not judged: {listed(sum((one.without for one in done), Counter()))}"
    )
    counts = [sum(one.outcome == outcome for one in verdicts) for outcome in OUTCOMES]
    print(f"\n| judged | {' | '.join(OUTCOMES)} |\n{'|---' * (1 + len(OUTCOMES))}|")
    print(f"| {len(verdicts)} | {' | '.join(map(str, counts))} |")
    return 1 if any(counts[2:]) else 0


def listed(counts: Counter[str]) -> str:
    return "; ".join(f"{name}: {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
