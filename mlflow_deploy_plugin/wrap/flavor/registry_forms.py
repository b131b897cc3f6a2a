"""The forms in which the registered models of a selection would be served, for
`onnxserve wrap --registry @champion --dry-run`.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from mlflow_deploy_plugin.core.errors import ConversionError, OnnxserveError
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, PYTHON_FUNCTION
from mlflow_deploy_plugin.core.registry.model_files import fetch_mlmodel
from mlflow_deploy_plugin.core.registry.model_uri import ModelURI
from mlflow_deploy_plugin.core.registry.resolution import selected_models
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import proof_rows, runs_code
from mlflow_deploy_plugin.wrap.convert.converters import check_flavor

_PARALLEL = 8


@dataclass(frozen=True)
class RegisteredForm:
    """The form of a registered version.

    Attributes:
        flavor: the library of the model; empty if its MLmodel file cannot be read.
        form: onnx if it has an ONNX form, converts if a server would convert it, and
            original for a model that answers as it is.
        reason: the state of the proof, the rows of a conversion, or the reason why it
            is not converted.
        consent: the option without which it is not served behind a stage or an alias;
            empty if it needs none.
    """

    name: str
    version: str
    flavor: str
    form: Literal["onnx", "converts", "original", "unreadable"]
    reason: str
    consent: str = ""


def registered_forms(pattern: ModelURI) -> Iterator[RegisteredForm]:
    """Yield the form of each version that the pattern selects, in the order of the
    names. Raises the errors of the registry.
    """
    *_, marks = selected_models(pattern)  # The last page has all models.
    versions = {name: marks[name].split()[0] for name in sorted(marks)}
    with ThreadPoolExecutor(_PARALLEL) as pool:
        yield from pool.map(registered_form, versions.keys(), versions.values())


def registered_form(name: str, version: str) -> RegisteredForm:
    """Return the form of a registered version."""
    try:
        mlmodel = fetch_mlmodel(f"models:/{name}/{version}")
    except OnnxserveError as error:
        return RegisteredForm(name, version, "", "unreadable", error.message)
    example = mlmodel.saved_input_example_info
    document = {"flavors": mlmodel.flavors, "saved_input_example_info": example}
    return form_of(name, version, document)


def form_of(name: str, version: str, document: Mapping[str, Any]) -> RegisteredForm:
    """Return the form of a version with this MLmodel file."""
    made = partial(RegisteredForm, name, version)
    flavors = document.get("flavors", {})
    library = next((flavor for flavor in flavors if flavor != PYTHON_FUNCTION), PYTHON_FUNCTION)
    if FLAVOR in flavors:
        section = flavors[FLAVOR]
        state = str(section.get("parity", {}).get("state", "no-original"))
        return made(str(section.get("framework", library)), "onnx", state)
    if "onnx" in flavors:
        return made("onnx", "onnx", "no-original")
    rows = proof_rows(document)
    consent = "--allow-pickle" if rows else "variants.NAME.allow_pyfunc"
    made = partial(made, library, consent=consent if runs_code(document) else "")
    if not rows:
        return made("original", "it is a Python class of its own")
    try:
        check_flavor(library)
    except ConversionError:
        return made("original", f"models of {library} have no ONNX form")
    if rows == "made":
        return made("original", "it has no input example (variants.NAME.convert=always)")
    return made("converts", "on its input example, if the proof succeeds")
