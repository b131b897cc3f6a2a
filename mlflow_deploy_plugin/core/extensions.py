"""Code of the rim and of other distributions, which plugs in by entry points
(docs/extend.md).
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line

EXPORTERS = "onnxserve.exporters"
"""The group of export formats: the name of a format → its
`wrap.exporter.exporting.Exporter`.
"""


def registered_in(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, in the order of their names."""
    return {
        entry.name: entry
        for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)
    }


def load_entry(entry: EntryPoint, kind: type = object) -> Any:
    """Return the object of an entry point. Raises OnnxserveError if its code fails, or
    the object is not of this kind.
    """
    try:
        loaded = entry.load()
    except Exception as error:
        raise OnnxserveError(
            f"{entry.name} ({entry.value}) cannot be loaded: {one_line(error, 300)}; update or "
            "uninstall its distribution"
        ) from error
    if not isinstance(loaded, kind):
        raise OnnxserveError(f"{entry.name} ({entry.value}) is not a {kind.__name__}")
    return loaded
