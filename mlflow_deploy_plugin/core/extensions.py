"""Code of the rim and of other distributions, which plugs in by entry points
(docs/extend.md).
"""

from contextlib import suppress
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points
from typing import Any, TypeVar

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line

EXPORTERS = "onnxserve.exporters"
"""The group of export formats: the name of a format → its
`wrap.exporter.exporting.Exporter`.
"""
_T = TypeVar("_T")


def registered_in(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, in the order of their names."""
    return {
        entry.name: entry
        for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)
    }


def describe_entry(entry: EntryPoint) -> str:
    """Return the entry point as it is registered, with its distribution."""
    described = f"{entry.name} = {entry.value}"
    with suppress(PackageNotFoundError):  # The metadata may have been removed.
        if entry.dist:
            described += f" ({entry.dist.name} {entry.dist.version})"
    return described


def load_entry(entry: EntryPoint, kind: type[_T]) -> _T:
    """Return the object of an entry point. Raises OnnxserveError if its code fails, or
    the object is not of this kind.
    """
    try:
        loaded: Any = entry.load()
    except (Exception, SystemExit) as error:
        raise OnnxserveError(
            f"{describe_entry(entry)} cannot be loaded: {one_line(error, 300)}; update or "
            "uninstall its distribution"
        ) from error
    if not isinstance(loaded, kind):
        raise OnnxserveError(f"{describe_entry(entry)} is not a {kind.__name__}")
    return loaded
