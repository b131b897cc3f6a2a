"""The statements of a model card or a dossier."""

from collections import ChainMap


def statements(document):
    """Return the statements of each section."""
    return ChainMap(*(value for value in vars(document).values() if isinstance(value, dict)))


def texts(document, section):
    return "\n".join(entry.text for entry in statements(document).get(section, ()))
