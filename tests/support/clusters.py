"""A cluster as KUBECONFIG names it."""

from pathlib import Path

import yaml


def kubeconfig(folder: Path, server: str) -> Path:
    """Write the configuration of a cluster."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "config").write_text(yaml.safe_dump(config))
    return folder / "config"
