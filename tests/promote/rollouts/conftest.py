"""The snapshot of an endpoint under a plan."""

from dataclasses import replace

from mlflow_deploy_plugin.promote.rollouts.snapshot import EndpointSnapshot
from tests.support.rollouts import counted, numbers, variants


def seen(share=0, **fields):
    """Return a snapshot with the candidate loaded at a share of the traffic. Keyword
    arguments replace fields.
    """
    versions = (
        {"champion": "6"}
        if share is None
        else dict.fromkeys(variants(share), "7") | {"champion": "6"}
    )
    return replace(
        EndpointSnapshot(variants(share), "running", "", versions, counters=numbers(counted(1000))),
        **fields,
    )
