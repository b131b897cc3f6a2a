"""NAME=VALUE, as options and arguments take it."""

from collections.abc import Iterable

from mlflow_deploy_plugin.errors import InvalidConfig


def key_values(entries: Iterable[str], what: str = "-C") -> dict[str, str]:
    """`["server.workers=2"]` as a mapping; the value may have `=` itself.

    Raises:
        InvalidConfig: one has no `=` or no name, or a name stands twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise InvalidConfig(f"{what} {entry!r} is not KEY=VALUE")
        if name in found:
            raise InvalidConfig(f"{what} {name!r} is said twice")
        found[name] = value
    return found
