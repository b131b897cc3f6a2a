"""A model URI → one concrete version, before anything is fetched."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.registry.connection import registry_address, registry_client, registry_errors
from mlflow_deploy_plugin.registry.reference import Reference, model_name, parse_model_uri, why_no_folder
from mlflow_deploy_plugin.registry.tags import GATE_TAG, Standing, standing_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PARITY_TAG = "onnxserve.parity"
GIT_COMMIT_TAG = "mlflow.source.git.commit"
_STAGES = {stage.lower(): stage for stage in ("None", "Staging", "Production", "Archived")}
_SHOWN_VERSIONS = 10
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNREGISTERED = Standing(False, "", "only a registered version can pass a gate")


@dataclass(frozen=True)
class ResolvedModel:
    """One version of a model.

    Attributes:
        name: the registered model, else the logged model's name or the last part of the path.
        version: the registry's number or the model id; empty where only the files say it (a path, a URI, a run's
            artifact): then it is the `model_id` of the MLmodel file, which the agent reads once the files are there.
        source: where the files are, and nothing that moves: models:/X/3, models:/m-…, runs:/…, a URI, a folder.
        followed: the reference can move to another version (a stage, an alias or a tag).
        aspects: what is known beside it: stage, alias, tag, gate, run_id, model_id, parity, git_commit.
        standing: where a registered version stands before its model's gate; nothing else can pass one.
    """

    model_uri: str
    name: str
    version: str
    source: str
    followed: bool = False
    aspects: dict[str, str] = field(default_factory=dict)
    standing: Standing = _UNREGISTERED

    def __post_init__(self) -> None:
        """Refuse a name with line ends: MLflow lets it have them, and it is shown in headers, metrics and logs.

        Raises:
            InvalidConfig: the name or the version has a control character.
        """
        for what, text in (("name", self.name), ("version", self.version)):
            if _CONTROL.search(text):
                raise InvalidConfig(f"the {what} {text[:200]!r} of a model has control characters; it cannot be served")

    @property
    def identity(self) -> str:
        """Tells versions apart, also one that was deleted and registered anew under the same number."""
        return " ".join((self.source, self.aspects.get("model_id", ""), self.aspects.get("run_id", "")))


def resolve(model_uri: str) -> ResolvedModel:
    """Asks the registry (with one call where all is well) what the URI means now; a folder asks nobody.

    Raises:
        InvalidConfig: not a model URI.
        NotFound: no such model, version, stage, alias, run or folder; the message names what exists.
        RegistryUnavailable: MLflow does not answer.
    """
    reference = parse_model_uri(model_uri)
    match reference.kind:
        case "path":
            folder = Path(reference.name).expanduser().absolute()
            if not folder.is_dir():
                raise NotFound(why_no_folder(reference.name))
            return ResolvedModel(model_uri, model_name(reference), "", str(folder))
        case "remote":
            return ResolvedModel(model_uri, model_name(reference), "", model_uri)
        case "run":
            return _of_run(model_uri, reference)
        case "logged_model":
            return _logged(model_uri, reference)
        case _:
            return _registered(model_uri, reference)


def _of_run(model_uri: str, reference: Reference) -> ResolvedModel:
    with registry_errors(f"run {reference.name}"):
        run = registry_client().get_run(reference.name)
    aspects = {"run_id": run.info.run_id, "git_commit": run.data.tags.get(GIT_COMMIT_TAG, "")}
    return ResolvedModel(model_uri, model_name(reference), "", model_uri, aspects=_known(aspects))


def _logged(model_uri: str, reference: Reference) -> ResolvedModel:
    with registry_errors(f"logged model {reference.name}"):
        model = registry_client().get_logged_model(reference.name)
    aspects = {
        "model_id": model.model_id,
        "run_id": model.source_run_id or "",
        "parity": model.tags.get(PARITY_TAG, ""),
        "git_commit": model.tags.get(GIT_COMMIT_TAG, ""),
    }
    return ResolvedModel(model_uri, model.name, model.model_id, f"models:/{model.model_id}", aspects=_known(aspects))


def _registered(model_uri: str, reference: Reference) -> ResolvedModel:
    found = _find_version(reference)
    if found is None:
        raise NotFound(_not_found(reference))
    return described(model_uri, reference, found)


def described(model_uri: str, reference: Reference, found: "ModelVersion") -> ResolvedModel:
    """The version that the registry has found for the reference."""
    stage = found.current_stage or ""
    is_logged = (found.source or "").startswith("models:/m-")
    aspects = {
        "stage": "" if stage == "None" else stage,
        "alias": reference.selector if reference.kind == "alias" else "",
        "tag": reference.selector if reference.kind == "tag" else "",
        "gate": found.tags.get(GATE_TAG, ""),
        "run_id": found.run_id or "",
        "model_id": (found.source or "").removeprefix("models:/") if is_logged else "",
        "parity": found.tags.get(PARITY_TAG, ""),
        "git_commit": found.tags.get(GIT_COMMIT_TAG, ""),
    }
    version = str(found.version)
    source = f"models:/{reference.name}/{version}"
    standing = standing_of(found.tags)
    return ResolvedModel(model_uri, reference.name, version, source, reference.followed, _known(aspects), standing)


def _find_version(reference: Reference) -> "ModelVersion | None":
    """The version, or None where the registry has none such. The highest number counts, as in MLflow."""
    client = registry_client()
    try:
        with registry_errors(f"model {reference.name}"):
            match reference.kind:
                case "version":
                    return client.get_model_version(reference.name, reference.selector)
                case "alias":
                    return client.get_model_version_by_alias(reference.name, reference.selector)
                case "stage":
                    stage = stage_of(reference)
                    newest = client.get_registered_model(reference.name).latest_versions
                    return highest([version for version in newest if version.current_stage == stage])
                case "tag":
                    return _newest_tagged(client, reference)
                case _:
                    return highest(versions_of(client, reference.name))
    except NotFound:
        return None


def stage_of(reference: Reference) -> str:
    """MLflow's spelling of the stage; case does not matter there either."""
    try:
        return _STAGES[reference.selector.lower()]
    except KeyError:
        raise InvalidConfig(
            f"models:/{reference.name}/{reference.selector}: {reference.selector!r} is neither a version, `latest` nor "
            f"a stage ({', '.join(_STAGES.values())}); an alias is models:/{reference.name}@{reference.selector}, "
            f"a tag models:/{reference.name}/tag:KEY=VALUE"
        ) from None


def _wish(reference: Reference) -> str:
    match reference.kind:
        case "stage":
            return f"version in stage {stage_of(reference)}"
        case "tag":
            return f"version with the tag {reference.selector}"
        case "latest":
            return "version"
        case kind:
            return f"{kind} {reference.selector}"


def _not_found(reference: Reference) -> str:
    """Says what exists instead: the model's versions with stage and aliases, or, without such a model, the models.

    And then where: without MLFLOW_TRACKING_URI it is a file in this folder, which is seldom meant.
    """
    client, name = registry_client(), reference.name
    lacks = f"model {name} has no {_wish(reference)}; "
    with registry_errors(f"model {name}"):
        versions = sorted(versions_of(client, name), key=lambda version: int(version.version), reverse=True)
        if versions:
            aliases = {str(v): alias for alias, v in client.get_registered_model(name).aliases.items()}
            key = reference.tag[0] if reference.kind == "tag" else ""
            shown = [_shown(version, aliases, key) for version in versions[:_SHOWN_VERSIONS]]
            return lacks + "versions: " + ", ".join(reversed(shown))
        models = [model.name for model in client.search_registered_models(max_results=_SHOWN_VERSIONS)]
    if name in models:
        return lacks + "it has no versions at all"
    others = f"registered are {', '.join(models)}" if models else "the registry is empty"
    return f"there is no registered model {name}; {others}, in MLflow at {registry_address()}"


def _shown(version: "ModelVersion", aliases: dict[str, str], key: str) -> str:
    """The version with its stage and alias, and its value of the tag that was asked for."""
    alias = aliases.get(str(version.version))
    value = version.tags.get(key) if key else None
    tagged = "" if value is None else f", {key}={value}"
    return f"{version.version} ({version.current_stage}{f', @{alias}' if alias else ''}{tagged})"


def versions_of(client: Any, name: str) -> "Sequence[ModelVersion]":
    """All versions of the model."""
    return list(client.search_model_versions(_named(name)))


def _newest_tagged(client: Any, reference: Reference) -> "ModelVersion | None":
    key, value = reference.tag
    quote = '"' if "'" in value else "'"
    wish = f"{_named(reference.name)} and tags.`{key}` = {quote}{value}{quote}"
    return highest(client.search_model_versions(wish, max_results=1, order_by=["version_number DESC"]))


def _named(name: str) -> str:
    escaped = name.replace("'", "\\'")
    return f"name='{escaped}'"


def highest(versions: "Sequence[ModelVersion]") -> "ModelVersion | None":
    return max(versions, key=lambda version: int(version.version), default=None)


def _known(aspects: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in aspects.items() if value}
