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
import pickle
import re
import resource
import runpy
import signal
import subprocess
import sys
import tarfile
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core runs one process
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import sklearn
from sklearn.utils import all_estimators

from benchmarks.coverage import report
from benchmarks.covering.judge import OUTCOMES, Case, Verdict, judge
from benchmarks.serving.environments import CACHE

_DOWNLOADS = re.compile(r"\bfetch_\w+\(|urlopen|urlretrieve|https?://\S+\.(csv|gz|bz2)")
_SECONDS = 90
_KILL = 600
_BYTES = 6 * 2**30
_COLUMNS = 100  # of wider rows, some columns would take most of the time


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
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(_SECONDS)
    try:
        runpy.run_path(str(path), run_name="__main__")
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - not our code
        return found, f"{type(error).__name__} {str(error)[:80]}"
    finally:
        signal.alarm(0)
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


def judged(path: Path) -> dict[str, Any]:
    """Return what an example gave: the error that ended it, verdicts, and the reasons
    why other estimators are not judged.
    """
    found, error = fitted(path)
    cases = {}
    without: Counter[str] = Counter()
    for number, (estimator, rows) in enumerate(found.values()):
        try:
            name = f"{path.stem} {number}: {type(estimator).__name__}"
            cases[name] = case_of(estimator, rows)
        except LookupError as reason:
            without[str(reason)] += 1
    return {"error": error, "without": without, "verdicts": judge(cases) if cases else []}


def in_process(path: Path) -> dict[str, Any]:
    """Run this file for one example in a process of its own, without a display."""
    if _DOWNLOADS.search(path.read_text()):
        return {"error": "downloads"}
    with TemporaryDirectory(prefix="onnxserve-gallery-") as folder:
        command = [sys.executable, __file__, "--run", str(path)]
        variables = os.environ | {"MPLBACKEND": "Agg", "TMPDIR": folder}
        try:
            subprocess.run(
                command, cwd=folder, env=variables, timeout=_KILL, capture_output=True, check=True
            )
        except subprocess.SubprocessError as error:
            return {"error": f"killed: {error}"[:300]}
        return pickle.loads((Path(folder) / "judged.pickle").read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the examples' paths")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--run", type=Path, help="one example, in this process")
    asked = parser.parse_args()
    if asked.run:
        Path("judged.pickle").write_bytes(pickle.dumps(judged(asked.run)))
        return 0
    root = examples()
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if not asked.only or any(part in str(path.relative_to(root)) for part in asked.only)
    ]
    verdicts: list[Verdict] = []
    without: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    with ThreadPoolExecutor(asked.processes) as pool:
        for path, done in zip(paths, pool.map(in_process, paths), strict=True):
            print(f"{path.name} {done['error']}", file=sys.stderr, flush=True)
            errors[done["error"].partition(" ")[0] or "ran to its end"] += 1
            without += done.get("without", Counter())
            verdicts += done.get("verdicts", [])
    print(report(verdicts))
    print("\nexamples: " + "; ".join(f"{kind}: {count}" for kind, count in errors.most_common()))
    print("not judged: " + "; ".join(f"{kind}: {count}" for kind, count in without.most_common()))
    counts = [sum(one.outcome == outcome for one in verdicts) for outcome in OUTCOMES]
    print(f"\n| judged | {' | '.join(OUTCOMES)} |\n{'|---' * 6}|")
    print(f"| {len(verdicts)} | {' | '.join(map(str, counts))} |")
    return 1 if any(counts[2:]) else 0


if __name__ == "__main__":
    sys.exit(main())
