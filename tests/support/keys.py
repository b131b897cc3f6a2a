"""API keys for a server's state folder."""

import hashlib

from mlflow_deploy_plugin.core.statedir.files import KEYS, write_state
from mlflow_deploy_plugin.core.statedir.models import ValidKeys


def write_keys(state_dir, entries):
    """Write the key file as the agent does. `entries` maps the text of each key to its
    permissions.
    """
    keys = {hashlib.sha256(text.encode()).hexdigest(): entry for text, entry in entries.items()}
    write_state(state_dir / KEYS, ValidKeys(keys=keys))
