"""Convert a scikit-learn estimator: read its rows, compute its predictions, and convert
it with skl2onnx.
"""

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import onnx
import pandas as pd
from onnx import ModelProto, TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common._container import ModelComponentContainer
from skl2onnx.common._topology import Operator, Scope, Topology, Variable
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from skl2onnx.common.onnx_optimisation_identity import onnx_remove_node_identity
from sklearn.base import is_classifier
from sklearn.cluster._kmeans import _BaseKMeans
from sklearn.compose import ColumnTransformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import BaggingClassifier
from sklearn.ensemble._hist_gradient_boosting.gradient_boosting import BaseHistGradientBoosting
from sklearn.feature_extraction import DictVectorizer, FeatureHasher
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import ThreadpoolController

from mlflow_deploy_plugin.core.errors import ConversionError, InvalidConfig
from mlflow_deploy_plugin.serve.runtime.artifact import Input
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.refusals import REFUSED_ROWS
from mlflow_deploy_plugin.wrap.convert import converted
from mlflow_deploy_plugin.wrap.convert.batch import Batch, ModelData, ModelInput
from mlflow_deploy_plugin.wrap.convert.comparison import top_margins
from mlflow_deploy_plugin.wrap.convert.conversion_errors import explain_failure
from mlflow_deploy_plugin.wrap.convert.converted import (
    ConvertedModel,
    DynamicAxes,
    Forms,
    OriginalModel,
)
from mlflow_deploy_plugin.wrap.convert.sklearn import boosters, formulas, graph, levels
from mlflow_deploy_plugin.wrap.convert.sklearn.additive import (
    additive_form,
    predictor_and_steps,
    reads_categories,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.boundary_values import boundary_values_of
from mlflow_deploy_plugin.wrap.convert.sklearn.estimators import (
    MISSING,
    Estimator,
    best_estimator,
    bind_inputs,
    column_transformers,
    encoders,
    estimator_input,
    feature_names,
    first_steps,
    is_fitted,
    last_step,
    library_of,
    named_steps,
    passes_on,
    sub_estimators,
)
from mlflow_deploy_plugin.wrap.convert.sklearn.formulas.rows import FORMULAS
from mlflow_deploy_plugin.wrap.convert.sklearn.libraries import with_stand_ins
from mlflow_deploy_plugin.wrap.convert.sklearn.refused_rows import mark_refused_rows
from mlflow_deploy_plugin.wrap.convert.sklearn.row_order import sort_rows
from mlflow_deploy_plugin.wrap.convert.sklearn.stand_ins import (
    SeveralTargets,
    Transforming,
    TreeFeatures,
)

F = TypeVar("F")
_HEAD = slice(0, 3)
_NETS = {
    "skorch": ("NeuralNetClassifier", "NeuralNetBinaryClassifier", "NeuralNetRegressor"),
    "pytorch_tabnet.tab_model": ("TabNetRegressor",),
}
"""Estimators that wrap a torch network, by library. torch's exporter converts them."""
_DENSE_VALUES = 50_000_000


def read_batch(model: Estimator, data: ModelData) -> ModelInput:
    """Return a DataFrame for a table or a column of strings (a Series, a list, an array
    [N]), or an array [N, k].

    A sparse matrix is truncated to `_DENSE_VALUES` numbers. Raises InvalidConfig for
    other data, and for a model that does not read tables.
    """
    for step in first_steps(model):
        if isinstance(step, DictVectorizer | FeatureHasher):
            raise InvalidConfig(
                f"{type(step).__name__} reads mappings or lists, but the rows of requests are "
                "tables; encode the columns with OneHotEncoder in a ColumnTransformer, or log a "
                "PythonModel that converts the table"
            )
    if isinstance(data, pd.DataFrame):
        # scikit-learn treats a table without column names as a matrix.
        has_names = any(isinstance(name, str) for name in data.columns)
        if has_names:
            return data
        return {"": _numbers(data.to_numpy())}
    if isinstance(data, dict) and not any(map(np.ndim, data.values())):
        data = [data]  # The mapping is a single row.
    is_list_of_rows = isinstance(data, list) and data and all(isinstance(row, dict) for row in data)
    if is_list_of_rows or isinstance(data, dict):
        return pd.DataFrame(data)
    if isinstance(data, pd.Series):
        return pd.DataFrame({data.name or "text": list(data)})
    is_flat = isinstance(data, list | tuple) or (
        isinstance(data, pd.Index | np.ndarray) and data.ndim == 1
    )
    if is_flat and all(isinstance(entry, str) for entry in data):
        return pd.DataFrame({getattr(data, "name", None) or "text": list(map(str, data))})
    if hasattr(data, "tocsr") and data.ndim == 2:
        most_rows = max(_DENSE_VALUES // max(data.shape[1], 1), 1)
        data = data.tocsr()[:most_rows].toarray()
    try:
        array = np.asarray(data)
    except ValueError:
        raise InvalidConfig(
            "input_example: the rows have different lengths; a table has the same columns in each "
            "row (join the tokens of a text with spaces)"
        ) from None
    if array.ndim != 2 or array.dtype.kind not in "fiubUTO":
        kind = type(data).__name__
        if array.ndim:
            kind += f" of the shape {array.shape}"
        raise InvalidConfig(
            "input_example: a scikit-learn model needs a DataFrame or an array [rows, columns], "
            f"not a {kind}"
        )
    return {"": _numbers(array)}


def _numbers(array: Array) -> Array:
    """Convert an object array without strings to numbers, as scikit-learn does. Return
    other arrays unchanged.
    """
    if array.dtype.kind != "O" or any(isinstance(value, str) for value in array.flat):
        return array
    try:
        return array.astype(float)
    except (TypeError, ValueError):
        return array


def forms(
    model: Estimator, batch: ModelInput | None, predict_fn: str, dynamic_axes: DynamicAxes
) -> Forms:
    """Return three forms: 32-bit floats, 64 bits up to the last step, and 64 bits
    throughout.

    Rounding in a 32-bit scaler moved up to 653 of 4,000 rows across the thresholds of
    trees, but ONNX Runtime has no 64-bit kernels for most predictors. Raises
    InvalidConfig without an example or for an unfitted model, and ConversionError for a
    model without `predict`.
    """
    model = boosters.as_estimator(model)
    if not isinstance(model, boosters.NativeBooster) and not is_fitted(model, batch):
        raise InvalidConfig(f"the {type(model).__name__} is not fitted: call fit before logging it")
    if batch is None:
        raise InvalidConfig(
            "input_example: a scikit-learn model needs an example for its columns and their types"
        )
    if not hasattr(model, "predict"):
        raise ConversionError(
            f"{type(model).__name__} has no predict method, so it cannot be served"
        )
    has_proba = is_classifier(model) and _single_threaded(_has_probabilities, model)(model, batch)
    if predict_fn == "predict_proba" and not has_proba:
        name = type(model).__name__
        if not hasattr(model, "predict_proba"):
            raise InvalidConfig(f"pyfunc_predict_fn: {name} has no predict_proba")
        raise ConversionError(
            f"{name} cannot be converted to ONNX with "
            "pyfunc_predict_fn='predict_proba': only the probabilities of a classifier with a "
            "single target have an ONNX form"
        )
    fitted = best_estimator(model)
    if isinstance(batch, pd.DataFrame):
        fitted = boosters.with_category_names(fitted, batch)
        names = list(map(str, batch.columns))
        fitted = with_stand_ins(fitted, names)
    else:
        width = batch[""].shape[1]
        names = list(map(str, range(width)))
        fitted = with_stand_ins(fitted, width)
    if readers := column_transformers(fitted):
        # Steps have the positions of the training, including unread columns.
        names = list(map(str, getattr(readers[0], "feature_names_in_", names)))
    is_of_classes = is_classifier(model)

    def original(batch: ModelInput) -> dict[str, Array]:
        data = estimator_input(model, batch)
        predicted = np.asarray(model.predict(data))
        if not is_of_classes:
            return {"prediction": predicted}
        outputs = {"label": predicted}
        if has_proba:
            outputs["probabilities"] = model.predict_proba(data)
        return outputs

    convert = partial(
        _convert,
        model,
        fitted,
        batch,
        _single_threaded(original, fitted),
        predict_fn,
        cache(partial(boundary_values_of, fitted, names)),  # All forms share the result.
    )
    return [partial(convert, precision) for precision in _REPAIRS]


def _has_probabilities(model: Estimator, batch: ModelInput) -> bool:
    """Return True if a classifier returns probabilities for a single target. Some
    `predict_proba` raise an error.
    """
    if isinstance(getattr(model, "classes_", None), np.ndarray):
        with suppress(Exception):  # A Gaussian process with one_vs_one raises an error.
            model.predict_proba(estimator_input(model, Batch(batch).take(slice(0, 1)).data))
            return True
    return False


def known_values(model: Estimator, names: list[str]) -> converted.BoundaryValues:
    """Return the thresholds, categories and training values of the named columns in a
    fitted model.
    """
    return boundary_values_of(
        with_stand_ins(best_estimator(boosters.as_estimator(model)), names), names
    )


def unread_columns(model: Estimator, table: pd.DataFrame) -> set[str]:
    """Return the columns of a table that the model was trained with, and that all its
    ColumnTransformers drop.
    """
    steps = first_steps(boosters.as_estimator(model))
    if not all(isinstance(step, ColumnTransformer) for step in steps):
        return set()
    unread = {str(name) for name in table}
    for step in steps:
        names = feature_names(step)
        unread &= set(getattr(step, "feature_names_in_", ()))
        for _, _, columns in named_steps(step):
            unread.difference_update(names[at] for at in columns)
    return unread


def _convert(
    model: Estimator,
    fitted: Estimator,
    batch: ModelInput,
    original: OriginalModel,
    predict_fn: str,
    boundary_values: Callable[[], converted.BoundaryValues],
    precision: graph.Precision,
) -> ConvertedModel:
    """Return the model in one precision.

    Args:
        model: the user's model.
        fitted: the model with stand-ins, which is converted.
        batch: the example.
        original: the model's function, which returns the outputs by name.
        predict_fn: the method that `predict` of the pyfunc model calls.
        boundary_values: a function that returns the boundary values of `fitted`.
        precision: where the graph computes in 64 bits.
    """
    answers = converted.call_original(original, Batch(batch).take(_HEAD).data)
    dtype = "float32" if precision == "single" else "float64"
    inputs = bind_inputs(model, fitted, batch, dtype)
    proto = to_onnx(fitted, inputs, precision)
    # skl2onnx renames inputs whose names are not identifiers, but preserves the order.
    inputs = tuple(
        replace(entry, name=node.name)
        for entry, node in zip(inputs, proto.graph.input, strict=True)
    )
    outputs = graph.finish_outputs(proto.graph, answers)
    framework = library_of(model) or "sklearn"
    prediction = "probabilities" if predict_fn == "predict_proba" else outputs[0].name
    margin = _single_threaded(_margin(model), fitted) if "label" in answers else None
    many_rows = 0
    if any(node.op_type == "If" for node in proto.graph.node):
        many_rows = levels.MANY_ROWS
    classes: tuple[Any, ...] = ()
    if outputs[0].role == "label" and isinstance(getattr(model, "classes_", None), np.ndarray):
        classes = tuple(model.classes_.tolist())
    last = last_step(fitted)
    # libsvm iterates, and an ensemble of XGBoost's models returns 64-bit floats.
    has_rough_part = any(
        len(getattr(part, "probA_", ())) or (library_of(part) == "xgboost" and part is not last)
        for part in sub_estimators(fitted)
    )
    cause = ""
    if isinstance(fitted, Pipeline) and library_of(last) == "xgboost":
        with suppress(Exception):  # A stand-in of another library may have no `transform`.
            rows = estimator_input(fitted, Batch(batch).take(_HEAD).data)
            if hasattr(fitted[:-1].transform(rows), "tocsr"):
                cause = (
                    "XGBoost takes the zeros of a sparse matrix for missing values, and a graph "
                    "has no sparse matrices: train it on a dense matrix "
                    "(OneHotEncoder(sparse_output=False), ColumnTransformer(sparse_threshold=0))"
                )
    return ConvertedModel(
        proto=proto,
        inputs=inputs,
        outputs=outputs,
        prediction=(prediction,),
        framework=framework,
        framework_version=import_module(framework).__version__,
        original=original,
        classes=classes,
        boundary_values=boundary_values(),
        margin=margin,
        many_rows=many_rows,
        additive=partial(_additive_parts, fitted, inputs, precision),
        least_probability=1e-6 if has_rough_part else 0.0,
        repair=_REPAIRS[precision].format(step=type(last).__name__),
        cause=cause,
    )


_REPAIRS: dict[graph.Precision, str] = {
    "single": "",
    "double_until_last_step": (
        "32-bit floats changed predictions; inputs are read in 64 bits, and rounded only before "
        "{step}"
    ),
    "double": "32-bit floats changed predictions; everything is computed in 64 bits",
}
"""How each precision prevents rounding errors of 32-bit floats."""


def _additive_parts(
    fitted: Estimator, inputs: tuple[Input, ...], precision: graph.Precision
) -> converted.AdditiveParts | None:
    """Return the trees or slopes of the model, and the graph of the steps before
    them.
    """
    predictor, steps = predictor_and_steps(fitted)
    form = additive_form(predictor)
    if form is None:
        return None
    if reads_categories(predictor):
        earlier = [] if steps is None else steps.steps
        steps = Pipeline([*earlier, ("features", TreeFeatures(predictor))])
    features = None
    if steps is not None:
        # The form rounds the features, so that they need no cast to 32 bits here.
        features = to_onnx(steps, inputs, "single" if precision == "single" else "double")
    return converted.AdditiveParts(form, features)


def _single_threaded(function: F, fitted: Estimator) -> F:
    """Return the function so that it runs HistGradientBoosting on one thread: a parity
    check of 2,000 trees then takes 4 s of CPU instead of 200 s. Functions of other
    models, and None, are returned unchanged.
    """
    has_histograms = any(
        isinstance(part, BaseHistGradientBoosting) for part in sub_estimators(fitted)
    )
    if function is None or not has_histograms:
        return function
    limited: F = ThreadpoolController().wrap(limits=1, user_api="openmp")(function)
    return limited


def _margin(model: Estimator) -> Callable[[ModelInput], Array] | None:
    """Return a function for the margin [N] or scores [N, C], or None if the model has
    neither. Probabilities may be rounded to 1, which hides ties.
    """

    def decision(batch: ModelInput) -> Array:
        return np.asarray(model.decision_function(estimator_input(model, batch)))

    def of_several_targets(batch: ModelInput) -> Array:
        by_target = model.predict_proba(estimator_input(model, batch))
        return np.asarray(
            np.min([top_margins(probabilities) for probabilities in by_target], axis=0)
        )

    # Bagging averages probabilities, not scores, and has no scores if its members have
    # different classes.
    has_bag = any(isinstance(part, BaggingClassifier) for part in sub_estimators(model))
    if hasattr(model, "decision_function") and not has_bag:
        return decision
    has_several_targets = isinstance(getattr(model, "classes_", None), list)
    if has_several_targets and hasattr(model, "predict_proba"):
        return of_several_targets
    return None


def to_onnx(fitted: Estimator, inputs: tuple[Input, ...], precision: graph.Precision) -> ModelProto:
    """Return the ModelProto. Raises ConversionError, which names the step, if a step
    cannot be converted.
    """
    try:
        proto = _converted_graph(fitted, inputs, precision)
    except Exception as error:
        raise ConversionError(explain_failure(error, fitted)) from error
    # skl2onnx lowers the opset versions to those of its nodes, but ignores nodes in
    # subgraphs.
    imports = [entry for entry in proto.opset_import if entry.domain not in graph.OPSETS]
    opsets = [helper.make_opsetid(domain, version) for domain, version in graph.OPSETS.items()]
    del proto.opset_import[:]
    proto.opset_import.extend([*opsets, *imports])
    sort_rows(proto.graph)
    return proto


def _converted_graph(
    fitted: Estimator, inputs: tuple[Input, ...], precision: graph.Precision
) -> ModelProto:
    """Return the ModelProto of skl2onnx, which marks refused rows. The converters may
    raise any error.
    """
    copy = deepcopy(fitted)
    for encoder in encoders(copy):
        for column, categories in enumerate(getattr(encoder, "categories_", ())):
            if categories.dtype.kind == "b" or {*map(type, categories)} == {bool}:
                encoder.categories_[column] = categories.astype(np.int64)
            elif categories.dtype.kind == "O":
                encoder.categories_[column] = np.where(pd.isna(categories), MISSING, categories)
    for part in sub_estimators(copy):
        if type(part).__module__.startswith("imblearn.ensemble") and hasattr(part, "estimators_"):
            # imbalanced-learn's ensembles differ from the classes that they are derived
            # from only in training.
            part.__class__ = next(
                kind
                for kind in type(part).__mro__
                if kind.__module__.startswith("sklearn.ensemble")
            )
        if hasattr(part, "sparse_output"):
            part.sparse_output = False  # The graph has no sparse tensors.
        if isinstance(part, MultiOutputClassifier | MultiOutputRegressor):
            part.__class__ = SeveralTargets
        _change_steps(part)
        if not isinstance(part, ColumnTransformer):
            # skl2onnx would expect graph inputs with these names.
            part.__dict__.pop("feature_names_in_", None)
    if precision == "double_until_last_step":
        copy = graph.round_before_last_step(copy)
    with warnings.catch_warnings(), graph.own_converters():
        warnings.simplefilter("ignore")  # skl2onnx uses deprecated functions.
        formulas.register()
        # The library of a fitted estimator is always imported.
        for library in _NETS.keys() & sys.modules.keys():
            for name in _NETS[library]:
                graph.register_converter(
                    getattr(sys.modules[library], name), _convert_net, name.endswith("Classifier")
                )
        proto, topology = _call_skl2onnx(copy, inputs, precision)
        refusal = mark_refused_rows(proto.graph, topology)
        converted.write_logistics(proto.graph)
        proto = onnx_remove_node_identity(proto)
        properties = {REFUSED_ROWS: refusal} if refusal else {}
        helper.set_model_props(proto, properties)
    return proto


def _call_skl2onnx(
    copy: Estimator, inputs: tuple[Input, ...], precision: graph.Precision
) -> tuple[ModelProto, Topology]:
    """Return the model, and the operators that skl2onnx converted. skl2onnx may change
    the copy.
    """
    types = graph.VARIABLE_TYPES | {"str": StringTensorType}
    input_types = []
    for entry in inputs:
        input_types.append((entry.name, types[entry.dtype]([None, *entry.shape[1:]])))
    precise = {}
    if precision != "single":
        precise = formulas.converters_in_64_bits(is_throughout=precision == "double")
    last = last_step(copy)
    options: dict[int, dict[str, bool]] | None = {id(last): {}}
    if type(last) in FORMULAS:
        # Formulas need no options. With options, skl2onnx reads each attribute of each
        # tree twice.
        options = None
    elif is_classifier(last) and hasattr(last, "predict_proba"):
        # Without this option, the probabilities would be a list of mappings.
        options = {id(last): {"zipmap": False}}
    answer: tuple[ModelProto, Topology] = convert_sklearn(
        copy,
        initial_types=input_types,
        options=options,
        custom_conversion_functions=precise,
        custom_shape_calculators=dict.fromkeys(precise, graph.no_shapes),
        target_opset=graph.OPSETS,
        intermediate=True,
    )
    return answer


def _convert_net(scope: Scope, operator: Operator, container: ModelComponentContainer) -> None:
    """Add the nodes of an estimator that wraps a network: its values, and a
    classifier's labels.
    """
    estimator = operator.raw_operator
    builder = graph.NodeBuilder(scope, container)
    answer = _add_net(builder, container, estimator, operator.inputs)
    *labels, values = operator.outputs
    values.type = FloatTensorType([None, None])
    builder.node("Identity", [answer], values.full_name)
    for output in labels:
        output.type = Int64TensorType([None])  # skorch returns class indices.
        label = output.full_name
        if hasattr(estimator, "threshold"):
            second = builder.node("Gather", [answer, np.array(1)], axis=1)
            above = builder.node("Greater", [second, np.array(estimator.threshold, np.float32)])
            builder.node("Cast", [above], label, to=TensorProto.INT64)
        else:
            builder.node("ArgMax", [answer], label, axis=1, keepdims=0)


def _add_net(
    builder: graph.NodeBuilder,
    container: ModelComponentContainer,
    estimator: Estimator,
    inputs: list[Variable],
) -> str:
    """Add the graph of an estimator's network, and return the name of its output [N,
    …].
    """
    import torch  # torch is slow to import, and only these estimators need torch.

    from mlflow_deploy_plugin.wrap.convert.torch import export, original_model

    class Answer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            if not hasattr(estimator, "network"):
                self.net = estimator.module_
                self.last = estimator._get_predict_nonlinearity()
                return
            self.net = deepcopy(estimator.network)
            self.last = lambda answer: answer
            for layer in self.net.modules():
                if hasattr(layer, "virtual_batch_size") and hasattr(layer, "bn"):
                    layer.forward = layer.bn.forward  # Splitting the batch affects only training.

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            answer = self.net(rows)
            if isinstance(answer, tuple):
                answer = answer[0]
            return self.last(answer)

    Answer.__name__ = type(estimator).__name__  # The exporter's errors contain this name.
    net = Answer().eval()
    width = sum(variable.type.shape[1] for variable in inputs)
    rows = np.zeros((1, width), np.float32)
    exported = export(net, {"": rows}, ["rows"], {}, original_model(net))
    proto = onnx.compose.add_prefix(
        onnx.version_converter.convert_version(exported, graph.OPSETS[""]), builder.name("net_")
    )
    builder.node("Cast", [builder.joined(inputs)], proto.graph.input[0].name, to=TensorProto.FLOAT)
    container.initializers.extend(proto.graph.initializer)
    container.nodes.extend(proto.graph.node)
    return str(proto.graph.output[0].name)


def _change_steps(part: Estimator) -> None:
    """Replace predictors that are used as transformers, convert weights to steps, and
    drop steps without effect.
    """
    if isinstance(part, ColumnTransformer) and hasattr(part, "transformers_"):
        weights = part.transformer_weights or {}
        part.transformer_weights = None
        for index, (name, step, columns) in enumerate(part.transformers_):
            new_step = _as_transformer(step)
            if name in weights and step != "drop":
                weigh = FunctionTransformer(partial(np.multiply, weights[name]))
                new_step = Pipeline([("make", new_step), ("weigh", weigh)])
            part.transformers_[index] = name, new_step, columns
    elif isinstance(part, FeatureUnion):
        part.transformer_list = [
            (name, _as_transformer(step)) for name, step in part.transformer_list if step != "drop"
        ]
    elif isinstance(part, Pipeline):
        part.__class__ = Pipeline  # skl2onnx does not support the class of imbalanced-learn.
        # skl2onnx does not support steps that change no rows; samplers of
        # imbalanced-learn affect only training.
        part.steps = [
            (name, _as_transformer(step))
            for name, step in part.steps[:-1]
            if not passes_on(step) and not hasattr(step, "fit_resample")
        ] + part.steps[-1:]


def _as_transformer(step: Estimator) -> Estimator:
    """Return a predictor that is used as a transformer, or the last step of a pipeline,
    as an estimator that skl2onnx converts by its `transform`.
    """
    if isinstance(step, Pipeline):
        name, last = step.steps[-1]
        step.steps[-1] = (name, _as_transformer(last))
    if isinstance(step, _BaseKMeans | LinearDiscriminantAnalysis) and hasattr(
        step, "n_features_in_"
    ):
        return Transforming(step)
    return step
