"""What several model URIs mean now, asked with as few calls as MLflow allows: one for each model, where all is well.

    stages, and aliases beside them         get_registered_model: the newest version of each stage, and the aliases
    one alias                               get_model_version_by_alias
    tags, and stages beside them            search_model_versions

(MLflow's own `get_latest_versions` makes two calls: it asks for the registered model first, which has the answer.)
MLflow has no call that tells aliases and tags together: those cost two. A version that an alias names and that is not
the newest of its stage is asked for once, and again when MLflow says that the model has changed.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, OnnxserveError
from mlflow_deploy_plugin.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.registry.reference import Reference, parse_model_uri
from mlflow_deploy_plugin.registry.resolve import (
    ResolvedModel,
    described,
    highest,
    resolve,
    stage_of,
    versions_of,
)
from mlflow_deploy_plugin.registry.tags import standing_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

Answer = ResolvedModel | OnnxserveError


def model_of(model_uri: str) -> str:
    """What is asked for together: the name of the registered model of a followed reference, else the URI itself."""
    try:
        reference = parse_model_uri(model_uri)
    except OnnxserveError:
        return model_uri
    return f"models:/{reference.name}" if reference.followed else model_uri


class Lookup:
    """Asks the registry, and remembers between two looks what cannot have changed."""

    def __init__(self) -> None:
        self._named: dict[tuple[str, str], tuple[int, ModelVersion]] = {}

    def resolve(self, model_uris: Iterable[str]) -> dict[str, Answer]:
        """What each URI means now, or why that cannot be told; see `resolve.resolve`."""
        groups: dict[str, list[str]] = defaultdict(list)
        for uri in dict.fromkeys(model_uris):
            groups[model_of(uri)].append(uri)
        answers: dict[str, Answer] = {}
        for uris in groups.values():
            answers |= {uris[0]: _alone(uris[0])} if len(uris) == 1 else self._together(uris)
        return answers

    def _together(self, uris: Sequence[str]) -> dict[str, Answer]:
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
            uri: described(uri, reference, found[reference]) if reference in found else _alone(uri)
            for uri, reference in references.items()
        }

    def _find(self, name: str, references: Sequence[Reference]) -> "dict[Reference, ModelVersion]":
        """The version of each reference that has one."""
        client = registry_client()
        kinds = {reference.kind for reference in references}
        needs_model = "alias" in kinds or "tag" not in kinds
        model: Any = client.get_registered_model(name) if needs_model else None
        versions = versions_of(client, name) if "tag" in kinds else model.latest_versions
        found = {}
        for reference in references:
            version: ModelVersion | None
            if reference.kind == "alias":
                number = model.aliases.get(reference.selector)
                version = None if number is None else self._numbered(client, model, str(number), versions)
            else:
                version = highest([version for version in versions if _matches(reference, version)])
            if version is not None:
                found[reference] = version
        return found

    def _numbered(self, client: Any, model: Any, number: str, versions: "Sequence[ModelVersion]") -> "ModelVersion":
        """The version of this number. One that has not passed the gate is asked for anew: a tag does not show there."""
        for version in versions:
            if str(version.version) == number:
                return version
        at, remembered = self._named.get((model.name, number), (None, None))
        if remembered is None or at != model.last_updated_timestamp or not standing_of(remembered.tags).passed:
            remembered = client.get_model_version(model.name, number)
            self._named[model.name, number] = model.last_updated_timestamp, remembered
        return remembered


def _alone(uri: str) -> Answer:
    try:
        return resolve(uri)
    except OnnxserveError as error:
        return error


def _matches(reference: Reference, version: "ModelVersion") -> bool:
    if reference.kind == "tag":
        key, value = reference.tag
        return bool(version.tags.get(key) == value)
    return bool(version.current_stage == stage_of(reference))
