"""The fields of a spec by their dotted names, as `-C` takes them and help texts list them."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from mlflow_deploy_plugin.spec.monitors import MonitorSpec, RetrainSpec
from mlflow_deploy_plugin.spec.parts import CaptureSpec, EndpointSpec, ServerSpec, StickySpec, VariantSpec

_NOT_BY_NAME = {
    ("variants.NAME.", "model"),  # -m says it
    ("monitors.NAME.", "retrain"),  # its fields stand for it
    ("monitors.NAME.retrain.", "parameters"),  # a table of its own, for a spec file
}


def field_reference() -> Iterator[tuple[str, str, str, str]]:
    """Every field that `-C` takes: (dotted name, type, default, description)."""
    parts: list[tuple[str, type[BaseModel]]] = [
        ("server.", ServerSpec),
        ("capture.", CaptureSpec),
        ("variants.NAME.", VariantSpec),
        ("monitors.NAME.", MonitorSpec),
        ("monitors.NAME.retrain.", RetrainSpec),
        ("sticky.", StickySpec),
    ]
    for prefix, part in parts:
        for name, field in part.model_fields.items():
            if (prefix, name) in _NOT_BY_NAME:
                continue
            default = "" if field.is_required() or field.default in (None, ()) else str(field.default)
            yield prefix + name, _type_name(field.annotation), default, field.description or ""
    require = EndpointSpec.model_fields["require"]
    yield "require", _type_name(require.annotation), "", require.description or ""


def _type_name(annotation: Any) -> str:
    """How a field's type is called in help texts: `int`, or the values it takes."""
    kinds = [kind for kind in get_args(annotation) if kind not in (type(None), Ellipsis)] or [annotation]
    if get_origin(kinds[0]) is Literal:
        kinds = list(get_args(kinds[0]))
    elif get_origin(kinds[0]) is Annotated:
        kinds = [get_args(kinds[0])[0]]
    return " | ".join(getattr(kind, "__name__", None) or str(kind) for kind in kinds)
