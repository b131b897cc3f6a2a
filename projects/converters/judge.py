"""Judge cases: log each model like a user, serve it, send requests through HTTP, and
compare with the original.

The judge does not use the proof: neither its rows (see `rows.py`) nor its comparison.
The bounds are the bounds in docs/wrap.md, and are the same for a pyfunc.
"""

import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import mlflow
import numpy as np
import pandas as pd
from sklearn.base import is_classifier

import onnxserve
from mlflow_deploy_plugin.core.errors import OnnxserveError
from projects.converters.converted import ConvertedModel, Converter
from projects.converters.rows import hostile
from projects.converters.served import Refused, ServedModel, serving
from projects.environments import CACHE
from tests.support.tracking import create_database, tracking_at

Outcome = Literal["equal", "pyfunc", "refused", "wrong", "crashed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

SEED = 20261121
"""The seed of the hostile rows."""
_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError)
"""The errors of a program that fails; a converter that refuses raises others."""
_BOUND = 1e-4  # docs/wrap.md: of probabilities, of a value, and of the spread of the outputs
_TIE = 1e-4
# relative to a number: 32-bit floats cannot distinguish smaller differences of a
# distance or score
_ROUNDING = 3e-7
_ONE_BY_ONE = 60  # rows of a group of which the original refuses some

# models that decide by comparing single inputs, and sums: rounding does not explain
# another prediction
_EXACT = re.compile(
    "XGB|LGBM|CatBoost|DecisionTree|ExtraTree|RandomForest|GradientBoosting|HistGradient|Isolation"
    "|Bagging|AdaBoost|Voting|Stacking|MultiOutput|GridSearch|RandomizedSearch|Pipeline"
    "|StandardScaler|MinMaxScaler|MaxAbsScaler|RobustScaler|SimpleImputer|ColumnTransformer"
    "|KBins|Binarizer|OrdinalEncoder|OneHotEncoder|TargetEncoder|Ridge|LogisticRegression"
)


@dataclass(frozen=True)
class Case:
    """A fitted model with rows.

    Attributes:
        example: the example that the user logs: a table, a matrix, a list of texts,
            tensors by name.
        fresh: rows of the same form that are not training data.
    """

    model: Any
    example: Any
    fresh: Any


@dataclass
class Verdict:
    """The result of one case.

    Attributes:
        outcome: `equal` (as ONNX), `pyfunc` (served as pyfunc, and equal), `refused`
            (neither), `wrong` (the served model predicts something else, or fails), or
            `crashed` (logging ended in a traceback).
        rows / ties: the compared rows; the rows that are ignored because the original's
            own prediction depends on rounding.
        wrong: the number of wrong rows, by the kind of rows.
        unanswered: the wrong rows that the served model refuses and the original
            accepts.
        said: the first line of the refusal or of the crash, the reason for a pyfunc, or
            the worst row of a wrong model.
    """

    name: str
    outcome: Outcome
    said: str = ""
    rows: int = 0
    ties: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    seconds: float = 0.0


def judge(cases: Mapping[str, Case], seed: int = SEED) -> list[Verdict]:
    """Return the verdicts on some cases, which one server serves."""
    if not cases:
        return []
    verdicts = {}
    folders = {}
    with TemporaryDirectory(prefix="onnxserve-coverage-") as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(temporary)
        (root / "mlflow.db").write_bytes(_empty_database())
        with tracking_at(f"sqlite:///{root / 'mlflow.db'}"):
            mlflow.set_experiment(
                experiment_id=mlflow.create_experiment("coverage", str(root / "artifacts")),
            )
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


def judge_converter(
    cases: Mapping[str, Case], convert: Converter, seed: int = SEED
) -> list[Verdict]:
    """Return the verdicts on a converter, whose graphs run in this process."""
    verdicts = []
    for name, case in cases.items():
        start = time.perf_counter()
        verdict = Verdict(name, "equal")
        verdicts.append(verdict)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                converted = convert(deepcopy(case.model), case.example)
            except Exception as error:  # noqa: BLE001 - a converter may raise any error
                verdict.outcome = "crashed" if isinstance(error, _FAULTS) else "refused"
                verdict.said = f"{type(error).__name__}: {error}"
                continue
            try:
                model = ConvertedModel(converted)
            except Exception as error:  # noqa: BLE001 - ONNX Runtime has many
                verdict.outcome = "crashed"
                verdict.said = f"ONNX Runtime cannot load the graph: {error}"
                continue
            _Judged(case, model, verdict).all(seed)
        verdict.seconds = time.perf_counter() - start
    return verdicts


def _empty_database() -> bytes:
    """Create MLflow's tables once, because their migrations take seconds."""
    database = CACHE / f"mlflow-{mlflow.__version__}.db"
    if not database.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=CACHE) as folder:
            create_database(Path(folder) / "mlflow.db")
            (Path(folder) / "mlflow.db").replace(database)
    return database.read_bytes()


def _log(name: str, case: Case) -> tuple[Verdict, Path | None]:
    """Log the model, and return the result and the folder of the served model."""
    try:
        # Requirements are set, because MLflow otherwise loads the model in another
        # process for seconds to find them.
        info = onnxserve.log_model(
            case.model,
            "model",
            input_example=case.example,
            pip_requirements=["mlflow"],
        )
    except OnnxserveError as error:
        return Verdict(name, "refused", error.message), None
    except Exception:  # noqa: BLE001 - the judge looks for tracebacks
        return Verdict(name, "crashed", traceback.format_exc().strip().splitlines()[-1]), None
    logged = mlflow.MlflowClient().get_logged_model(info.model_id)
    reason = logged.tags.get("onnxserve.fallback")
    verdict = Verdict(name, "equal") if reason is None else Verdict(name, "pyfunc", reason)
    return verdict, Path(logged.artifact_location)


class _Judged:
    """Compares a served model with its original on the same rows."""

    def __init__(self, case: Case, served: ServedModel | ConvertedModel, verdict: Verdict) -> None:
        self._case = case
        self._served = served
        self._verdict = verdict
        self._exact = _is_exact(case.model)
        self._spread: np.ndarray | float = 0.0

    def all(self, seed: int) -> None:
        example, fresh = (
            _table(self._case, data) for data in (self._case.example, self._case.fresh)
        )
        if example is None or fresh is None:
            self._spread = max(
                float(np.std(answer)) for answer in self._original(self._case.fresh).values()
            )
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
        """Check that single rows, pairs and groups of seven have the same predictions
        as many rows.
        """
        for size in (1, 2, 7):
            for start in range(0, 14, size):
                self._compare(f"{kind}, {size} at once", _slice(rows, start, start + size))

    def _compare(self, kind: str, rows: Any) -> None:
        try:
            want = self._original(rows)
        except Exception:  # noqa: BLE001 - an original may raise any error
            if len(rows) > 1:
                for position in range(min(len(rows), _ONE_BY_ONE)):
                    self._compare(kind, _slice(rows, position, position + 1))
            return
        try:
            got = self._served.answers(rows, self._own(rows), want)
        except Refused as error:
            self._verdict.unanswered += len(rows)
            self._note(kind, len(rows), f"refuses rows that the original accepts: {error}")
            return
        self._verdict.rows += len(rows)
        for name, values in got.items():
            self._judge(kind, rows, name, want[name], values, want)

    def _judge(
        self,
        kind: str,
        rows: Any,
        name: str,
        want: np.ndarray,
        got: np.ndarray,
        all_: Any,
    ) -> None:
        if want.shape != got.shape:
            self._note(kind, len(want), f"the shape of {name} is {got.shape}, not {want.shape}")
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
        want = want.astype(np.float64)  # null (NaN in `got`) may be infinity
        got = got.astype(np.float64)
        bound = _BOUND if name == "probabilities" else _BOUND * (np.abs(want) + self._spread)
        same = (want == got) | (~np.isfinite(want) & np.isnan(got)) | (np.abs(want - got) <= bound)
        return np.asarray(~same.reshape(len(want), -1).all(axis=1))

    def _undecided(self, rows: Any, want: dict[str, np.ndarray]) -> np.ndarray:
        """Return True for rows where the original's two best labels are tied."""
        model = self._case.model
        if "probabilities" in want and want["label"].ndim == 1:
            tied = _lead(want["probabilities"]) < _TIE
            if hasattr(
                model,
                "decision_function",
            ):  # probabilities of 1 do not show which label is better
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
        if isinstance(
            getattr(model, "classes_", None),
            list,
        ):  # several targets, each with its own margin
            return np.asarray(
                np.min([_lead(each) for each in model.predict_proba(self._own(rows))], axis=0)
                < _TIE,
            )
        return np.zeros(len(rows), dtype=bool)

    def _hangs_on_rounding(
        self,
        rows: pd.DataFrame,
        name: str,
        want: np.ndarray,
        wrong: np.ndarray,
    ) -> np.ndarray:
        """Return True for rows where the original's prediction changes if a number
        moves by less than a 32-bit float can represent.
        """
        found = np.zeros(len(wrong), dtype=bool)
        positions = np.flatnonzero(wrong)[:100]
        some = rows.iloc[positions].reset_index(drop=True)
        reach = max(
            (float(np.nanmax(np.abs(some[c].to_numpy(float)), initial=0)) for c in _floats(some)),
            default=0,
        )
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
        """Return the rows in the form that the original accepts."""
        if not isinstance(rows, pd.DataFrame):
            return rows
        if isinstance(self._case.example, list):
            return rows.iloc[:, 0].tolist()
        if isinstance(self._case.example, pd.DataFrame):
            return rows
        return rows.to_numpy(self._case.example.dtype)

    def _original(self, rows: Any) -> dict[str, np.ndarray]:
        model = self._case.model
        data = self._own(rows)
        if not _is_estimator(model):
            return _torch_answers(model, data)
        if not is_classifier(model):
            return {"prediction": np.asarray(model.predict(data))}
        answers = {"label": np.asarray(model.predict(data))}
        if hasattr(model, "predict_proba") and isinstance(model.classes_, np.ndarray):
            answers["probabilities"] = np.asarray(model.predict_proba(data))
        return answers


def _lead(scores: np.ndarray) -> np.ndarray:
    """Return the difference of the two largest scores of each row."""
    if scores.ndim == 1:
        return np.abs(scores)
    best = np.sort(scores, axis=1)
    if best.shape[1] > 1:
        return best[:, -1] - best[:, -2]
    return np.full(len(best), np.inf)


def _table(case: Case, data: Any) -> pd.DataFrame | None:
    """Return the rows as a table; None for tensors."""
    if isinstance(data, pd.DataFrame):
        return data.reset_index(drop=True)
    if isinstance(data, list):
        return pd.DataFrame({"text": pd.Series(data, dtype=object)})
    if isinstance(data, np.ndarray) and data.ndim == 2 and _is_estimator(case.model):
        return pd.DataFrame(data, columns=[str(position) for position in range(data.shape[1])])
    return None


def _is_estimator(model: Any) -> bool:
    """Return True if it has scikit-learn's interface. CatBoost's estimators have it,
    but do not inherit from BaseEstimator.
    """
    return hasattr(model, "get_params") and not isinstance(model, type)


def _is_exact(model: Any) -> bool:
    """Return True if all decisions of the model compare single inputs
    with constants.
    """
    if not _is_estimator(model):
        return False
    inside = [
        model,
        *(value for value in model.get_params(deep=True).values() if _is_estimator(value)),
    ]
    names = [type(part).__name__ for part in inside]
    # Votes depend on the labels of parts that may be tied.
    votes = any(name == "VotingClassifier" for name in names)
    return all(map(_EXACT.match, names)) and not (votes and "LogisticRegression" in names)


def _floats(table: pd.DataFrame) -> list[str]:
    return [name for name in map(str, table) if table[name].dtype.kind == "f"]


def _slice(rows: Any, start: int, stop: int) -> Any:
    if isinstance(rows, pd.DataFrame):
        return rows.iloc[start:stop].reset_index(drop=True)
    return rows[start:stop]


def _torch_answers(module: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
    import torch  # imported only for networks

    with torch.no_grad():
        answer = module.eval()(torch.from_numpy(np.ascontiguousarray(rows)))
    return {"output": answer.numpy()}
