"""Formulas of meta-estimators (`Rows.ask`):
https://scikit-learn.org/stable/modules/multiclass.html.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from scipy import special
from sklearn import ensemble
from sklearn.base import is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # needed by the next import
from sklearn.impute import IterativeImputer
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.multiclass import (
    OneVsOneClassifier,
    OneVsRestClassifier,
    OutputCodeClassifier,
    _ConstantPredictor,
)
from sklearn.multioutput import ClassifierChain, RegressorChain
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    PowerTransformer,
    QuantileTransformer,
)

from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    Estimator,
    best_estimator,
    is_linear,
    is_tree,
    marks_nan,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.features import SCALERS
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.predictors import isotonic
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.rows import (
    Decision,
    Formula,
    Rows,
    both_classes,
    is_logistic,
    largest,
    normalized,
    softmax,
    votes_of_pairs,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import (
    Traced,
    TracedArray,
    as_matrix,
    divided,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tree_nodes import grown
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import SeveralTargets


def calibrated(model: CalibratedClassifierCV, rows: Rows) -> Decision:
    """Return the mean of the calibrated probabilities over all training folds."""
    parts = model.calibrated_classifiers_
    estimators = [best_estimator(part.estimator) for part in parts]
    method = _score_method(estimators[0])
    if parts[0].method == "temperature":
        answers = []
        for part, estimator in zip(parts, estimators, strict=True):
            answer = rows.ask(estimator, method)
            if answer.ndim == 1:
                answer = _two_sided(answer)
            elif method == "predict_proba":
                answer = np.log(answer + 1e-12)  # scikit-learn adds 1e-12 for probabilities of 0.
            answers.append(softmax(answer * part.calibrators[0].beta_))
        return largest(sum(answers[1:], answers[0]) / float(len(parts)))
    # Each calibrator reads one score.
    scores = _scores(estimators, rows, method)
    calibrators = list(chain.from_iterable(part.calibrators for part in parts))
    if parts[0].method == "isotonic":
        likely = isotonic(calibrators, scores)
    else:
        slopes = np.array([line.a_ for line in calibrators])
        likely = special.expit(-(slopes * scores + [line.b_ for line in calibrators]))
    return largest(_mean_of_folds(model, likely))


def _mean_of_folds(model: CalibratedClassifierCV, likely: TracedArray) -> TracedArray:
    """Return the mean [N, C] of the probabilities of all training folds. `likely` are
    the probabilities of the calibrators, [N, calibrators].
    """
    parts = model.calibrated_classifiers_
    count = len(model.classes_)
    if count == 2:
        second = likely.mean(axis=1, keepdims=True)
        return both_classes(second)
    positions: list[int] = []
    for fold, part in enumerate(parts):
        labels = np.searchsorted(part.classes, best_estimator(part.estimator).classes_)
        positions.extend(fold * count + labels[: len(part.calibrators)])
    if len(positions) < len(parts) * count:  # Some classes do not occur in a training fold.
        likely = likely @ np.eye(len(parts) * count)[positions]
    return normalized(likely.reshape(-1, len(parts), count)).mean(axis=1)


def _score_method(estimator: Estimator) -> str:
    return "decision_function" if hasattr(estimator, "decision_function") else "predict_proba"


def _two_sided(score: TracedArray) -> TracedArray:
    """Return the scores of both classes [N, 2] for the score [N] of the second
    class.
    """
    return np.column_stack([-score, score])


def thresholded(model: Estimator, rows: Rows) -> Decision:
    """Return the decision of FixedThresholdClassifier or TunedThresholdClassifierCV,
    with the probabilities of the inner classifier, or with its scores if it has none.
    """
    estimator = best_estimator(getattr(model, "estimator_", model.estimator))
    methods = model._get_response_method()
    if isinstance(methods, str):
        methods = [methods]
    method = next(name for name in methods if hasattr(estimator, name))
    # The threshold limits the score of this class.
    scorer = getattr(model, "_curve_scorer", None)
    label = model.pos_label if scorer is None else scorer._get_pos_label()
    if label is None:
        positive = 1
    else:
        positive = int(np.flatnonzero(estimator.classes_ == label)[0])
    score = rows.ask(estimator, method)
    if method == "predict_proba":
        score = score[:, positive]
    elif not positive:
        score = -score
    threshold = getattr(model, "best_threshold_", None)
    if threshold is None:
        threshold = model.threshold
    if isinstance(threshold, str):  # The threshold is "auto".
        threshold = 0.5 if method == "predict_proba" else 0.0
    else:
        threshold = float(threshold)
    is_second = score >= threshold
    if not positive:
        is_second = ~is_second
    position = is_second.astype(np.int64)
    if hasattr(estimator, "predict_proba"):
        return position, rows.ask(estimator, "predict_proba")
    return position, _two_sided(score)


def chained(model: Estimator, rows: Rows) -> TracedArray:
    """Return the predictions [N, targets] of a chain, whose estimators read earlier
    predictions as extra columns.
    """
    method = getattr(model, "chain_method_", "predict")
    earlier: list[TracedArray] = []
    answers: dict[int, TracedArray] = {}
    for target, estimator in zip(model.order_, model.estimators_, strict=True):
        extended = rows
        if earlier:
            extended = rows.with_matrix(np.column_stack([rows.matrix, *earlier]))
        answer = _flat(extended.ask(estimator, "predict"))
        answers[int(target)] = answer
        score = answer if method == "predict" else extended.ask(estimator, method)
        if score.ndim > 1:
            score = score[:, 1]
        earlier.append(score)
    return np.column_stack([answers[target] for target in sorted(answers)])


def _flat(answer: Traced) -> TracedArray:
    """Return predictions [N] or [N, 1] as [N]."""
    return answer[:, 0] if answer.ndim > 1 else answer


def _scores(estimators: list[Estimator], rows: Rows, method: str = "") -> TracedArray:
    """Return the scores of the estimators [N, k]. Without a method, regressors predict,
    and classifiers return decisions or probabilities, like
    sklearn.multiclass._predict_binary. Linear estimators are combined into one product.
    """
    last_steps = [rows.before_last_step(member) for member in estimators]
    first_rows, _ = last_steps[0]
    if all(before is first_rows for before, _ in last_steps):
        rows = first_rows
        estimators = [last for _, last in last_steps]
    if all(map(is_linear, estimators)):
        if method != "predict_proba":
            return rows.sums(estimators)
        if all(
            is_logistic(best_estimator(member)) and len(member.classes_) == 2
            for member in estimators
        ):
            return special.expit(rows.sums(estimators))
    columns = []
    for member in estimators:
        if isinstance(member, _ConstantPredictor):
            score = rows.full(float(member.y_[0]))
        elif is_regressor(member):
            score = rows.ask(member, "predict")
        else:
            score = rows.ask(member, method or _score_method(member))
        if score.ndim > 1 and score.sample.shape[1] == 2:
            score = score[:, 1]  # For two classes, the column is the score of the second.
        columns.append(score)
    return np.column_stack(columns)


def one_vs_rest(model: OneVsRestClassifier, rows: Rows) -> Decision:
    """Return the class with the largest score, or a label per class for several labels.
    Without probabilities, return scores.
    """
    scores = _scores(model.estimators_, rows)
    is_single = len(model.estimators_) == 1
    if model.multilabel_:
        position = (scores > _middle(model)).astype(np.int64)
    elif is_single:
        position = (scores[:, 0] > _middle(model)).astype(np.int64)
    else:
        position = np.argmax(scores, axis=1)
    if not hasattr(model, "predict_proba"):
        if is_single:
            scores = np.hstack([-scores, scores])
        return position, scores
    if is_single:  # 1 - p would lose small probabilities of the first class.
        likely = rows.ask(model.estimators_[0], "predict_proba")
    else:
        likely = _scores(model.estimators_, rows, "predict_proba")
    if not model.multilabel_:
        likely = divided(likely, likely.sum(axis=1, keepdims=True))
    return position, likely


def _middle(model: Estimator) -> float:
    """Return the score above which an estimator predicts its second class."""
    return 0.0 if hasattr(model.estimators_[0], "decision_function") else 0.5


def one_vs_one(model: OneVsOneClassifier, rows: Rows) -> Decision:
    """Return the class with the most votes of the pairs' estimators; their scores
    decide between classes with equal votes.
    """
    if model.pairwise_indices_ is not None:
        raise NotImplementedError("OneVsOneClassifier with a precomputed kernel")
    confidence = _scores(model.estimators_, rows)
    if all(is_linear(estimator) and not is_regressor(estimator) for estimator in model.estimators_):
        second = (confidence > 0).astype(float)
    else:
        second = np.column_stack(
            [rows.ask(estimator, "predict") for estimator in model.estimators_]
        )
    _, scores = votes_of_pairs(second, confidence, len(model.classes_))
    if len(model.classes_) == 2:
        return (scores[:, 1] > _middle(model)).astype(np.int64), scores
    return largest(scores)


def output_code(model: OutputCodeClassifier, rows: Rows) -> Decision:
    """Return the class whose code is the nearest to the scores of the estimators, with
    the negative squared distances as scores.
    """
    away = _scores(model.estimators_, rows)[:, None, :] - np.asarray(model.code_book_, float)
    distances = (away * away).sum(axis=2)
    return np.argmin(distances, axis=1), -distances


def stacked(model: Estimator, rows: Rows) -> TracedArray | Decision:
    """Return the prediction of the final estimator, which reads the predictions of the
    other estimators as columns. Raises NotImplementedError for several labels.
    """
    last = model.final_estimator_
    answers = []
    for estimator, method in zip(model.estimators_, model.stack_method_, strict=True):
        answer = as_matrix(rows.ask(estimator, method))
        if method == "predict_proba" and answer.sample.shape[1] == 2:
            answer = answer[:, 1:]  # The columns add up to 1, so the first is omitted.
        answers.append(answer)
    if model.passthrough:
        answers.append(rows.matrix)
    columns = rows.with_matrix(np.hstack(answers))
    if is_regressor(model):
        return columns.ask(last, "predict")
    if getattr(model, "_label_encoder", None) is None or isinstance(model._label_encoder, list):
        raise NotImplementedError(f"{type(model).__name__} of several labels")
    # The final estimator's labels are class positions.
    position = columns.ask(last, "predict").astype(np.int64)
    if hasattr(last, "predict_proba"):
        return position, columns.ask(last, "predict_proba")
    score = columns.ask(last, "decision_function")
    if score.ndim == 1:
        score = _two_sided(score)
    return position, score


def voted(model: Estimator, rows: Rows) -> TracedArray | Decision:
    """Return the mean of the members' predictions, or the class with the largest mean
    probability or the most votes.
    """
    weights = model._weights_not_none
    if is_regressor(model):
        values = [_flat(rows.ask(estimator, "predict")) for estimator in model.estimators_]
        return _mean(values, weights)
    if model.voting == "soft":
        likely = [rows.ask(estimator, "predict_proba") for estimator in model.estimators_]
        return largest(_mean(likely, weights))
    votes = [_vote(estimator, rows, len(model.classes_)) for estimator in model.estimators_]
    return largest(_mean(votes, weights))


def _vote(member: Estimator, rows: Rows, classes: int) -> TracedArray:
    """Return 1 for the class that a member predicts, otherwise 0, [N, C]. The member's
    labels are class positions.
    """
    return (rows.ask(member, "predict")[:, None] == np.arange(classes)).astype(float)


def bagged(model: Estimator, rows: Rows) -> TracedArray | Decision:
    """Return the mean of the members' predictions, or their votes. Each member reads a
    subset of the columns.
    """
    count = 0 if is_regressor(model) else model.n_classes_  # A member may not know all classes.
    if all(
        is_tree(member) and len(getattr(member, "classes_", ())) == count
        for member in model.estimators_
    ):
        return grown(model, rows)
    answers = []
    for estimator, read in _members(model, rows):
        if is_regressor(model):
            answers.append(read.ask(estimator, "predict"))
        elif hasattr(estimator, "predict_proba"):
            # A member gives 0 to classes that it does not know.
            likely = read.ask(estimator, "predict_proba")
            if len(estimator.classes_) < count:
                likely = likely @ np.eye(count)[estimator.classes_]
            answers.append(likely)
        else:
            answers.append(_vote(estimator, read, count))
    mean = _mean(answers)
    if is_regressor(model):
        return mean
    return largest(mean)


def bagged_scores(model: ensemble.BaggingClassifier, rows: Rows) -> TracedArray:
    return _mean(
        [read.ask(estimator, "decision_function") for estimator, read in _members(model, rows)]
    )


def _members(model: Estimator, rows: Rows) -> Iterator[tuple[Estimator, Rows]]:
    """Yield the members of a bag, and the rows with the columns that each reads."""
    for estimator, features in zip(model.estimators_, model.estimators_features_, strict=True):
        read = rows
        if not np.array_equal(features, np.arange(model.n_features_in_)):
            read = rows.with_matrix(rows.matrix[:, features])
        yield estimator, read


def imputed_in_turn(model: IterativeImputer, rows: Rows) -> TracedArray:
    """Fill gaps by regressions in several rounds. Unlike in scikit-learn, a row never
    depends on other rows. Raises NotImplementedError for unsupported options.
    """
    if not marks_nan(model) or model.sample_posterior or model._is_empty_feature.any():
        raise NotImplementedError(
            "IterativeImputer with missing_values other than NaN, sample_posterior, empty columns"
        )
    gaps = np.isnan(rows.matrix)
    filled = np.where(gaps, np.asarray(model.initial_imputer_.statistics_, float), rows.matrix)
    columns = np.eye(gaps.sample.shape[1], dtype=bool)
    gaps_by_column = [gaps & is_column for is_column in columns]
    rounds = model.imputation_sequence_ if model.n_iter_ else ()
    for column, inputs, estimator in rounds:
        predicted = _flat(rows.with_matrix(filled[:, inputs]).ask(estimator, "predict"))
        predicted = np.clip(
            predicted, float(model._min_value[column]), float(model._max_value[column])
        )
        filled = np.where(gaps_by_column[column], predicted[:, None], filled)
    if model.add_indicator:
        filled = np.hstack([filled, gaps[:, model.indicator_.features_].astype(float)])
    return filled


def _mean(answers: list[TracedArray], weights: Sequence[float] | None = None) -> TracedArray:
    """Return the mean of the answers, with equal weights by default."""
    total_weight: float = len(answers)
    if weights is not None:
        total_weight = sum(weights)
        answers = [answer * float(weight) for answer, weight in zip(answers, weights, strict=True)]
    sample = np.sum([answer.sample for answer in answers], axis=0)
    total = answers[0].emit("Sum", answers, sample)  # sequential sum
    return total / float(total_weight)


def several_targets(model: SeveralTargets, rows: Rows) -> TracedArray:
    """Return the labels or predictions of all targets as columns. Linear regressions
    are combined into one product.
    """
    if hasattr(model, "classes_"):
        return np.stack([rows.ask(member, "label") for member in model.estimators_], axis=1)
    if all(map(is_linear, model.estimators_)):
        return rows.sums(model.estimators_)
    return np.stack(
        [rows.ask(member, "predict").reshape(-1) for member in model.estimators_], axis=1
    )


def transformed_target(model: TransformedTargetRegressor, rows: Rows) -> TracedArray:
    answer = rows.ask(model.regressor_, "predict")
    return _inverse(model.transformer_, as_matrix(answer))


def _inverse(transformer: Estimator, y: TracedArray) -> TracedArray:
    """Return the targets [N, k] for transformed targets y. Raises NotImplementedError
    for other transformers, and for constant targets.
    """
    match transformer:
        case Pipeline():
            for _, step in reversed(transformer.steps):
                if step not in (None, "passthrough"):
                    y = _inverse(step, y)
        case FunctionTransformer():
            if transformer.inverse_func is not None:
                y = transformer.inverse_func(y, **(transformer.inv_kw_args or {}))
        case _ if isinstance(transformer, SCALERS):
            y = _unscaled(transformer, y)
        case PowerTransformer():
            if transformer.standardize:
                y = _unscaled(transformer._scaler, y)
            columns = [
                _unpowered(transformer, y[:, n], float(power))
                for n, power in enumerate(transformer.lambdas_)
            ]
            y = np.column_stack(columns)
        case QuantileTransformer():
            if transformer.output_distribution == "normal":
                y = 0.5 * (1.0 + special.erf(y / np.sqrt(2.0)))
            columns = [
                np.interp(y[:, n], transformer.references_, quantiles)
                for n, quantiles in enumerate(transformer.quantiles_.T)
            ]
            y = np.column_stack(columns)
        case _:
            raise NotImplementedError(
                f"the inverse of {type(transformer).__name__} as the transformer of a target"
            )
    if not isinstance(y, Traced):
        raise NotImplementedError(
            f"the inverse of {type(transformer).__name__}, which does not depend on its input"
        )
    return y


def _unscaled(scaler: Estimator, y: TracedArray) -> TracedArray:
    """Return the targets for scaled targets."""
    scale = np.ones(1) if scaler.scale_ is None else scaler.scale_
    y = y / scale if isinstance(scaler, MinMaxScaler) else y * scale
    return y + scaler.inverse_transform(np.zeros((1, scaler.n_features_in_)))


def _unpowered(transformer: PowerTransformer, y: TracedArray, power: float) -> TracedArray:
    """Return the inverse of Box-Cox or Yeo-Johnson
    (https://doi.org/10.1093/biomet/87.4.954) for a column [N].
    """
    is_zero = abs(power) < np.spacing(1.0)
    if transformer.method == "box-cox":
        if is_zero:
            return np.exp(y)
        return (y * power + 1.0) ** (1 / power)
    up = np.maximum(y, 0.0)
    down = np.minimum(y, 0.0)
    above = np.exp(up) - 1.0 if is_zero else (up * power + 1.0) ** (1 / power) - 1.0
    is_up = y >= 0
    mirrored = 2.0 - power
    if abs(mirrored) < np.spacing(1.0):
        return np.where(is_up, above, 1.0 - np.exp(-down))
    return np.where(is_up, above, 1.0 - (1.0 - mirrored * down) ** (1 / mirrored))


FORMULAS: dict[type, Formula] = {
    CalibratedClassifierCV: calibrated,
    FixedThresholdClassifier: thresholded,
    TunedThresholdClassifierCV: thresholded,
    ClassifierChain: chained,
    RegressorChain: chained,
    OneVsRestClassifier: one_vs_rest,
    OneVsOneClassifier: one_vs_one,
    OutputCodeClassifier: output_code,
    SeveralTargets: several_targets,
    TransformedTargetRegressor: transformed_target,
    IterativeImputer: imputed_in_turn,
    ensemble.BaggingClassifier: bagged,
    ensemble.BaggingRegressor: bagged,
    ensemble.StackingClassifier: stacked,
    ensemble.StackingRegressor: stacked,
    ensemble.VotingClassifier: voted,
    ensemble.VotingRegressor: voted,
}
SCORES: dict[type, Formula] = {ensemble.BaggingClassifier: bagged_scores}
