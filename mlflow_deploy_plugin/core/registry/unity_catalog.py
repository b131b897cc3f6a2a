"""The registry of Databricks, Unity Catalog, behind the methods of MLflow's client.

Unity Catalog has names of three levels and aliases, but no stages. A search has no
order and returns no tags. The key of a tag has no dots, and its value at most 1000
characters.
"""

import re
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_LEVEL = r"[^\s./\\:@?#%'\"`\x00-\x1f\x7f]{1,255}"
_NAME = re.compile(rf"{_LEVEL}\.{_LEVEL}\.{_LEVEL}")
_OURS = "onnxserve."
_MOST_CHARACTERS = 1000


def check_name(name: str) -> None:
    """Raise InvalidConfig if the name does not have three levels, or has characters
    that Unity Catalog refuses.
    """
    if not _NAME.fullmatch(name):
        raise InvalidConfig(
            f"{name!r} is not the name of a model in Unity Catalog: CATALOG.SCHEMA.MODEL is "
            "expected, without spaces, slashes and quotes"
        )


def _stored_key(key: str) -> str:
    """Return the key under which Unity Catalog stores a tag of onnxserve."""
    return key.replace(".", "__") if key.startswith(_OURS) else key


def stored_tags(tags: "Mapping[str, object]") -> dict[str, str]:
    """Return the tags of a version as Unity Catalog stores them."""
    return {_stored_key(key): str(value)[:_MOST_CHARACTERS] for key, value in tags.items()}


def _with_keys(entity: Any) -> Any:
    """Return the model or the version after its stored keys were replaced by the keys
    of onnxserve.
    """
    prefix = _stored_key(_OURS)
    entity._tags = {
        key.replace("__", ".") if key.startswith(prefix) else key: value
        for key, value in entity.tags.items()
    }
    return entity


class UnityCatalogClient(MlflowClient):  # type: ignore[misc]  # MLflow has no types
    """MLflow's client for the registry `databricks-uc`."""

    def get_registered_model(self, name: str) -> "RegisteredModel":
        check_name(name)
        model = _with_keys(super().get_registered_model(name))
        model._latest_version = []
        return model

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        """Return a URI whose files MLflow reads with temporary credentials of Unity
        Catalog.
        """
        check_name(name)
        return f"models:/{name}/{version}"

    def get_model_version(self, name: str, version: str) -> "ModelVersion":
        check_name(name)
        return _with_keys(super().get_model_version(name, version))

    def get_model_version_by_alias(self, name: str, alias: str) -> "ModelVersion":
        check_name(name)
        return _with_keys(super().get_model_version_by_alias(name, alias))

    def search_model_versions(
        self, filter_string: str, max_results: int | None = None, order_by: object = None
    ) -> "list[ModelVersion]":
        """Return all versions with their tags, or the `max_results` highest numbers."""
        if " and tags." in filter_string:
            raise InvalidConfig(
                "Unity Catalog cannot search for the tag of a version: use an alias, as in "
                "models:/CATALOG.SCHEMA.MODEL@champion"
            )
        if filter_string.startswith("name = "):
            check_name(filter_string.removeprefix("name = ")[1:-1])
        found: list[ModelVersion] = []
        token = None
        while token != "":
            page = super().search_model_versions(filter_string, page_token=token)
            found += page
            token = page.token or ""
        found.sort(key=lambda version: int(version.version), reverse=True)
        return [self.get_model_version(row.name, row.version) for row in found[:max_results]]

    def create_model_version(
        self, name: str, source: str, run_id: str | None, tags: "Mapping[str, str]", **options: Any
    ) -> "ModelVersion":
        return super().create_model_version(name, source, run_id, stored_tags(tags), **options)

    def set_registered_model_tag(self, name: str, key: str, value: str) -> None:
        super().set_registered_model_tag(name, _stored_key(key), value)

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        for stored, text in stored_tags({key: value}).items():
            super().set_model_version_tag(name, version, stored, text)

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        super().delete_model_version_tag(name, version, _stored_key(key))
