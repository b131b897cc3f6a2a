"""Resolution of a model URI to one version, before any download.

A stage, an alias or a tag needs one call: `get_registered_model` has the newest version
of each stage, and a search returns only the newest version with a tag, because a model
may have thousands of versions. If a version passed its gate without an evaluation,
another call reads the policy of the model.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.core.errors import (
    InvalidConfig,
    NotFound,
    OnnxserveError,
    RegistryUnavailable,
)
from mlflow_deploy_plugin.core.registry.connection import (
    is_mlflow_set,
    is_unity_catalog,
    registry_address,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.core.registry.model_folders import is_model_file
from mlflow_deploy_plugin.core.registry.model_uri import (
    STAGES,
    ModelURI,
    missing_folder_message,
    model_name,
    parse_model_uri,
    registered_meta,
)
from mlflow_deploy_plugin.core.registry.tags import (
    GATE_POLICY_TAG,
    GATE_TAG,
    PASSED_WITHOUT_EVALUATION,
    GateStatus,
    gate_status_of,
    names_dataset,
)
from mlflow_deploy_plugin.core.settings import absolute_path, active_workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PARITY_TAG = "onnxserve.parity"
GIT_COMMIT_TAG = "mlflow.source.git.commit"
REFUSED = "refused"
"""The end of the mark of a model for which the steps are refused."""
_SHOWN_VERSIONS = 10
_PAGE = 200
_SHORT_PAGE = 20
"""The number of models per page, and the number after a page without an answer in time:
MLflow's basic auth needs 10 to 50 ms per model.
"""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNREGISTERED = GateStatus(reason="only a registered version can pass a gate")


@dataclass(frozen=True)
class ResolvedModel:
    """One version of a model.

    Attributes:
        name: the registered model, the logged model, or otherwise the last part of the
            path.
        version: the registry's number or the model id. Empty for a path, a URI or a
            run's artifact, of which the agent reads the `model_id` from the downloaded
            MLmodel file.
        source: an immutable address of the files: models:/X/3, models:/m-…, runs:/…, a
            URI, a folder.
        followed: True if the URI can move to another version (a stage, an alias or a
            tag).
        aspects: the values of stage, alias, tag, gate, run_id, model_id, parity and
            git_commit that are known.
        registered_at: milliseconds since 1970; 0 if the version is not registered.
    """

    model_uri: str
    name: str
    version: str
    source: str
    followed: bool = False
    aspects: dict[str, str] = field(default_factory=dict)
    gate_status: GateStatus = _UNREGISTERED
    registered_at: int = 0

    def __post_init__(self) -> None:
        """Raise InvalidConfig for control characters, which MLflow allows. Names are
        written to headers and logs.
        """
        for what, text in (("name", self.name), ("version", self.version)):
            if _CONTROL.search(text):
                raise InvalidConfig(
                    f"the {what} {text[:200]!r} of a model has control characters, which is not "
                    "allowed",
                )

    @property
    def identity(self) -> str:
        """A text that differs between versions, even if a version number is registered
        again after its deletion.
        """
        return f"{self.source} {self.registered_at}"


Resolution = ResolvedModel | OnnxserveError


def resolve(model_uri: str, registry: "MlflowClient | None" = None) -> ResolvedModel:
    """Look up the version that the URI currently selects, with one call to the registry
    (no call for a folder).

    The registry of a registered model is MLflow's client or, in MLflow's server, the
    store `registry`. Raises InvalidConfig if it is not a model URI, and NotFound with
    the existing names if it does not select a version.
    """
    uri = parse_model_uri(model_uri)
    match uri.kind:
        case "path":
            folder = absolute_path(uri.name)
            if not (folder.is_dir() or is_model_file(folder)):
                raise NotFound(missing_folder_message(uri.name))
            version = registered_meta(folder).get("model_version", "")
            return ResolvedModel(model_uri, model_name(uri), version, str(folder))
        case "remote":
            return ResolvedModel(model_uri, model_name(uri), version="", source=model_uri)
        case "run":
            with registry_errors(f"run {uri.name}"):
                run = registry_client().get_run(uri.name)
            aspects = _non_empty(
                run_id=run.info.run_id,
                git_commit=run.data.tags.get(GIT_COMMIT_TAG),
            )
            return ResolvedModel(
                model_uri,
                model_name(uri),
                version="",
                source=model_uri,
                aspects=aspects,
            )
        case "logged_model":
            with registry_errors(f"logged model {uri.name}"):
                model = registry_client().get_logged_model(uri.name)
            aspects = _non_empty(
                model_id=model.model_id,
                run_id=model.source_run_id,
                parity=model.tags.get(PARITY_TAG),
                git_commit=model.tags.get(GIT_COMMIT_TAG),
            )
            return ResolvedModel(
                model_uri,
                model.name,
                model.model_id,
                f"models:/{model.model_id}",
                aspects=aspects,
            )
        case _:
            return _resolve_registered(model_uri, uri, registry or registry_client())


def check_new_name(model: str) -> None:
    """Raise InvalidConfig if MLflow does not accept the name for a registered model."""
    if "/" in model or ":" in model:
        raise InvalidConfig(
            f"{model!r} is not a valid name for a registered model: / and : are not allowed",
        )
    if model and is_unity_catalog():
        # Few registries need this module, which imports MLflow.
        from mlflow_deploy_plugin.core.registry.unity_catalog import check_name

        check_name(model)


def registered_version(model: str, version: str) -> ResolvedModel:
    """Return a version of a registered model. Raises NotFound, and InvalidConfig for a
    bad number, or if the name is a URI or a path, for example a folder named like the
    model.
    """
    if "/" in model or ":" in model or model in (".", ".."):
        name, _, number = model.removeprefix("models:/").partition("@")[0].partition("/")
        if not number.isdigit():
            number = "VERSION"
        hint = "mlflow.register_model registers the model in a folder"
        if model.startswith("models:/"):
            hint = f"use the name and the version: {name or 'NAME'} {number}"
        raise InvalidConfig(f"{model!r} is not the name of a registered model; {hint}")
    if not version.isdigit():
        raise InvalidConfig(f"{version!r} is not a version of {model}; a number is expected")
    return resolve(f"models:/{model}/{version}")


def _resolve_registered(model_uri: str, uri: ModelURI, client: "MlflowClient") -> ResolvedModel:
    """Return the version of a registered model that `model_uri`, parsed as `uri`,
    selects now.
    """
    info = None
    with suppress(NotFound), registry_errors(f"model {uri.name}"):
        match uri.kind:
            case "version":
                info = client.get_model_version(uri.name, uri.selector)
            case "alias":
                info = client.get_model_version_by_alias(uri.name, uri.selector)
            case "stage":
                latest = client.get_registered_model(uri.name).latest_versions
                # Of several versions, the highest is selected, as in MLflow.
                info = newest([version for version in latest if selects(uri, version)])
            case _:
                tag = uri.tag if uri.kind == "tag" else None
                info = newest(_newest_versions(client, uri.name, 1, tag))
    if info is None:
        raise NotFound(_not_found_message(client, uri))
    is_logged = (info.source or "").startswith("models:/m-")
    aspects = _non_empty(
        stage=stage_of(info),
        alias=uri.selector if uri.kind == "alias" else "",
        tag=uri.selector if uri.kind == "tag" else "",
        gate=info.tags.get(GATE_TAG),
        run_id=info.run_id,
        model_id=info.source.removeprefix("models:/") if is_logged else "",
        parity=info.tags.get(PARITY_TAG),
        git_commit=info.tags.get(GIT_COMMIT_TAG),
    )
    status = gate_status_of(info.tags)
    if status.state == PASSED_WITHOUT_EVALUATION:
        with registry_errors(f"model {uri.name}"):
            policy = client.get_registered_model(uri.name).tags.get(GATE_POLICY_TAG, "")
        # If the policy has a dataset, a pass without an evaluation is void.
        if names_dataset(policy):
            reason = (
                f"it {status.state}, and the policy of {uri.name} now has a dataset; run "
                "`onnxserve gate` again with a policy that does not skip the evaluation"
            )
            status = GateStatus(reason=reason, report=status.report)
    return ResolvedModel(
        model_uri,
        uri.name,
        str(info.version),
        f"models:/{uri.name}/{info.version}",
        uri.followed,
        aspects,
        gate_status=status,
        registered_at=info.creation_timestamp or 0,
    )


def _non_empty(**aspects: str | None) -> dict[str, str]:
    return {name: value for name, value in aspects.items() if value}


def stage_of(version: "ModelVersion") -> str:
    """Return the stage of a version; empty without a stage."""
    return str(version.current_stage or "").removeprefix("None")


def selects(uri: ModelURI, version: "ModelVersion") -> bool:
    if uri.kind == "tag":
        key, value = uri.tag
        return bool(version.tags.get(key) == value)
    return str(version.current_stage).lower() == uri.selector.lower()


def selected_models(
    pattern: ModelURI, refusal: Callable[[str, dict[str, str] | None], object] | None = None
) -> Iterator[dict[str, str]]:
    """Yield the registered models that a pattern selects, each with a mark: the number
    of the selected version, and the times of the model's last change and of its
    creation. If `refusal` returns a reason for the name and the tags of the model (None
    if they are not listed), the mark ends with `REFUSED`. The value grows with each
    page of the registry's answer. Raises the errors of the registry.
    """
    search: Callable[..., Any] = registry_client().search_registered_models
    if pattern.kind == "tag":
        query = f"tags.`{pattern.tag[0]}` = {_quoted(pattern.tag[1])}"
        search = partial(registry_client().search_model_versions, query)
    marks: dict[str, str] = {}
    token = None
    size = _PAGE
    while True:
        try:
            with registry_errors("the list of registered models"):
                page = search(max_results=size, page_token=token)
        except RegistryUnavailable:
            if size == _SHORT_PAGE:
                raise
            size = _SHORT_PAGE
            continue
        for entry in page:
            model_tags = None
            if pattern.kind == "tag":
                number = entry.version
                # A search for versions lacks the times of the model.
                mark = f"{number} {entry.creation_timestamp} 0"
            else:
                # With a DENY for versions, MLflow lists models without versions.
                number = entry.aliases.get(pattern.selector, 0) if entry.latest_versions else 0
                if pattern.kind == "stage":
                    latest = newest(filter(partial(selects, pattern), entry.latest_versions))
                    number = latest.version if latest is not None else 0
                mark = f"{number} {entry.last_updated_timestamp} {entry.creation_timestamp}"
                model_tags = entry.tags
            if not fnmatchcase(entry.name, pattern.name):
                continue
            if int(number) > int(marks.get(entry.name, "0").split()[0]):
                if refusal and refusal(entry.name, model_tags):
                    mark += f" {REFUSED}"
                marks[entry.name] = mark
        yield marks
        token = page.token
        if not token:
            return


def all_versions(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    return list(client.search_model_versions(f"name = {_quoted(name)}"))


def _newest_versions(
    client: "MlflowClient",
    name: str,
    most: int,
    tag: tuple[str, str] | None = None,
) -> "list[ModelVersion]":
    """Return the versions with the highest numbers in descending order; with `tag`,
    only versions with this tag.
    """
    query = f"name = {_quoted(name)}"
    if tag:
        query += f" and tags.`{tag[0]}` = {_quoted(tag[1])}"
    return list(
        client.search_model_versions(query, max_results=most, order_by=["version_number DESC"]),
    )


def newest(versions: "Iterable[ModelVersion]") -> "ModelVersion | None":
    return max(versions, key=lambda version: int(version.version), default=None)


def _quoted(text: str) -> str:
    """Return the text quoted for MLflow's filters, which have no escape. Raises
    InvalidConfig if it has both quotes.
    """
    if {"'", '"'} <= set(text):
        raise InvalidConfig(
            f"{text!r} has both kinds of quotes: MLflow cannot search for the versions of such a "
            "name",
        )
    quote = '"' if "'" in text else "'"
    return f"{quote}{text}{quote}"


def _not_found_message(client: "MlflowClient", uri: ModelURI) -> str:
    """Return a message with the existing versions of the model or, if the model does
    not exist, the existing models.

    In the second case, the message also contains the registry, which is a local file
    without MLFLOW_TRACKING_URI.
    """
    name = uri.name
    selected = {
        "stage": f"version in stage {STAGES.get(uri.selector.lower())}",
        "tag": f"version with the tag {uri.selector}",
        "latest": "version",
    }.get(uri.kind, f"{uri.kind} {uri.selector}")
    lacks = f"model {name} has no {selected}; "
    with registry_errors(f"model {name}"):
        versions = _newest_versions(client, name, _SHOWN_VERSIONS)
        if versions:
            aliases = client.get_registered_model(name).aliases
            return f"{lacks}versions: {_describe_versions(uri, versions, aliases)}"
        models = [
            model.name for model in client.search_registered_models(max_results=_SHOWN_VERSIONS)
        ]
    if name in models:
        return lacks + "it does not have any versions"
    alternatives = "the registry is empty"
    if models:
        alternatives = f"the registered models are {', '.join(models)}"
    unset = "" if models or is_mlflow_set() else "; MLFLOW_TRACKING_URI is not set"
    where = registry_address()
    if workspace := active_workspace():
        where += f", workspace {workspace}"
    return f"there is no registered model {name}; {alternatives}, in MLflow at {where}{unset}"


def _describe_versions(
    uri: ModelURI,
    versions: "Sequence[ModelVersion]",
    aliases: Mapping[str, str],
) -> str:
    """Return the versions with their stages, aliases and the tag of the URI, and a hint
    if MLflow has removed the stages.
    """
    of_version = {str(number): f"@{alias}" for alias, number in aliases.items()}
    key = uri.tag[0] if uri.kind == "tag" else ""
    descriptions = []
    for version in reversed(versions):
        number = str(version.version)
        tagged = f"{key}={version.tags[key]}" if key in version.tags else ""
        marks = filter(None, (stage_of(version), of_version.get(number), tagged))
        descriptions.append(f"{number} ({', '.join(marks)})".removesuffix(" ()"))
    text = ", ".join(descriptions)
    if uri.kind == "stage" and not any(version.current_stage for version in versions):
        return f"{text}; this MLflow has no stages, so use an alias: models:/{uri.name}@ALIAS"
    return text
