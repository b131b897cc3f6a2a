"""API keys for a server's state folder."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from mlflow_deploy_plugin.core.statedir.files import KEYS, write_state
from mlflow_deploy_plugin.core.statedir.models import KeyEntry, ValidKeys


def write_keys(state_dir: Path, entries: Mapping[str, KeyEntry]) -> None:
    """Write the key file as the agent does. `entries` maps the text of each key to its
    permissions.
    """
    keys = {hashlib.sha256(text.encode()).hexdigest(): entry for text, entry in entries.items()}
    write_state(state_dir / KEYS, ValidKeys(keys=keys))
