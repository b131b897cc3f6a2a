"""The public keys and the newest checkpoint of the audit trail, which MLflow's server
with onnxserve publishes.

- `GET /onnxserve/audit-trail`: `keys` in PEM and the `checkpoint` in JSON, or empty
  texts
"""

from typing import NamedTuple

from mlflow_deploy_plugin.core.registry.connection import app_document
from mlflow_deploy_plugin.core.store.audit_keys import Keys, parse_keys

AUDIT_TRAIL = "/onnxserve/audit-trail"
_SECONDS = 30


class PublishedTrail(NamedTuple):
    keys: Keys
    checkpoint: str


def published_trail() -> PublishedTrail | None:
    """Return what MLflow's server publishes; None if it does not run the app or does
    not sign events.

    Raises RegistryUnavailable, and NotInstalled without the package cryptography.
    """
    what = "the keys of the audit trail"
    document = app_document(what, AUDIT_TRAIL, "GET", {}, _SECONDS, is_optional=True)
    if not document or not document["keys"]:
        return None
    keys = parse_keys(document["keys"], f"{what} of MLflow's server")
    return PublishedTrail(keys, document["checkpoint"])
