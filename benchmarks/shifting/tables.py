"""Public tables in which the accuracy of a model falls over time."""

from collections.abc import Iterator


def table_lines(share: float) -> Iterator[str]:
    """Yield the table of the sets; `share` is that of the calm years."""
    yield "| set |\n|---|"


def peer_lines(share: float) -> Iterator[str]:
    """Yield the table of the tools; `share` is that of the calm years."""
    yield "| tool |\n|---|"
