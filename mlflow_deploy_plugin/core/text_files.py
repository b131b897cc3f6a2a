"""The texts of files that a user names."""

from pathlib import Path

from mlflow_deploy_plugin.core.errors import InvalidConfig


def read_text(path: Path, what: str) -> str:
    """Return the text of a file, called `what` in messages, with its own line breaks.
    Raises InvalidConfig if the file cannot be read.
    """
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not a text"
        raise InvalidConfig(f"{what} {path} cannot be read: {why}") from None
