"""Model URIs, which are parsed without a call to the registry and without importing
mlflow.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlparse

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.settings import absolute_path, local_path

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.spec.parts import EndpointSpec

URIKind = Literal[
    "path",
    "remote",
    "stage",
    "alias",
    "tag",
    "version",
    "latest",
    "logged_model",
    "run",
]

_FORMS = (
    "a registered model (models:/NAME@ALIAS, models:/NAME/Production, models:/NAME/tag:KEY=VALUE, "
    "models:/NAME/3, models:/NAME/latest), a logged model (models:/m-…), a run's artifact "
    "(runs:/RUN_ID/PATH), an artifact store's URI (s3://…) or a folder"
)
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:")
STAGES = {stage.lower(): stage for stage in ("Production", "Staging", "Archived", "None")}
_TAG = "tag:"
_PROXIED = "/mlflow-artifacts/artifacts/"
_PAGE = re.compile(r"/models/(?P<name>[^/?]+)(?:/versions/(?P<version>\d+))?")
"""The end of the address of a model page in MLflow's UI."""
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_REGISTERED = re.compile(r"(?P<name>[^/.~@][^/@]*)(?:[/@][^/@]+)?")
"""A URI of a registered model without the scheme: NAME, NAME/STAGE, NAME@ALIAS."""

REGISTERED_META = "registered_model_meta"
"""The file that MLflow adds to the files of a registered version when it downloads
them.
"""


@dataclass(frozen=True)
class ModelURI:
    """A parsed model URI.

    Attributes:
        name: the name of a registered model; for other kinds of URIs, the model id, the
            run id, the folder or the URI.
        selector: the stage, alias, version, KEY=VALUE of a tag, or artifact path in a
            run; for other URIs empty.
    """

    kind: URIKind
    name: str
    selector: str = ""

    @property
    def followed(self) -> bool:
        """True for a stage, an alias or a tag, because each of them can move to another
        version.
        """
        return self.kind in ("stage", "alias", "tag")

    @property
    def is_pattern(self) -> bool:
        """True if the name is a pattern, as in models:/team-*@champion."""
        return self.followed and "*" in self.name

    def of_model(self, name: str) -> str:
        """Return the URI with which the stage, alias or tag selects a version of a
        model.
        """
        mark = {"alias": "@", "tag": f"/{_TAG}"}.get(self.kind, "/")
        return f"models:/{name}{mark}{self.selector}"

    @property
    def is_registered(self) -> bool:
        return self.kind in ("stage", "alias", "tag", "version", "latest")

    @property
    def place(self) -> str:
        """The stage, @alias or tag, as written in the audit trail."""
        if self.kind == "alias":
            return f"@{self.selector}"
        return self.selector

    @property
    def tag(self) -> tuple[str, str]:
        key, _, value = self.selector.partition("=")
        return key, value


def registered_model_uris(spec: "EndpointSpec") -> list[ModelURI]:
    parsed = [parse_model_uri(variant.model) for variant in spec.variants.values()]
    return [uri for uri in parsed if uri.is_registered]


def registered_model_names(spec: "EndpointSpec") -> list[str]:
    return sorted({uri.name for uri in registered_model_uris(spec)})


def model_pattern(specs: "Sequence[EndpointSpec]") -> ModelURI | None:
    """Return the URI of a spec that serves all registered models of a pattern; None for
    other specs. Raises InvalidConfig if the spec has other variants.
    """
    variants = list(chain.from_iterable(spec.variants.values() for spec in specs))
    for variant in variants:
        uri = parse_model_uri(variant.model)
        if uri.is_pattern:
            if len(variants) > 1:
                raise InvalidConfig(
                    f"{variant.model} serves every registered model that it matches, so it must be "
                    "the only variant of the only endpoint of a spec"
                )
            return uri
    return None


def parse_model_uri(model_uri: str) -> ModelURI:
    """Parse the URI by MLflow's rules. Raises InvalidConfig if the URI does not have a
    known form.
    """
    if not isinstance(model_uri, str):  # The caller may not check types.
        raise InvalidConfig(f"{model_uri!r} is not a string; a model is {_FORMS}")
    if not model_uri.strip():
        raise InvalidConfig(f"the model is empty; it is {_FORMS}")
    scheme = _SCHEME.match(model_uri)
    if scheme is None:
        return ModelURI("path", model_uri)
    try:
        address = urlparse(model_uri)
    except ValueError as error:
        raise InvalidConfig(f"{model_uri!r} is not a model URI ({error}); it is {_FORMS}") from None
    match scheme.group()[:-1].lower():
        case "models":
            return _parse_models_uri(model_uri)
        case "mlflow":  # KServe expects :// in the URIs of storage.
            return _parse_models_uri(f"models:/{_path_of(model_uri)}")
        case "runs":
            run_id, _, path = _path_of(model_uri).partition("/")
            if not run_id or not path:
                raise InvalidConfig(
                    f"{model_uri!r} is not the URI of a run's model; runs:/RUN_ID/PATH is expected",
                )
            return ModelURI("run", run_id, path)
        case "file":
            return ModelURI("path", str(local_path(model_uri)))
        case "http" | "https":
            # Only the artifacts of an MLflow server have supported web addresses.
            if _PROXIED not in address.path:
                server = f"{address.scheme}://{address.netloc.rpartition('@')[2]}"
                # Name the model of a page in MLflow's UI.
                page = _PAGE.search(unquote(address.fragment))
                name = page["name"] if page else "NAME"
                version = page["version"] if page else ""
                raise InvalidConfig(
                    f"a model cannot be fetched from the web address {server}{address.path}: if "
                    f"MLflow runs there, set MLFLOW_TRACKING_URI={server} and use "
                    f"models:/{name}/{version or 'VERSION'}; otherwise use a folder or s3://…",
                )
    return ModelURI("remote", model_uri)


def registry_uri(selector: str, only: str = "*") -> str:
    """Return the URI of all registered models with the alias, stage or tag `selector`
    whose names match the pattern `only`.
    """
    separator = "" if selector.startswith("@") else "/"
    return f"models:/{only}{separator}{selector}"


def missing_folder_message(text: str) -> str:
    """Return the error message for a folder that does not exist, with the URI that the
    user probably meant.
    """
    path = absolute_path(text)
    if path.is_file():
        return (
            f"{path} is a file; a model is a folder with an MLmodel file "
            "(onnxserve.save_model writes it); a file of endpoints needs --spec"
        )
    message = f"the folder {path} does not exist"
    # Undo the absolute path of a deployment.
    text = text.removeprefix(f"{absolute_path('.')}/")
    if _WINDOWS.match(text):
        return (
            f"{text} is a path of Windows, which this machine does not have: copy the folder to "
            "this machine, or use an artifact store (s3://…)"
        )
    text = text.removeprefix("models/")  # The user may have forgotten the colon.
    registered = _REGISTERED.fullmatch(text)
    if registered is None:
        return message
    name = registered["name"]
    if text != name:
        return f"{message}; a registered model is models:/{text}"
    return (
        f"{message}; a registered model is models:/{name}@ALIAS, models:/{name}/Production or "
        f"models:/{name}/VERSION"
    )


def default_endpoint_name(model_uri: str) -> str:
    """Return an endpoint name: models:/flight-delay/Production → flight-delay. Raises
    like `parse_model_uri`.
    """
    return endpoint_name(model_name(parse_model_uri(model_uri)))


def endpoint_name(name: str) -> str:
    """Return the name of an endpoint for the name of a model, which may be any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:63] or "model"


def model_name(uri: ModelURI) -> str:
    """Return the registered model's name, or the last part of the path."""
    match uri.kind:
        case "path":
            folder = absolute_path(uri.name)
            return registered_meta(folder).get("model_name") or folder.name or "model"
        case "remote":
            return urlparse(uri.name).path.rstrip("/").rpartition("/")[2] or "model"
        case "run":
            return uri.selector.rstrip("/").rpartition("/")[2]
        case _:
            return uri.name


def registered_meta(folder: Path) -> dict[str, str]:
    """Return `model_name` and `model_version` if the folder is a downloaded registered
    version; otherwise empty.
    """
    try:
        text = (folder / REGISTERED_META).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    import yaml  # Only a folder with this file needs the import.

    from mlflow_deploy_plugin.core.yaml_text import load_yaml

    try:
        note = load_yaml(text)
        keys = ("model_name", "model_version")
        if isinstance(note, dict):
            return {key: str(note[key]) for key in keys if note.get(key)}
        return {}
    except (ValueError, yaml.YAMLError):
        return {}


def _parse_models_uri(model_uri: str) -> ModelURI:
    """Parse models:/NAME/VERSION, /STAGE, /latest, /tag:KEY=VALUE, @ALIAS or
    models:/m-ID. Raises InvalidConfig for any other form.
    """
    path = _path_of(model_uri)
    if path.startswith((".", "~")):
        raise InvalidConfig(
            f"{model_uri!r} is a folder, not a registered model; use the path {path}",
        )
    name, slash, selector = path.partition("/")
    is_valid = name.strip() and (selector.strip() or not slash) and not urlparse(model_uri).netloc
    if selector.startswith(_TAG):
        key, _, value = selector.removeprefix(_TAG).partition("=")
        if not (is_valid and key.strip() and value):
            raise InvalidConfig(
                f"{model_uri!r} is not a valid tag URI; models:/NAME/tag:KEY=VALUE is expected",
            )
        # MLflow's filters cannot escape quotes.
        if {"`", '"'} & set(key) or {"'", '"'} <= set(value):
            raise InvalidConfig(f"{model_uri!r}: MLflow cannot search for a tag with such quotes")
        return ModelURI("tag", name, f"{key}={value}")
    if not is_valid or "/" in selector:
        raise InvalidConfig(f"{model_uri!r} is not a model URI; it is {_FORMS}")
    if slash:
        if selector.isascii() and selector.isdecimal():
            return ModelURI("version", name, selector.lstrip("0") or "0")
        if selector.lower() == "latest":
            return ModelURI("latest", name)
        if selector.lower() not in STAGES:
            raise InvalidConfig(
                f"models:/{name}/{selector}: {selector!r} is neither a version, `latest` nor a "
                f"stage ({', '.join(STAGES.values())}); for the alias, specify '@{selector}', as "
                f"in models:/{name}@{selector}"
            )
        return ModelURI("stage", name, selector)
    model, at, alias = name.rpartition("@")
    if model and alias:
        return ModelURI("alias", model, alias)
    if at or not name.startswith("m-"):
        raise InvalidConfig(f"{model_uri!r} does not select a version; the model is {_FORMS}")
    return ModelURI("logged_model", name)


def _path_of(model_uri: str) -> str:
    return model_uri.partition(":")[2].lstrip("/").rstrip("/")


def served_version_uri(model: str, version: str) -> str:
    """Return the URI of the model and version in a row of the inference log. Raises
    NotFound if MLflow lacks them.
    """
    if version.isdigit():
        return f"models:/{model}/{version}"
    if version.startswith("m-"):
        return f"models:/{version}"
    raise NotFound(
        f"model {model} version {version} is neither served nor in the registry: serve "
        "models:/NAME/VERSION",
    )
