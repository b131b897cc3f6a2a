"""Cases, judged: log each model as any user would, serve it, ask through HTTP, and compare with the original.

Nothing of the proof is used: neither its rows (`rows.py`) nor its comparison. The bounds are those that docs/wrap.md
promises; a pyfunc has the same.
"""

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import mlflow
import numpy as np
import pandas as pd
from sklearn.base import is_classifier

import mlflow_deploy_plugin as onnxserve
from benchmarks.covering.rows import hostile
from benchmarks.covering.served import Refused, ServedModel, serving
from mlflow_deploy_plugin.errors import OnnxserveError
from tests.support.tracking import create_database, tracking_at

Outcome = Literal["equal", "pyfunc", "refused", "wrong", "crashed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_BOUND = 1e-4  # docs/wrap.md: of probabilities, of a value, and of the spread of the answers
_TIE = 1e-4
_ROUNDING = 3e-7  # of a number: what a computed distance or score cannot tell apart in 32-bit floats
_ONE_BY_ONE = 60  # rows of a group of which the original refuses some

_EXACT = (  # what decides by comparing single inputs, and sums; no rounding could excuse another answer there
    *("XGB", "LGBM", "CatBoost"),
    *("DecisionTree", "ExtraTree", "RandomForest", "GradientBoosting", "HistGradientBoosting", "IsolationForest"),
    *("Bagging", "AdaBoost", "Voting", "Stacking", "MultiOutput", "GridSearchCV", "RandomizedSearchCV", "Pipeline"),
    *("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "SimpleImputer", "ColumnTransformer"),
    *(
        "KBinsDiscretizer",
        "Binarizer",
        "OrdinalEncoder",
        "OneHotEncoder",
        "TargetEncoder",
        "Ridge",
        "LogisticRegression",
    ),
)


@dataclass(frozen=True)
class Case:
    """A fitted model with rows.

    Attributes:
        example: what the user logs it with: a table, a matrix, a list of texts, tensors by name.
        fresh: rows of the same form that the model has not seen.
    """

    model: Any
    example: Any
    fresh: Any


@dataclass
class Verdict:
    """What came of one case.

    Attributes:
        outcome: `equal` (as ONNX), `pyfunc` (served as such, and equal), `refused` (neither), `wrong` (what is served
            answers otherwise, or not at all), or `crashed` (logging ended in a traceback).
        rows / ties: asked and compared; left out because the original's own answer hangs on a rounding there.
        wrong: by the kind of rows.
        said: the first line of the refusal, of the crash, or why it is no ONNX; for a wrong one its worst row.
    """

    name: str
    outcome: Outcome
    said: str = ""
    rows: int = 0
    ties: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def judge(cases: Mapping[str, Case], seed: int = 20261121) -> list[Verdict]:
    """The verdicts on some cases, which one server serves."""
    verdicts, folders = {}, {}
    with TemporaryDirectory(prefix="onnxserve-coverage-") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(temporary)
        (root / "mlflow.db").write_bytes(_empty_database())
        with tracking_at(f"sqlite:///{root / 'mlflow.db'}"):
            mlflow.set_experiment(experiment_id=mlflow.create_experiment("coverage", str(root / "artifacts")))
            for number, (name, case) in enumerate(cases.items()):
                start = time.perf_counter()
                verdicts[name], folder = _log(name, case)
                verdicts[name].seconds = time.perf_counter() - start
                if folder is not None:
                    folders[name] = (f"case-{number}", folder)
        if folders:
            with serving(root, dict(folders.values())) as served:
                for name, (endpoint, _) in folders.items():
                    start = time.perf_counter()
                    _Judged(cases[name], served[endpoint], verdicts[name]).all(seed)
                    verdicts[name].seconds += time.perf_counter() - start
    return list(verdicts.values())


@cache
def _empty_database() -> bytes:
    """MLflow's tables: their migrations take seconds."""
    with TemporaryDirectory() as folder:
        create_database(Path(folder) / "mlflow.db")
        return (Path(folder) / "mlflow.db").read_bytes()


def _log(name: str, case: Case) -> tuple[Verdict, Path | None]:
    """What came of logging it, and the folder of what is to be served."""
    try:
        # with requirements, because MLflow finds them by loading the model in another process, for seconds
        info = onnxserve.log_model(case.model, "model", input_example=case.example, pip_requirements=["mlflow"])
    except OnnxserveError as error:
        return Verdict(name, "refused", error.message), None
    except Exception:  # noqa: BLE001 - a traceback at the user is what is looked for
        return Verdict(name, "crashed", traceback.format_exc().strip().splitlines()[-1]), None
    logged = mlflow.MlflowClient().get_logged_model(info.model_id)
    reason = logged.tags.get("onnxserve.fallback")
    verdict = Verdict(name, "equal") if reason is None else Verdict(name, "pyfunc", reason)
    return verdict, Path(logged.artifact_location)


class _Judged:
    """A served model and its original, asked the same rows."""

    def __init__(self, case: Case, served: ServedModel, verdict: Verdict) -> None:
        self._case, self._served, self._verdict = case, served, verdict
        self._exact = _is_exact(case.model)
        self._spread: np.ndarray | float = 0.0

    def all(self, seed: int) -> None:
        example, fresh = (_table(self._case, data) for data in (self._case.example, self._case.fresh))
        if example is None or fresh is None:
            self._spread = max(float(np.std(answer)) for answer in self._original(self._case.fresh).values())
            self._compare("fresh", self._case.fresh)
            self._small("fresh", self._case.fresh)
            return
        values = self._original(example).get("prediction")
        if values is not None and values.dtype.kind == "f":
            self._spread = np.nanstd(values.astype(np.float64), axis=0)
        for kind, rows in hostile(example, fresh, self._decision, seed):
            self._compare(kind, rows)
            if kind.startswith("strange"):
                for position in range(len(rows) // 2):
                    self._compare(f"{kind} alone", _slice(rows, position, position + 1))
        self._small("fresh", fresh)

    def _small(self, kind: str, rows: Any) -> None:
        """Rows alone, in twos and in sevens answer what they answer among many."""
        for size in (1, 2, 7):
            for start in range(0, 14, size):
                self._compare(f"{kind}, {size} at once", _slice(rows, start, start + size))

    def _compare(self, kind: str, rows: Any) -> None:
        try:
            want = self._original(rows)
        except Exception:  # noqa: BLE001 - whatever an original raises, it is its right
            if _count(rows) > 1:
                for position in range(min(_count(rows), _ONE_BY_ONE)):
                    self._compare(kind, _slice(rows, position, position + 1))
            return
        try:
            got = self._served.answers(rows, self._own(rows))
        except Refused as error:
            self._note(kind, _count(rows), f"refuses what the original answers: {error}")
            return
        if not self._served.is_onnx:
            want = dict([next(iter(want.items()))])
            got = dict(zip(want, got.values(), strict=True))
        self._verdict.rows += _count(rows)
        for name, expected in want.items():
            self._judge(kind, rows, name, expected, got[name], want)

    def _judge(self, kind: str, rows: Any, name: str, want: np.ndarray, got: np.ndarray, all_: Any) -> None:
        if want.shape != got.shape:
            self._note(kind, len(want), f"{name} has the shape {got.shape}, not {want.shape}")
            return
        wrong = self._beyond(name, want, got)
        if not wrong.any():
            return
        tied = np.zeros(len(wrong), dtype=bool)
        if name == "label":
            tied |= self._undecided(rows, all_)
        if not self._exact and isinstance(rows, pd.DataFrame):
            tied |= self._hangs_on_rounding(rows, name, want, wrong)
        self._verdict.ties += int((wrong & tied).sum())
        wrong &= ~tied
        if wrong.any():
            row = int(np.argmax(wrong))
            shown = _slice(rows, row, row + 1)
            shown = shown.iloc[0].to_dict() if isinstance(shown, pd.DataFrame) else "…"
            self._note(kind, int(wrong.sum()), f"{name}: {want[row]} became {got[row]} for {shown}")

    def _note(self, kind: str, rows: int, said: str) -> None:
        if self._verdict.outcome != "wrong":
            self._verdict.outcome, self._verdict.said = "wrong", f"{kind}: {said}"
        self._verdict.wrong[kind] += rows

    def _beyond(self, name: str, want: np.ndarray, got: np.ndarray) -> np.ndarray:
        if name == "label" or want.dtype.kind not in "f":
            return np.asarray((want != got).reshape(len(want), -1).any(axis=1))
        want, got = want.astype(np.float64), got.astype(np.float64)  # null, of which got has NaN, is infinity, too
        bound = _BOUND if name == "probabilities" else _BOUND * (np.abs(want) + self._spread)
        same = (want == got) | (~np.isfinite(want) & np.isnan(got)) | (np.abs(want - got) <= bound)
        return np.asarray(~same.reshape(len(want), -1).all(axis=1))

    def _undecided(self, rows: Any, want: dict[str, np.ndarray]) -> np.ndarray:
        """The original's own margin between its two best labels is nothing."""
        model = self._case.model
        if "probabilities" in want and want["label"].ndim == 1:
            tied = _lead(want["probabilities"]) < _TIE
            if hasattr(model, "decision_function"):  # probabilities of 1 hide which of two is the better one
                scores = np.asarray(model.decision_function(self._own(rows)))
                largest = np.abs(scores.reshape(len(scores), -1)).max(axis=1)
                tied &= _lead(scores) < _TIE * np.maximum(largest, 1)
            return np.asarray(tied)
        if "probabilities" in want:
            return np.asarray(np.abs(2 * want["probabilities"] - 1).min(axis=1) < _TIE)
        if hasattr(model, "decision_function"):
            scores = np.asarray(model.decision_function(self._own(rows)))
            bound = _TIE * min(1.0, float(np.abs(scores).max(initial=0)))
            return np.asarray(_lead(scores) < bound)
        if isinstance(getattr(model, "classes_", None), list):  # several targets, each with its own margin
            return np.asarray(np.min([_lead(each) for each in model.predict_proba(self._own(rows))], axis=0) < _TIE)
        return np.zeros(_count(rows), dtype=bool)

    def _hangs_on_rounding(self, rows: pd.DataFrame, name: str, want: np.ndarray, wrong: np.ndarray) -> np.ndarray:
        """The original itself answers otherwise once a number is moved by less than a 32-bit float can hold."""
        found = np.zeros(len(wrong), dtype=bool)
        positions = np.flatnonzero(wrong)[:100]
        some = rows.iloc[positions].reset_index(drop=True)
        reach = max((float(np.nanmax(np.abs(some[c].to_numpy(float)), initial=0)) for c in _floats(some)), default=0)
        for column in _floats(some):
            for way in (-1, 1):
                step = way * _ROUNDING * np.maximum(np.abs(some[column].to_numpy(float)), reach)
                moved = some.assign(**{column: (some[column] + step).astype(some[column].dtype)})
                found[positions] |= self._beyond(name, want[positions], self._original(moved)[name])
        return found

    def _decision(self, rows: pd.DataFrame) -> np.ndarray:
        want = self._original(rows)
        return next(want[name] for name in ("probabilities", "prediction", "label") if name in want)

    def _own(self, rows: Any) -> Any:
        """Rows as the original takes them."""
        if not isinstance(rows, pd.DataFrame):
            return rows
        if isinstance(self._case.example, list):
            return rows.iloc[:, 0].tolist()
        return rows if isinstance(self._case.example, pd.DataFrame) else rows.to_numpy(self._case.example.dtype)

    def _original(self, rows: Any) -> dict[str, np.ndarray]:
        model, data = self._case.model, self._own(rows)
        if not _is_estimator(model):
            return _torch_answers(model, data)
        if not is_classifier(model):
            return {"prediction": np.asarray(model.predict(data))}
        answers = {"label": np.asarray(model.predict(data))}
        if hasattr(model, "predict_proba") and isinstance(model.classes_, np.ndarray):
            answers["probabilities"] = np.asarray(model.predict_proba(data))
        return answers


def _lead(scores: np.ndarray) -> np.ndarray:
    """How far the best of each row's scores is before the second."""
    if scores.ndim == 1:
        return np.abs(scores)
    best = np.sort(scores, axis=1)
    return best[:, -1] - best[:, -2] if best.shape[1] > 1 else np.full(len(best), np.inf)


def _table(case: Case, data: Any) -> pd.DataFrame | None:
    """The rows as a table; None for tensors."""
    if isinstance(data, pd.DataFrame):
        return data.reset_index(drop=True)
    if isinstance(data, list):
        return pd.DataFrame({"text": pd.Series(data, dtype=object)})
    if isinstance(data, np.ndarray) and data.ndim == 2 and _is_estimator(case.model):
        return pd.DataFrame(data, columns=[str(position) for position in range(data.shape[1])])
    return None


def _is_estimator(model: Any) -> bool:
    """Whether it has scikit-learn's interface; CatBoost's estimators have, and are no BaseEstimator."""
    return hasattr(model, "get_params") and not isinstance(model, type)


def _is_exact(model: Any) -> bool:
    """Whether everything that decides in the model compares single inputs with constants."""
    if not _is_estimator(model):
        return False
    inside = [model, *(value for value in model.get_params(deep=True).values() if _is_estimator(value))]
    names = [type(part).__name__ for part in inside]
    votes = any(name == "VotingClassifier" for name in names)  # by the labels of parts that may be undecided
    return all(name.startswith(_EXACT) for name in names) and not (votes and "LogisticRegression" in names)


def _floats(table: pd.DataFrame) -> list[str]:
    return [name for name in map(str, table) if table[name].dtype.kind == "f"]


def _count(rows: Any) -> int:
    return len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)


def _slice(rows: Any, start: int, stop: int) -> Any:
    if isinstance(rows, dict):
        return {name: array[start:stop] for name, array in rows.items()}
    return rows.iloc[start:stop].reset_index(drop=True) if isinstance(rows, pd.DataFrame) else rows[start:stop]


def _torch_answers(module: Any, rows: Any) -> dict[str, np.ndarray]:
    import torch  # only where a net is judged

    named = rows if isinstance(rows, dict) else {"": rows}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in named.items()}
    with torch.no_grad():
        if type(module).__module__.startswith("transformers."):  # in which the order of parameters means little
            answer = module(**tensors)
        else:
            answer = module.eval()(*tensors.values())
    if isinstance(answer, Mapping):  # what is no tensor, as a cache, is not served
        return {name: value.numpy() for name, value in answer.items() if isinstance(value, torch.Tensor)}
    answers = answer if isinstance(answer, tuple) else (answer,)
    names = ["output"] if len(answers) == 1 else [f"output_{position}" for position in range(len(answers))]
    return {name: value.numpy() for name, value in zip(names, answers, strict=True)}
