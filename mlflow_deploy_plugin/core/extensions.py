"""Code of the rim and of other distributions, which plugs in by entry points
(docs/extend.md).
"""

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout, suppress
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points
from typing import Any

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.messages import did_you_mean, one_line

EXPORTERS = "onnxserve.exporters"
"""The group of export formats: the name of a format → its
`wrap.exporter.exporting.Exporter`.
"""
BATCH = "onnxserve.batch"
"""The group of engines of batches: the name of an engine → a function like
`predict_locally` of ship.batch.run.
"""
PROFILES = "onnxserve.profiles"
"""The group of engines of monitors: the name of an engine → a function like
`window_profile` of watch.drift.sketches.hourly.
"""

RUNTIMES = "onnxserve.runtimes"
"""The group of runtimes for the objects of a platform: a format of `onnxserve render` →
a function like `cluster_runtime` of contrib.mlserver.runtime.
"""

METRICS_NAMES = "onnxserve.metrics"
"""The group of names of ONNXSERVE_METRICS_NAMES → a function like `mlserver_families`
of contrib.mlserver.metrics.
"""

PROXIES = "onnxserve.proxies"
"""The group of formats of `render` for several replicas behind a proxy: the name of a
format → a function like those of ship.manifests.formats.
"""


SOURCES = "onnxserve.sources"
"""The group of formats of observed endpoints: the name of a format → a `ReadExchange`
of watch.observed.exchange.
"""


def registered_in(group: str, installed: Any = None) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, in the order of their names. Of two
    with one name, the last by value is used. `installed` is the result of
    `entry_points()`, which takes 16 ms; None to read it.
    """
    of_group = (installed or entry_points()).select(group=group)
    return {entry.name: entry for entry in sorted(of_group)}


def describe_entry(entry: EntryPoint) -> str:
    """Return the entry point as it is registered, with its distribution."""
    described = f"{entry.name} = {entry.value}"
    # The metadata may have been removed. importlib_metadata raises FileNotFoundError.
    with suppress(PackageNotFoundError, FileNotFoundError):
        if entry.dist:
            described += f" ({entry.dist.name} {entry.dist.version})"
    return described


def load_entry(entry: EntryPoint, kind: type = object) -> Any:
    """Return the object of an entry point. Raises OnnxserveError if its code fails, or
    the object is not of this kind. What the code prints goes to standard error.
    """
    try:
        with redirect_stdout(sys.stderr):
            loaded = entry.load()
    except (Exception, SystemExit) as error:
        raise OnnxserveError(
            f"{describe_entry(entry)} cannot be loaded: {one_line(error, 300)}; update or "
            "uninstall its distribution"
        ) from error
    if not isinstance(loaded, kind):
        raise OnnxserveError(f"{describe_entry(entry)} is not a {kind.__name__}")
    return loaded


def find_entry(group: str, name: str, what: str, own: Iterable[str], kind: type = object) -> Any:
    """Return the object of an entry point by its name.

    Args:
        what: a word for the objects of the group, in messages.
        own: the names of ours, which are not entry points.
        kind: the type of the object.

    Raises:
        InvalidConfig: the name is unknown.
        OnnxserveError: the entry point cannot be loaded.
    """
    registered = registered_in(group)
    if name not in registered:
        names = [*own, *registered]
        listed = f"the {what}s are {', '.join(names)}"
        raise InvalidConfig(f"there is no {what} {name!r}{did_you_mean(name, names, listed)}")
    return load_entry(registered[name], kind)
