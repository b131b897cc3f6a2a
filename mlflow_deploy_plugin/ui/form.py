"""What a form of the console asks for, checked as far as it can be before anything is started."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.registry import registered_model_names
from mlflow_deploy_plugin.store import Endpoint, Store

_LONGEST_WHY = 500
_TARGET = re.compile(r"@[A-Za-z0-9._-]{1,250}|None|Staging|Production|Archived")
_WEIGHT = "weight:"
_LARGEST_WEIGHT = 100


@dataclass(frozen=True)
class FormAction:
    """One action.

    Attributes:
        said: what it does, for people.
        models: the registered models that whoever asks must be allowed to edit.
        arguments: as `act.py` takes them.
    """

    said: str
    models: tuple[str, ...]
    arguments: dict[str, Any]


def parse_form(form: Mapping[str, str], store: Store) -> FormAction:
    """Raises InvalidConfig or NotFound: it makes no sense; the message is for the page."""
    readers = {"traffic": _traffic, "rollback": _rollback, "promote": _promote, "gate": _gate}
    reader = readers.get(form.get("action", ""))
    if reader is None:
        raise InvalidConfig(f"there is no action {form.get('action', '')!r}; there are {', '.join(readers)}")
    return reader(form, store)


def _traffic(form: Mapping[str, str], store: Store) -> FormAction:
    endpoint = _endpoint(form, store)
    weights = {}
    for name, variant in endpoint.spec.variants.items():
        if variant.shadow:
            continue
        given = form.get(f"{_WEIGHT}{name}", "").strip()
        if not given.isdecimal() or int(given) > _LARGEST_WEIGHT:
            raise InvalidConfig(
                f"the weight of {name} is {given or 'empty'!r}; a whole number from 0 to {_LARGEST_WEIGHT} is expected"
            )
        weights[name] = int(given)
    if not any(weights.values()):
        raise InvalidConfig(f"nobody would answer {endpoint.name}: give at least one variant a weight")
    said = f"change the traffic of {endpoint.name} to {', '.join(f'{name} {n}' for name, n in weights.items())}"
    return _endpoint_action(form, said, endpoint, {"weights": weights})


def _rollback(form: Mapping[str, str], store: Store) -> FormAction:
    endpoint = _endpoint(form, store)
    return _endpoint_action(form, f"roll {endpoint.name} back", endpoint, {})


def _promote(form: Mapping[str, str], store: Store) -> FormAction:
    model, version = _version(form)
    to = form.get("to", "")
    if not _TARGET.fullmatch(to):
        raise InvalidConfig(f"{to!r} is no stage and no @alias")
    said = f"promote version {version} of {model} to {to}"
    return FormAction(said, (model,), {**_arguments(form), "model": model, "version": version, "to": to})


def _gate(form: Mapping[str, str], store: Store) -> FormAction:
    model, version = _version(form)
    said = f"run the gate for version {version} of {model}"
    return FormAction(said, (model,), {**_arguments(form), "model": model, "version": version})


def _endpoint_action(form: Mapping[str, str], said: str, endpoint: Endpoint, more: dict[str, Any]) -> FormAction:
    models = tuple(registered_model_names(endpoint.spec))
    return FormAction(said, models, {**_arguments(form), "endpoint": endpoint.name, **more})


def _arguments(form: Mapping[str, str]) -> dict[str, Any]:
    why = " ".join(form.get("why", "").split())
    if len(why) > _LONGEST_WHY:
        raise InvalidConfig(f"the reason has {len(why)} characters; at most {_LONGEST_WHY} are kept")
    return {"action": form["action"], "why": why}


def _endpoint(form: Mapping[str, str], store: Store) -> Endpoint:
    name = form.get("endpoint", "")
    found = store.endpoint(name)
    if found is None:
        raise no_endpoint(name)
    return found


def no_endpoint(name: str) -> NotFound:
    return NotFound(f"there is no endpoint {name!r} (any more)")


def _version(form: Mapping[str, str]) -> tuple[str, str]:
    model, version = form.get("model", ""), form.get("version", "")
    if not model or not version.isdecimal():
        raise InvalidConfig("a registered model and the number of its version are expected")
    return model, version
