"""The forms of the console as actions, checked as far as possible before anything is started."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.registry import registered_model_names
from mlflow_deploy_plugin.store import Endpoint, Store

_MAX_WHY_CHARACTERS = 500
_TARGET = re.compile(r"@[A-Za-z0-9._-]{1,250}|None|Staging|Production|Archived")
_WEIGHT = "weight:"
_MAX_WEIGHT = 100


@dataclass(frozen=True)
class FormAction:
    """An action that a form asks for.

    Attributes:
        description: of the action, for people.
        models: the registered models that the caller must be allowed to edit.
        arguments: as `actions.py` takes them.
    """

    description: str
    models: tuple[str, ...]
    arguments: dict[str, Any]


def parse_form(form: Mapping[str, str], store: Store) -> FormAction:
    """Return the action of a form; raise InvalidConfig or NotFound with a message for the page."""
    readers = {"traffic": _traffic, "rollback": _rollback, "promote": _promote, "gate": _gate}
    reader = readers.get(form.get("action", ""))
    if reader is None:
        raise InvalidConfig(f"there is no action {form.get('action', '')!r}; there are {', '.join(readers)}")
    return reader(form, store)


def no_endpoint(name: str) -> NotFound:
    """Return the error about an endpoint that is not there, or that the caller may not see."""
    return NotFound(f"there is no endpoint {name!r} (any more)")


def _traffic(form: Mapping[str, str], store: Store) -> FormAction:
    endpoint = _endpoint(form, store)
    weights = {}
    for name, variant in endpoint.spec.variants.items():
        if variant.shadow:
            continue
        given = form.get(f"{_WEIGHT}{name}", "").strip()
        if not given.isdecimal() or int(given) > _MAX_WEIGHT:
            raise InvalidConfig(
                f"the weight of {name} is {given or 'empty'!r}; a whole number from 0 to {_MAX_WEIGHT} is expected"
            )
        weights[name] = int(given)
    if not any(weights.values()):
        raise InvalidConfig(f"nobody would answer {endpoint.name}: give at least one variant a weight")
    description = f"change the traffic of {endpoint.name} to {', '.join(f'{name} {n}' for name, n in weights.items())}"
    return _endpoint_action(form, description, endpoint, weights=weights)


def _rollback(form: Mapping[str, str], store: Store) -> FormAction:
    endpoint = _endpoint(form, store)
    return _endpoint_action(form, f"roll {endpoint.name} back", endpoint)


def _promote(form: Mapping[str, str], store: Store) -> FormAction:
    model, version = _version(form)
    to = form.get("to", "")
    if not _TARGET.fullmatch(to):
        raise InvalidConfig(f"{to!r} is no stage and no @alias")
    description = f"promote version {version} of {model} to {to}"
    return FormAction(description, (model,), {**_arguments(form), "model": model, "version": version, "to": to})


def _gate(form: Mapping[str, str], store: Store) -> FormAction:
    model, version = _version(form)
    description = f"run the gate for version {version} of {model}"
    return FormAction(description, (model,), {**_arguments(form), "model": model, "version": version})


def _endpoint_action(form: Mapping[str, str], description: str, endpoint: Endpoint, **more: Any) -> FormAction:
    models = tuple(registered_model_names(endpoint.spec))
    return FormAction(description, models, {**_arguments(form), "endpoint": endpoint.name, **more})


def _arguments(form: Mapping[str, str]) -> dict[str, Any]:
    why = " ".join(form.get("why", "").split())
    if len(why) > _MAX_WHY_CHARACTERS:
        raise InvalidConfig(f"the reason has {len(why)} characters; at most {_MAX_WHY_CHARACTERS} are kept")
    return {"action": form["action"], "why": why}


def _endpoint(form: Mapping[str, str], store: Store) -> Endpoint:
    name = form.get("endpoint", "")
    found = store.endpoint(name)
    if found is None:
        raise no_endpoint(name)
    return found


def _version(form: Mapping[str, str]) -> tuple[str, str]:
    model, version = form.get("model", ""), form.get("version", "")
    if not model or not version.isdecimal():
        raise InvalidConfig("a registered model and the number of its version are expected")
    return model, version
