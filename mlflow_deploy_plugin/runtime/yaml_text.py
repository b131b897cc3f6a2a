"""YAML that somebody else wrote: looked through by libyaml before anything is built of it.

PyYAML's own reader takes time that grows with the square of the depth (16 s for 5,000 brackets), and libyaml builds
what is nested by recursion in C, without a bound (200,000 brackets are the end of the process). Both go through the
events of a document safely.
"""

from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML may have been built without libyaml
_DEEPEST = 100


def check_yaml(text: str, takes_aliases: bool = True) -> None:
    """Goes through the text once.

    Args:
        takes_aliases: false where all that it describes is written out: a few characters may stand for gigabytes.

    Raises:
        YAMLError: it is no YAML, nested too deeply, or has aliases.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent) and not takes_aliases:
            raise yaml.YAMLError("it has aliases (*name), which are not taken here")
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")


def load_yaml(text: str) -> Any:
    """The document of a text by libyaml.

    Raises:
        YAMLError: see `check_yaml`.
        ValueError: a value of it is none, as the date 2001-99-99.
    """
    check_yaml(text)
    return yaml.load(text, Loader=_LOADER)
