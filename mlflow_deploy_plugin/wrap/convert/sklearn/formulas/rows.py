"""The rows that a formula reads, and the results of nested estimators."""

from collections.abc import Callable
from copy import copy
from itertools import groupby
from pickle import PicklingError
from typing import TypeAlias

import joblib
import numpy as np
from onnx import TensorProto, helper
from scipy import special
from skl2onnx.common._topology import Operator, Variable
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType
from sklearn.base import is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.feature_selection import RFE
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    Estimator,
    best_estimator,
    is_linear,
    last_step,
    passes_on,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.tracing import (
    SAMPLE_ROWS,
    Traced,
    TracedArray,
    divided,
    take,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.graph import VARIABLE_TYPES, NodeBuilder


class Rows:
    """The rows that an estimator reads: skl2onnx's variables, or a matrix from a
    formula.

    Attributes:
        is_double: True if an input has 64-bit floats. Nested estimators then read them.
        is_single: True if all inputs have 32-bit floats, so that comparisons use 32
            bits. scikit-learn reads integers as 64-bit floats.
    """

    def __init__(
        self,
        graph: NodeBuilder,
        inputs: list[Variable],
        columns: int,
        matrix: TracedArray | None = None,
    ) -> None:
        self._graph = graph
        self._inputs = inputs
        self._columns = columns
        self._matrix = matrix
        # The keys are digests or ids of steps. The values contain the step, so that its
        # id is not reused.
        self._after: dict[int | str, tuple[Rows, Estimator]] = {}
        # The keys are the id of an estimator, and True for raw scores.
        self._outputs: dict[tuple[int, bool], list[str]] = {}
        # The keys are ids of estimators with a formula.
        self._answers: dict[int, tuple[Answer, Estimator]] = {}
        self.is_double = any(isinstance(entry.type, DoubleTensorType) for entry in inputs)
        self.is_single = bool(inputs) and all(
            isinstance(entry.type, FloatTensorType) for entry in inputs
        )

    @classmethod
    def of(cls, graph: NodeBuilder, operator: Operator) -> "Rows":
        columns = getattr(operator.raw_operator, "n_features_in_", None) or 0
        if not columns:
            for variable in operator.inputs:
                sizes = variable.type.shape[1:]
                width = sizes[0] if sizes else None
                columns += width or 1  # An unknown width counts as one column.
        return cls(graph, list(operator.inputs), columns)

    @property
    def matrix(self) -> TracedArray:
        """The rows as 64-bit floats [N, k]."""
        if self._matrix is None:
            self._matrix = self._cast(np.float64)
        return self._matrix

    @property
    def own(self) -> TracedArray:
        """The rows as floats [N, k]: 64-bit if `is_double`, otherwise 32-bit."""
        dtype = np.float64 if self.is_double else np.float32
        if self._inputs:
            return self._cast(dtype)
        return self.matrix.astype(dtype)

    def _cast(self, dtype: type) -> TracedArray:
        """Add the inputs as a matrix of floats. Raises NotImplementedError for
        strings.
        """
        if self.has_texts:
            raise NotImplementedError("string columns, which no earlier step converts to numbers")
        sample: Array = np.ones((SAMPLE_ROWS, self._columns), dtype)
        # Always cast, because skl2onnx may declare a wrong type.
        name = self._graph.node(
            "Cast",
            [self._graph.joined(self._inputs)],
            to=helper.np_dtype_to_tensor_dtype(sample.dtype),
        )
        return Traced(self._graph, name, sample)

    @property
    def has_texts(self) -> bool:
        return any(isinstance(entry.type, StringTensorType) for entry in self._inputs)

    @property
    def _parts(self) -> list[TracedArray]:
        """The inputs as arrays [N, columns of the input], each with its dtype."""
        if not self._inputs:
            return [self.matrix]
        widths = [self._columns]
        if len(self._inputs) > 1:
            widths = [entry.type.shape[1] for entry in self._inputs]
        parts = []
        for entry, width in zip(self._inputs, widths, strict=True):
            sample = np.ones((SAMPLE_ROWS, width), _DTYPES[type(entry.type)])
            parts.append(Traced(self._graph, entry.full_name, sample))
        return parts

    @property
    def raw(self) -> TracedArray:
        """The rows [N, k] with the dtype of the first column. Strings are objects."""
        first = self._parts[0]
        if len(self._inputs) < 2:
            return first
        sample = np.ones((SAMPLE_ROWS, self._columns), first.dtype)
        return Traced(self._graph, self._graph.joined(self._inputs), sample)

    def columns(self) -> list[TracedArray]:
        """Return each column [N, 1] with its dtype. Strings are objects."""
        columns = []
        for part in self._parts:
            columns += [part[:, n : n + 1] for n in range(part.sample.shape[1])]
        return columns

    def full(self, value: float) -> TracedArray:
        """Return the same number for each row, [N]. The rows may be strings."""
        first = self._parts[0][:, 0]
        return np.full_like((first == first).astype(float), value)

    def with_matrix(self, matrix: TracedArray) -> "Rows":
        rows = Rows(self._graph, [], matrix.sample.shape[1], matrix)
        rows.is_double = self.is_double
        return rows

    def ask(self, estimator: Estimator, method: str) -> TracedArray:
        """Return the result of a nested estimator: `predict`, `predict_proba`,
        `decision_function` or `transform`.

        Labels are numbers, but the method `label` returns strings or integers. With two
        classes, the decision function is [N]. Raises NotImplementedError if the
        converter of the estimator does not support the method.
        """
        selects_columns = isinstance(estimator, RFE) and method == "transform"
        if not selects_columns:
            estimator = best_estimator(estimator)
        if isinstance(estimator, Pipeline) and not all(
            isinstance(step, ColumnTransformer) for step in estimator
        ):
            rows, last = self.before_last_step(estimator)
            return rows.ask(last, method)
        [operator] = self._declare([estimator])
        if is_linear(estimator):
            scores = self.sums([estimator])
            is_single = scores.sample.shape[1] == 1
            if is_regressor(estimator):
                answer = scores[:, 0] if np.ndim(estimator.coef_) == 1 else scores
            elif method == "decision_function":
                answer = scores[:, 0] if is_single else scores
            elif method in ("predict", "label"):
                if is_single:
                    position = (scores[:, 0] > 0).astype(np.int64)
                else:
                    position = np.argmax(scores, axis=1)
                answer = _classes_at(estimator, position, method)
            else:
                answer = _linear_probabilities(estimator, scores)
            if answer is not None:
                return answer
        if method == "decision_function" and type(estimator) in SCORES:
            return SCORES[type(estimator)](estimator, self)
        if type(estimator) in FORMULAS:
            return self._by_formula(estimator, method, operator)
        return self._by_converter(estimator, method)

    def _by_formula(self, estimator: Estimator, method: str, operator: Operator) -> TracedArray:
        """Return the result of an estimator with a formula, which is computed once for
        all methods. Predictions and columns become an output of the operator.
        """
        if id(estimator) not in self._answers:
            formula = FORMULAS[type(estimator)]
            self._answers[id(estimator)] = formula(estimator, self), estimator
        answer, _ = self._answers[id(estimator)]
        if not isinstance(answer, tuple):  # `refused_rows.py` reads the outputs of operators.
            answer = answer.astype(float)
            kind = DoubleTensorType([None, *answer.shape[1:]])
            output = self._graph.variable(answer.name, kind)
            operator.outputs.append(output)
            return Traced(self._graph, output.full_name, answer.sample)
        if method in ("predict", "label"):
            return _classes_at(estimator, answer[0], method)
        position = _SCORES.index(method) + 1
        if len(answer) <= position:
            raise NotImplementedError(f"the scores of the inner {type(estimator).__name__}")
        return answer[position].astype(float)

    def before_last_step(self, estimator: Estimator) -> tuple["Rows", Estimator]:
        """Return the rows that a pipeline's last step reads, and this step. Identical
        steps share their rows.
        """
        rows = self
        estimator = best_estimator(estimator)
        while isinstance(estimator, Pipeline):
            used = (step for _, step in estimator.steps[:-1] if not passes_on(step))
            runs = groupby(used, lambda step: isinstance(step, ColumnTransformer))
            for picks_columns, run in runs:
                # Consecutive ColumnTransformers are one step, since they may output
                # strings.
                steps = [*run]
                if picks_columns and len(steps) > 1:
                    steps = [make_pipeline(*steps)]
                for step in steps:
                    # The digest of a step's fitted attributes identifies the step,
                    # or its id if it contains an unnamed function.
                    learned: int | str
                    try:
                        learned = str(joblib.hash(step))
                    except (AttributeError, PicklingError, TypeError):
                        learned = id(step)
                    if learned not in rows._after:
                        computed = rows.with_matrix(rows.ask(step, "transform"))
                        rows._after[learned] = computed, step
                    rows, _ = rows._after[learned]
            estimator = best_estimator(estimator.steps[-1][1])
        return rows, estimator

    def _declare(self, members: list[Estimator]) -> list[Operator]:
        """Declare an operator per estimator, for the rows that a step may refuse."""
        inputs = self._inputs
        if not inputs:
            kind = DoubleTensorType([None, self._columns])
            inputs = [self._graph.variable(self.matrix.name, kind)]
        return [self._graph.declare(best_estimator(member), inputs) for member in members]

    def sums(self, members: list[Estimator]) -> TracedArray:
        """Return the scores or predictions [N, k] of linear estimators, with one
        product.
        """
        self._declare(members)
        linear = [best_estimator(member) for member in members]
        weights = [np.atleast_2d(member.coef_).astype(float) for member in linear]
        shifts = [
            np.broadcast_to(member.intercept_, len(member_weights))
            for member, member_weights in zip(linear, weights, strict=True)
        ]
        return self.matrix @ np.concatenate(weights).T + np.concatenate(shifts).astype(float)

    def _by_converter(self, estimator: Estimator, method: str) -> TracedArray:
        """Return the result of an estimator that skl2onnx converts, once for labels and
        probabilities, and once for scores.
        """
        # The sample has the shape of the result for `SAMPLE_ROWS` rows.
        if method == "label":
            sample = np.ones(SAMPLE_ROWS, labels_of(estimator).dtype)
        elif method in _SCORES:
            count = len(estimator.classes_)
            if count == 2 and method == "decision_function":
                sample = np.ones(SAMPLE_ROWS)
            else:
                sample = np.full((SAMPLE_ROWS, count), 1 / count)
        else:
            sample = np.ones(self._shape(estimator, method))
        raw_scores = method == "decision_function"
        # The converter of an estimator is called once.
        key = id(estimator), raw_scores
        if raw_scores and len(getattr(estimator, "probA_", ())):
            # With `_probA`, skl2onnx returns probabilities instead of scores.
            estimator = copy(estimator)
            estimator._probB = np.empty(0)
            estimator._probA = estimator._probB
        if key not in self._outputs:
            inputs = self._variables(estimator)
            self._outputs[key] = self._graph.sub_model(estimator, inputs, raw_scores)
        names = self._outputs[key]
        if method == "label":
            return Traced(self._graph, names[0], sample).reshape(-1)
        if method == "transform" and len(names) > 1:
            raise NotImplementedError(
                "strings and numbers, and no earlier step converts the strings"
            )
        name = self._graph.cast(names[int(method in _SCORES)], TensorProto.DOUBLE)
        if raw_scores and sample.ndim == 1:  # skl2onnx returns two columns for two classes.
            both = Traced(self._graph, name, np.ones((SAMPLE_ROWS, 2)))
            return both.reshape(-1, 2)[:, 1]
        return Traced(self._graph, name, sample).reshape(-1, *sample.shape[1:])

    def _variables(self, estimator: Estimator) -> list[Variable]:
        """Return the inputs of an estimator's converter: the original inputs, or a
        matrix if there are several for an estimator that reads one.
        """
        reads_several = isinstance(last_step(estimator), ColumnTransformer | FeatureUnion)
        if self._inputs and (len(self._inputs) == 1 or reads_several):
            return self._inputs
        kind = DoubleTensorType if self.is_double else FloatTensorType
        matrix = self.own
        return [self._graph.variable(matrix.name, kind([None, matrix.sample.shape[1]]))]

    def _shape(self, estimator: Estimator, method: str) -> tuple[int, ...]:
        """Return the shape of an estimator's predictions or columns for `SAMPLE_ROWS`
        rows. Raises NotImplementedError for labels that are not numbers.
        """
        last = last_step(estimator)
        if isinstance(last, ColumnTransformer):
            width = max(span.stop for span in last.output_indices_.values())
            return (SAMPLE_ROWS, width)
        if self.has_texts:
            if method == "transform":
                return (SAMPLE_ROWS, len(estimator.get_feature_names_out()))
            return (SAMPLE_ROWS,)
        answer = getattr(estimator, method)(np.ones((SAMPLE_ROWS, self._columns)))
        if hasattr(answer, "to_numpy"):  # set_output may return a table.
            answer = answer.to_numpy()
        is_sparse = hasattr(answer, "toarray")
        if getattr(answer, "dtype", np.dtype(object)).kind not in "fiub" and not is_sparse:
            raise NotImplementedError(f"labels of {type(estimator).__name__} that are not numbers")
        shape: tuple[int, ...] = answer.shape
        return shape


_DTYPES = {kind: name for name, kind in VARIABLE_TYPES.items()}
_SCORES = ("predict_proba", "decision_function")
Answer: TypeAlias = TracedArray | tuple[TracedArray, ...]
"""The result of a formula, as described in the table in `formulas/__init__.py`."""
Decision = tuple[TracedArray, TracedArray]
"""The class positions [N], and the probabilities or scores [N, C]."""
Formula = Callable[[Estimator, Rows], Answer]
FORMULAS: dict[type, Formula] = {}
"""The formulas by estimator class. `formulas.register` fills this table."""
SCORES: dict[type, Formula] = {}
"""The formulas of decision functions, for estimators whose formula does not return
scores.
"""


def labels_of(estimator: Estimator) -> Array:
    """Return the classes for the graph, as strings or 64-bit integers."""
    dtype = object if estimator.classes_.dtype.kind in "OU" else np.int64
    return np.asarray(estimator.classes_.astype(dtype))


def _classes_at(estimator: Estimator, position: TracedArray, method: str) -> TracedArray:
    """Return the classes at the positions: strings or integers for the method `label`,
    otherwise 64-bit floats.
    """
    if method == "label":
        return take(labels_of(estimator), position)
    if estimator.classes_.dtype.kind not in "fiub":
        raise NotImplementedError(f"labels of {type(estimator).__name__} that are not numbers")
    return take(estimator.classes_.astype(float), position)


def is_logistic(estimator: Estimator) -> bool:
    """Return True for a linear classifier whose probabilities are the logistic function
    of its scores.
    """
    by_loss = isinstance(estimator, SGDClassifier) and estimator.loss == "log_loss"
    return by_loss or isinstance(estimator, LogisticRegression | LinearDiscriminantAnalysis)


def _linear_probabilities(estimator: Estimator, scores: TracedArray) -> TracedArray | None:
    """Return the probabilities [N, C] of a linear classifier for its scores, or None if
    its loss has no probabilities.
    """
    is_single = scores.sample.shape[1] == 1
    by_class = isinstance(estimator, SGDClassifier)
    if is_logistic(estimator):
        if is_single:
            return softmax_of_two(scores)
        likely = special.expit(scores) if by_class else softmax(scores)
    elif by_class and estimator.loss == "modified_huber":
        likely = (np.clip(scores, -1.0, 1.0) + 1.0) / 2.0
    else:
        return None
    if is_single:
        return both_classes(likely)
    if by_class:
        return normalized(likely)
    return likely


def largest(scores: TracedArray) -> Decision:
    """Return the position [N] of the largest score, and the scores [N, C]."""
    return np.argmax(scores, axis=1), scores


def both_classes(likely: TracedArray) -> TracedArray:
    """Return the probabilities [N, 2] for the probability [N, 1] of the second
    class.
    """
    return np.hstack([1.0 - likely, likely])


def normalized(likely: TracedArray) -> TracedArray:
    """Divide the probabilities of the classes, which are the last axis, by their sum.
    If the sum is 0, all classes have the same probability.
    """
    total = likely.sum(axis=-1, keepdims=True)
    return np.where(total == 0, 1 / likely.sample.shape[-1], divided(likely, total))


def softmax(scores: TracedArray) -> TracedArray:
    return scores.emit("Softmax", [scores], scores.sample, axis=1)


def softmax_of_two(scores: TracedArray) -> TracedArray:
    """Return the probabilities [N, 2] of two classes for the score [N, 1] of the
    second class, whose logistic function is its probability.
    """
    return softmax(scores * np.array([[-0.5, 0.5]], scores.dtype))


def votes_of_pairs(second: TracedArray, score: TracedArray, classes: int) -> Decision:
    """Return the votes [N, C] in all pairs of classes, and the scores of
    sklearn.multiclass._ovr_decision_function.

    Args:
        second: 1.0 for a vote for the second class, otherwise 0.0, [N, pairs].
        score: the confidence in the second class, [N, pairs].
        classes: the number of classes.
    """
    first, second_class = np.triu_indices(classes, 1)
    sides = np.eye(classes)[second_class] - np.eye(classes)[first]
    votes = second @ sides + np.arange(classes)[::-1]
    confidence = score @ sides
    return votes, votes + confidence / (3.0 * (np.abs(confidence) + 1.0))
