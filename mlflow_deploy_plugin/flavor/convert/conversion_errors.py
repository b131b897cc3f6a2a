"""Errors of a conversion in plain words: the part of the model at which the converter stopped, and the alternative."""

import re
import traceback
from collections.abc import Iterator
from contextlib import suppress

from mlflow_deploy_plugin.errors import ModelError
from mlflow_deploy_plugin.flavor.batch import ModelData
from mlflow_deploy_plugin.flavor.convert.converted import TrainedModel
from mlflow_deploy_plugin.flavor.convert.converters import is_onnx, packages_of
from mlflow_deploy_plugin.messages import one_line

_FLAVORS = {
    **{name: name for name in ("sklearn", "xgboost", "lightgbm", "catboost", "statsmodels", "prophet", "spacy")},
    **{name: name for name in ("tensorflow", "transformers", "sentence_transformers", "pmdarima", "h2o", "paddle")},
    **{name: name for name in ("keras", "johnsnowlabs")},
    "torch": "pytorch",
    "pyspark": "spark",
}
"""MLflow's own flavor by the package of a model's class."""
_SERIALIZATION = {"sklearn": "cloudpickle", "lightgbm": "cloudpickle", "pytorch": "pickle"}
"""The format in which a flavor takes every model: its default refuses functions and graphs with control flow."""

_ISSUE = re.compile(r"[^.:,]*\b(?:raise|open|fill|submit)[^.:,]*\bis+ue[^.:]*https?://\S+", re.IGNORECASE)
_URL = re.compile(r"\s*\(?https?://\S+")
_CLASS = re.compile(r"<class '([^']+)'>")
_NO_CONVERTER = re.compile(r"Unable to find a [a-z ]+ for [a-z]+ '(?P<kind>[^']+)'")
_INPUTS = re.compile(r"at most (?P<most>\d+) input\(s\) is\(are\) supported but we got (?P<given>\d+) input\(s\)")
_NO_KERNEL = re.compile(r"(?P<op>[\w.]+:?\w+)\(-?\d+\) is not a registered function/op")
_NO_OPERATOR = re.compile(  # of tf2onnx, torch's dynamo exporter, its legacy exporter
    r"No Op registered for (?P<tf>\w+)|translating node .*target=torch\.ops\.(?P<fx>[\w.]+?)(\.default)?\]"
    r"|operator '(?P<ts>[\w:]+)' to ONNX opset version \d+ is not supported"
)
_MIXED = re.compile(r"Type 'tensor\(string\)' .* operator \(FeatureVectorizer\)|string to float: ")
_REASONS = {
    "inhomogeneous": "its targets have different numbers of classes",  # numpy, of the classes of each target
    "no attribute 'upper'": "a kernel that is a Python function",  # and of support vector machines
    "Could not infer attribute `support_vectors`": "a kernel that is computed before it (kernel='precomputed')",
    "__obj_flatten__": "its layers are quantized by torch; wrap it as it was before, and onnxserve optimize does so",
    "got FakeTensor": "a tensor in it has a size that its data say, as those of pack_padded_sequence have",
}
_CPP = re.compile(r"\S+ onnxruntime::.*")


def pyfunc_flavor(
    model: TrainedModel, predict_fn: str = "predict", input_example: ModelData = None
) -> tuple[str, dict[str, str]] | None:
    """Return MLflow's own flavor for the model and its options, or None. Unknown libraries count as scikit-learn."""
    if predict_fn != "predict":  # the flavors of the boosters have none, and theirs are estimators of scikit-learn, too
        options = {"serialization_format": _SERIALIZATION["sklearn"], "pyfunc_predict_fn": predict_fn}
        return ("sklearn", options) if hasattr(model, predict_fn) else None
    packages = packages_of(model)
    flavor = next((_FLAVORS[package] for package in packages if package in _FLAVORS), None)
    if flavor == "transformers" and "torch" in packages:
        flavor = "pytorch"  # a bare net; mlflow.transformers logs pipelines
    if flavor is None and input_example is not None:
        with suppress(Exception):  # a forecaster takes a horizon instead of rows, a recommender two arguments
            flavor = "sklearn" if len(model.predict(input_example[:1])) == 1 else None
    is_function = flavor == "tensorflow" and hasattr(model, "python_function")  # No flavor saves a bare tf.function.
    if flavor is None or is_function or (flavor == "sklearn" and not hasattr(model, "predict")):
        return None
    return flavor, {"serialization_format": _SERIALIZATION[flavor]} if flavor in _SERIALIZATION else {}


def with_alternative(error: ModelError, model: TrainedModel) -> ModelError:
    """Return the error of a model without an ONNX form, with the way in which it can still be served."""
    if is_onnx(model):
        return error
    call = "mlflow.pyfunc.log_model(python_model=…), in a mlflow.pyfunc.PythonModel around it"
    if (found := pyfunc_flavor(model)) is not None:
        flavor, options = found
        given = "".join(f'(…, {name}="{value}")' for name, value in options.items())
        call = f"mlflow.{flavor}.log_model{given}"
    way = f"Log it with {call}, and deploy it by the same command: it is then served as pyfunc"
    return type(error)(f"{error.message.removesuffix('.')}. {way}.")


def explain_failure(error: BaseException, model: TrainedModel) -> str:
    """Return the message if a model is not converted, or its graph not loaded: the step, its option, the reason."""
    part: object = None
    unread = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):  # the estimator that skl2onnx was converting
        part = getattr(frame.f_locals.get("operator"), "raw_operator", None) or part
        if frame.f_code.co_name == "__dir__":  # of another library, with an attribute that raises
            part = frame.f_locals["self"]
            unread = f"there is no converter for {type(part).__module__}.{type(part).__qualname__}"
    if not part:  # the part that the error names: the innermost that is not a pipeline
        words = set(re.findall(r"\w+", str(error))) - {"Pipeline"}
        part = next((one for _, one in _parts(model) if type(one).__name__ in words), None)
    cause = error.__cause__ or error  # skl2onnx wraps it in a list of attributes
    reason = unread or plain_reason(str(cause)) or f"its converter gives up with {type(cause).__name__}"
    if isinstance(cause, LookupError | AttributeError | TypeError) and reason not in {unread, *_REASONS.values()}:
        reason = f"its converter does not know this form of it ({type(cause).__name__}: {reason})"
    place = ""
    if part is not None and type(part) is not type(model):
        kind = getattr(part, "stands_for", type(part).__name__)  # of one of ours
        way = next((name for name, one in _parts(model) if type(one) is type(part)), "")
        place = f"its step {' → '.join(way.split('__'))!r} ({kind}): " if way else f"its {kind}: "
    return f"{type(model).__name__} cannot be converted to ONNX: {place}{reason}"


def plain_reason(text: str) -> str:
    """Return the message of a converter or ONNX Runtime in one line, without the pointers to its own developers."""
    text = _CLASS.sub(r"\1", one_line(text))
    if match := _NO_CONVERTER.search(text):
        return f"there is no converter for {match['kind']}"
    if match := _INPUTS.search(text):
        return (
            f"it reads {match['given']} inputs of different types, and its converter takes {match['most']}; a "
            "ColumnTransformer before it, or columns of one type, make them one"
        )
    if match := _NO_KERNEL.search(text):
        return f"ONNX Runtime has no operator {match['op']}, which its converter writes"
    if match := _NO_OPERATOR.search(text):
        return f"ONNX has no operator for {match['tf'] or match['fx'] or match['ts']}"
    if found := next((reason for words, reason in _REASONS.items() if words in text), ""):
        return found
    if _MIXED.search(text):
        return (
            "a step reads texts and numbers together, which a graph keeps apart; a ColumnTransformer gives each kind a "
            "step of its own"
        )
    text = _URL.sub("", _ISSUE.sub("", _CPP.sub("", text)))
    return text.strip(" .:")[:300]


def _parts(model: TrainedModel) -> Iterator[tuple[str, TrainedModel]]:
    """Yield the estimators within an estimator by the names of their parameters, and the estimator itself."""
    if hasattr(model, "get_params"):
        for name, value in model.get_params(deep=True).items():
            if hasattr(value, "get_params") and not isinstance(value, type):
                yield name, value
    yield "", model
