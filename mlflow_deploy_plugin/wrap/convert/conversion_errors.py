"""Conversion errors that name the failed part of the model and an alternative."""

import re
import traceback
from collections.abc import Iterator
from contextlib import suppress

from mlflow_deploy_plugin.core.errors import ModelError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.wrap.convert.batch import ModelData
from mlflow_deploy_plugin.wrap.convert.converted import TrainedModel
from mlflow_deploy_plugin.wrap.convert.converters import is_onnx, packages_of

_FLAVORS = {
    **{
        name: name
        for name in (
            "sklearn",
            "xgboost",
            "lightgbm",
            "catboost",
            "statsmodels",
            "prophet",
            "spacy",
            "tensorflow",
            "transformers",
            "sentence_transformers",
            "pmdarima",
            "h2o",
            "paddle",
            "keras",
            "johnsnowlabs",
        )
    },
    "torch": "pytorch",
    "pyspark": "spark",
}
"""The MLflow flavor for each package of model classes."""
_SERIALIZATION = {"sklearn": "cloudpickle", "lightgbm": "cloudpickle", "pytorch": "pickle"}
"""The format in which a flavor can save every model. The default format fails for
functions and control flow.
"""

_ISSUE = re.compile(
    r"[^.:,]*\b(?:raise|open|fill|submit)[^.:,]*\bis+ue[^.:]*https?://\S+", re.IGNORECASE
)
_URL = re.compile(r"\s*\(?https?://\S+")
_CLASS = re.compile(r"<class '([^']+)'>")
_NO_CONVERTER = re.compile(r"Unable to find a [a-z ]+ for [a-z]+ '(?P<kind>[^']+)'")
_INPUTS = re.compile(
    r"at most (?P<most>\d+) input\(s\) is\(are\) supported but we got (?P<given>\d+) input\(s\)"
)
_NO_KERNEL = re.compile(r"(?P<op>[\w.]+:?\w+)\(-?\d+\) is not a registered function/op")
_NO_OPERATOR = re.compile(  # messages of tf2onnx, torch's dynamo exporter, and its legacy exporter
    r"No Op registered for (?P<tf>\w+)"
    r"|translating node .*target=torch\.ops\.(?P<fx>[\w.]+?)(\.default)?\]"
    r"|operator '(?P<ts>[\w:]+)' to ONNX opset version \d+ is not supported"
)
_MIXED = re.compile(r"Type 'tensor\(string\)' .* operator \(FeatureVectorizer\)|string to float: ")
_REASONS = {
    "inhomogeneous": "its targets have different numbers of classes",  # numpy's error
    # raised by support vector machines
    "no attribute 'upper'": "a kernel that is a Python function",
    "Could not infer attribute `support_vectors`": "a precomputed kernel (kernel='precomputed')",
    "__obj_flatten__": (
        "its layers are quantized by torch; wrap the unquantized model and run onnxserve optimize"
    ),
    "got FakeTensor": "the size of a tensor depends on the data, as in pack_padded_sequence",
}
_CPP = re.compile(r"\S+ onnxruntime::.*")


def pyfunc_flavor(
    model: TrainedModel, predict_fn: str, input_example: ModelData = None
) -> tuple[str, dict[str, str]] | None:
    """Return the MLflow flavor that can log the model, and its options; None without
    such a flavor. For unknown libraries that predict the example, the flavor is
    sklearn.
    """
    # Only the sklearn flavor, which also logs the estimators of boosters, has this
    # option.
    if predict_fn != "predict":
        options = {
            "serialization_format": _SERIALIZATION["sklearn"],
            "pyfunc_predict_fn": predict_fn,
        }
        if hasattr(model, predict_fn):
            return ("sklearn", options)
        return None
    packages = packages_of(model)
    flavor = next((_FLAVORS[package] for package in packages if package in _FLAVORS), None)
    if flavor == "transformers" and "torch" in packages:
        flavor = "pytorch"  # mlflow.transformers logs only pipelines.
    if flavor is None and input_example is not None:
        with suppress(Exception):  # The model may not predict rows.
            flavor = "sklearn" if len(model.predict(input_example[:1])) == 1 else None
    # No flavor saves a tf.function.
    is_function = flavor == "tensorflow" and hasattr(model, "python_function")
    if flavor is None or is_function or (flavor == "sklearn" and not hasattr(model, "predict")):
        return None
    if flavor not in _SERIALIZATION:
        return flavor, {}
    return flavor, {"serialization_format": _SERIALIZATION[flavor]}


def with_alternative(
    error: ModelError, model: TrainedModel, predict_fn: str = "predict"
) -> ModelError:
    """Return the error with advice on how to serve the model without ONNX."""
    if is_onnx(model):
        return error
    call = "mlflow.pyfunc.log_model(python_model=…) in a mlflow.pyfunc.PythonModel"
    if (alternative := pyfunc_flavor(model, predict_fn)) is not None:
        flavor, options = alternative
        arguments = "".join(f'(…, {name}="{value}")' for name, value in options.items())
        call = f"mlflow.{flavor}.log_model{arguments}"
    way = f"Log it with {call} and deploy it with the same command; it is then served as pyfunc"
    return type(error)(f"{error.message.removesuffix('.')}. {way}.")


def explain_failure(error: BaseException, model: TrainedModel) -> str:
    """Return the message for a failed conversion or a graph that cannot be loaded, with
    the step and the reason.
    """
    # The failed part is what skl2onnx was converting, otherwise the part that the error
    # names.
    failed: object = None
    reason = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        failed = getattr(frame.f_locals.get("operator"), "raw_operator", None) or failed
        if frame.f_code.co_name == "__dir__":  # An attribute of the estimator raises an error.
            failed = frame.f_locals["self"]
            kind = f"{type(failed).__module__}.{type(failed).__qualname__}"
            reason = f"there is no converter for {kind}"
    if not failed:
        words = set(re.findall(r"\w+", str(error))) - {"Pipeline"}
        named_parts = (part for _, part in _parts(model) if type(part).__name__ in words)
        failed = next(named_parts, None)
    if not reason:
        cause = error.__cause__ or error  # skl2onnx wraps the error.
        reason = plain_reason(str(cause)) or f"its converter failed with {type(cause).__name__}"
        is_explained = reason in _REASONS.values()
        if isinstance(cause, LookupError | AttributeError | TypeError) and not is_explained:
            reason = (
                f"its converter does not support this variant ({type(cause).__name__}: {reason})"
            )
    location = ""  # of the model itself, or of an unknown part
    if failed is not None and type(failed) is not type(model):
        kind = getattr(failed, "stands_for", type(failed).__name__)
        location = f"its {kind}: "
        for name, part in _parts(model):
            if type(part) is type(failed):
                location = f"its step {name.replace('__', ' → ')!r} ({kind}): "
                break
    return f"{type(model).__name__} cannot be converted to ONNX: {location}{reason}"


def plain_reason(text: str) -> str:
    """Return the message of a converter or ONNX Runtime in one line, without links to
    its issue tracker.
    """
    text = _CLASS.sub(r"\1", one_line(text))
    if match := _NO_CONVERTER.search(text):
        return f"there is no converter for {match['kind']}"
    if match := _INPUTS.search(text):
        return (
            f"it reads {match['given']} inputs of different types, but its converter supports "
            f"{match['most']}; use columns of the same type, or put a ColumnTransformer before it"
        )
    if match := _NO_KERNEL.search(text):
        return f"its converter uses the operator {match['op']}, which ONNX Runtime does not support"
    if match := _NO_OPERATOR.search(text):
        operator = match["tf"] or match["fx"] or match["ts"]
        return f"ONNX has no operator for {operator}"
    for words, reason in _REASONS.items():
        if words in text:
            return reason
    if _MIXED.search(text):
        return (
            "a step reads strings and numbers together, which a graph cannot mix; use a "
            "ColumnTransformer with a step per type"
        )
    for pattern in (_CPP, _ISSUE, _URL):
        text = pattern.sub("", text)
    return text.strip(" .:")[:300]


def _parts(model: TrainedModel) -> Iterator[tuple[str, TrainedModel]]:
    """Yield the nested estimators by parameter name, and the model itself with the name
    "".
    """
    with suppress(Exception):  # The model may have no `get_params`, or one that raises any error.
        for name, value in model.get_params(deep=True).items():
            if hasattr(value, "get_params") and not isinstance(value, type):
                yield name, value
    yield "", model
