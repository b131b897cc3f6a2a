"""A model URI → one concrete version, before anything is fetched.

`resolve` asks for one URI. `BatchResolver` asks for several with as few calls as MLflow allows, one for each model:

| URIs of one model               | call                                                                        |
|---------------------------------|-----------------------------------------------------------------------------|
| stages, and aliases beside them | `get_registered_model`: the newest version of each stage, and the aliases    |
| one alias                       | `get_model_version_by_alias`                                                |
| tags, and stages beside them    | `search_model_versions`                                                     |

MLflow's own `get_latest_versions` makes two calls: it asks for the registered model first, which has the answer.
MLflow has no call that returns both aliases and tags: those cost two. A version that has an alias and is not the newest
of its stage is fetched once, and again when MLflow says that the model has changed.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.registry.connection import registry_address, registry_client, registry_errors
from mlflow_deploy_plugin.registry.model_uri import (
    ModelURI,
    missing_folder_message,
    model_name,
    parse_model_uri,
)
from mlflow_deploy_plugin.registry.tags import GATE_TAG, GateStatus, gate_status_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

PARITY_TAG = "onnxserve.parity"
GIT_COMMIT_TAG = "mlflow.source.git.commit"
_STAGES = {stage.lower(): stage for stage in ("None", "Staging", "Production", "Archived")}
_SHOWN_VERSIONS = 10
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNREGISTERED = GateStatus(False, "", "only a registered version can pass a gate")


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
    standing: GateStatus = _UNREGISTERED

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
                raise NotFound(missing_folder_message(reference.name))
            return ResolvedModel(model_uri, model_name(reference), "", str(folder))
        case "remote":
            return ResolvedModel(model_uri, model_name(reference), "", model_uri)
        case "run":
            return _of_run(model_uri, reference)
        case "logged_model":
            return _logged(model_uri, reference)
        case _:
            return _registered(model_uri, reference)


def _of_run(model_uri: str, reference: ModelURI) -> ResolvedModel:
    with registry_errors(f"run {reference.name}"):
        run = registry_client().get_run(reference.name)
    aspects = {"run_id": run.info.run_id, "git_commit": run.data.tags.get(GIT_COMMIT_TAG, "")}
    return ResolvedModel(model_uri, model_name(reference), "", model_uri, aspects=_known(aspects))


def _logged(model_uri: str, reference: ModelURI) -> ResolvedModel:
    with registry_errors(f"logged model {reference.name}"):
        model = registry_client().get_logged_model(reference.name)
    aspects = {
        "model_id": model.model_id,
        "run_id": model.source_run_id or "",
        "parity": model.tags.get(PARITY_TAG, ""),
        "git_commit": model.tags.get(GIT_COMMIT_TAG, ""),
    }
    return ResolvedModel(model_uri, model.name, model.model_id, f"models:/{model.model_id}", aspects=_known(aspects))


def _registered(model_uri: str, reference: ModelURI) -> ResolvedModel:
    found = _find_version(reference)
    if found is None:
        raise NotFound(_not_found(reference))
    return resolved_version(model_uri, reference, found)


def resolved_version(model_uri: str, reference: ModelURI, found: "ModelVersion") -> ResolvedModel:
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
    standing = gate_status_of(found.tags)
    return ResolvedModel(model_uri, reference.name, version, source, reference.followed, _known(aspects), standing)


def _find_version(reference: ModelURI) -> "ModelVersion | None":
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
                    stage = canonical_stage(reference)
                    latest = client.get_registered_model(reference.name).latest_versions
                    return newest([version for version in latest if version.current_stage == stage])
                case "tag":
                    return _newest_tagged(client, reference)
                case _:
                    return newest(all_versions(client, reference.name))
    except NotFound:
        return None


def canonical_stage(reference: ModelURI) -> str:
    """MLflow's spelling of the stage; case does not matter there either."""
    try:
        return _STAGES[reference.selector.lower()]
    except KeyError:
        raise InvalidConfig(
            f"models:/{reference.name}/{reference.selector}: {reference.selector!r} is neither a version, `latest` nor "
            f"a stage ({', '.join(_STAGES.values())}); an alias is models:/{reference.name}@{reference.selector}, "
            f"a tag models:/{reference.name}/tag:KEY=VALUE"
        ) from None


def _wish(reference: ModelURI) -> str:
    match reference.kind:
        case "stage":
            return f"version in stage {canonical_stage(reference)}"
        case "tag":
            return f"version with the tag {reference.selector}"
        case "latest":
            return "version"
        case kind:
            return f"{kind} {reference.selector}"


def _not_found(reference: ModelURI) -> str:
    """Says what exists instead: the model's versions with stage and aliases, or, without such a model, the models.

    And then where: without MLFLOW_TRACKING_URI it is a file in this folder, which is seldom meant.
    """
    client, name = registry_client(), reference.name
    lacks = f"model {name} has no {_wish(reference)}; "
    with registry_errors(f"model {name}"):
        versions = sorted(all_versions(client, name), key=lambda version: int(version.version), reverse=True)
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


def all_versions(client: Any, name: str) -> "Sequence[ModelVersion]":
    """All versions of the model."""
    return list(client.search_model_versions(_named(name)))


def _newest_tagged(client: Any, reference: ModelURI) -> "ModelVersion | None":
    key, value = reference.tag
    quote = '"' if "'" in value else "'"
    wish = f"{_named(reference.name)} and tags.`{key}` = {quote}{value}{quote}"
    return newest(client.search_model_versions(wish, max_results=1, order_by=["version_number DESC"]))


def _named(name: str) -> str:
    escaped = name.replace("'", "\\'")
    return f"name='{escaped}'"


def newest(versions: "Sequence[ModelVersion]") -> "ModelVersion | None":
    return max(versions, key=lambda version: int(version.version), default=None)


def _known(aspects: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in aspects.items() if value}


Resolution = ResolvedModel | OnnxserveError


def lookup_key(model_uri: str) -> str:
    """What is asked for together: the name of the registered model of a followed reference, else the URI itself."""
    try:
        reference = parse_model_uri(model_uri)
    except OnnxserveError:
        return model_uri
    return f"models:/{reference.name}" if reference.followed else model_uri


class BatchResolver:
    """Asks the registry, and remembers between two looks what cannot have changed."""

    def __init__(self) -> None:
        self._named: dict[tuple[str, str], tuple[int, ModelVersion]] = {}

    def resolve(self, model_uris: Iterable[str]) -> dict[str, Resolution]:
        """What each URI means now, or why that cannot be told; see `resolve.resolve`."""
        groups: dict[str, list[str]] = defaultdict(list)
        for uri in dict.fromkeys(model_uris):
            groups[lookup_key(uri)].append(uri)
        answers: dict[str, Resolution] = {}
        for uris in groups.values():
            answers |= {uris[0]: _alone(uris[0])} if len(uris) == 1 else self._together(uris)
        return answers

    def _together(self, uris: Sequence[str]) -> dict[str, Resolution]:
        references = {uri: parse_model_uri(uri) for uri in uris}
        name = references[uris[0]].name
        try:
            with registry_errors(f"model {name}"):
                found = self._find(name, list(references.values()))
        except (NotFound, InvalidConfig):
            return {uri: _alone(uri) for uri in uris}  # each says what there is instead
        except OnnxserveError as error:
            return dict.fromkeys(uris, error)
        return {
            uri: resolved_version(uri, reference, found[reference]) if reference in found else _alone(uri)
            for uri, reference in references.items()
        }

    def _find(self, name: str, references: Sequence[ModelURI]) -> "dict[ModelURI, ModelVersion]":
        """The version of each reference that has one."""
        client = registry_client()
        kinds = {reference.kind for reference in references}
        needs_model = "alias" in kinds or "tag" not in kinds
        model: Any = client.get_registered_model(name) if needs_model else None
        versions = all_versions(client, name) if "tag" in kinds else model.latest_versions
        found = {}
        for reference in references:
            version: ModelVersion | None
            if reference.kind == "alias":
                number = model.aliases.get(reference.selector)
                version = None if number is None else self._numbered(client, model, str(number), versions)
            else:
                version = newest([version for version in versions if _matches(reference, version)])
            if version is not None:
                found[reference] = version
        return found

    def _numbered(self, client: Any, model: Any, number: str, versions: "Sequence[ModelVersion]") -> "ModelVersion":
        """The version of this number. One that has not passed the gate is asked for anew: a tag does not show there."""
        for version in versions:
            if str(version.version) == number:
                return version
        at, remembered = self._named.get((model.name, number), (None, None))
        if remembered is None or at != model.last_updated_timestamp or not gate_status_of(remembered.tags).passed:
            remembered = client.get_model_version(model.name, number)
            self._named[model.name, number] = model.last_updated_timestamp, remembered
        return remembered


def _alone(uri: str) -> Resolution:
    try:
        return resolve(uri)
    except OnnxserveError as error:
        return error


def _matches(reference: ModelURI, version: "ModelVersion") -> bool:
    if reference.kind == "tag":
        key, value = reference.tag
        return bool(version.tags.get(key) == value)
    return bool(version.current_stage == canonical_stage(reference))
