"""The estimators that scikit-learn's own gallery of examples fits, as cases.

The examples come from its sdist and run unchanged. A case is an estimator that the code
of an example fits, with rows that it was fitted on.
"""

import inspect
import os
import re
import resource
import runpy
import sys
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import partial, wraps
from hashlib import sha256
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from joblib import parallel_config
from sklearn.utils import all_estimators

from projects.converters.converted import within
from projects.converters.judge import Case
from projects.environments import CACHE

os.environ["MPLBACKEND"] = "Agg"
_DOWNLOADS = re.compile(r"\bfetch_\w+\(|urlopen|urlretrieve|https?://\S+\.(csv|gz|bz2)")
_SECONDS = 90
_BYTES = 6 * 2**30
"""The limits of an example."""
_CPU_SECONDS = 300
"""The limit of a process that runs an example and judges its estimators."""
_MOST = 5
"""The estimators of an example that are judged, drawn by chance."""
_COLUMNS = 100
"""The judge would take minutes for wider rows."""


def examples() -> list[Path]:
    """Return the examples of the installed scikit-learn, from the sdist that PyPI
    lists.
    """
    folder = CACHE / f"scikit_learn-{sklearn.__version__}"
    if not folder.exists():
        listed = urllib.request.urlopen("https://pypi.org/simple/scikit-learn/", timeout=60)
        sdist = rf'href="([^"]+/{folder.name}\.tar\.gz)#sha256=(\w+)"'
        found = re.search(sdist, listed.read().decode())
        if found is None:
            raise SystemExit(f"PyPI lists no sdist of scikit-learn {sklearn.__version__}")
        address, digest = found.groups()
        content = urllib.request.urlopen(address, timeout=60).read()
        if sha256(content).hexdigest() != digest:
            raise SystemExit(f"{address} has another digest than PyPI lists")
        CACHE.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=CACHE) as whole:
            with tarfile.open(fileobj=BytesIO(content)) as archive:
                archive.extractall(whole, filter="data")
            (Path(whole) / folder.name).rename(folder)
    return sorted((folder / "examples").rglob("*.py"))


def cases(path: Path) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Run an example in this process, which judges nothing else, and return cases like
    `estimators.cases`.
    """
    found: list[tuple[Any, Any]] = []
    reason = "downloads data"
    if not _DOWNLOADS.search(path.read_text()):
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
        found, reason = _fitted(path)
    drawn = np.random.default_rng(0).permutation(len(found))
    for rank, number in enumerate(drawn):
        estimator, rows = found[number]
        name = f"{path.stem} {number}: {type(estimator).__name__}"
        if rank < _MOST:
            yield name, partial(_case, estimator, rows)
        else:
            yield name, partial(_none, f"more than {_MOST} of one example")
    if reason:
        yield f"{path.stem}.py", partial(_none, reason)


def _fitted(path: Path) -> tuple[list[tuple[Any, Any]], str]:
    """Return the estimators with the rows of their last `fit`, and the error that ended
    the example.
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

    for parent in {parent for _, kind in all_estimators() for parent in kind.__mro__}:
        for name in ("fit", "fit_transform", "fit_predict"):
            if inspect.isfunction(method := vars(parent).get(name)):
                setattr(parent, name, recorded(method))
    unlimited = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, unlimited[1]))
    try:
        with (
            TemporaryDirectory() as folder,
            chdir(folder),
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
            parallel_config("sequential"),  # no processes outlive the example
            within(_SECONDS),
        ):
            runpy.run_path(str(path), run_name="__main__")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - an example may raise any error
        return [*found.values()], f"ended by {type(error).__name__}"
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, unlimited)
    return [*found.values()], ""


def _none(reason: str) -> Case:
    raise LookupError(reason)


def _case(estimator: Any, rows: Any) -> Case:
    if not hasattr(estimator, "predict"):
        raise LookupError("only transforms" if hasattr(estimator, "transform") else "no new rows")
    if hasattr(rows, "toarray"):
        rows = rows.toarray()
    rows = rows.tolist() if isinstance(rows, pd.Series) else rows
    texts = isinstance(rows, list) and isinstance(rows[0], str)
    if not texts and not isinstance(rows, pd.DataFrame):
        rows = np.asarray(rows)
    if not texts and (rows.ndim != 2 or rows.shape[1] > _COLUMNS):
        raise LookupError(f"no table of at most {_COLUMNS} columns")
    order = np.random.default_rng(0).permutation(len(rows))
    parts = order[: max(len(rows) // 2, 10)][:200], order[::-1][:100]

    def drawn(part: np.ndarray) -> Any:
        if texts:
            return [rows[at] for at in part]
        if isinstance(rows, pd.DataFrame):
            return rows.iloc[part].reset_index(drop=True)
        return rows[part]

    example, fresh = map(drawn, parts)
    try:
        estimator.predict(example)
    except Exception as error:
        raise LookupError(f"its own predict ends in {type(error).__name__}") from error
    return Case(estimator, example, fresh)
