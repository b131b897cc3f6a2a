"""Tests of the one-line descriptions of the states of Deployments and pods."""

import pytest

from mlflow_deploy_plugin.ship.deployments.backends.kubernetes_status import (
    PodTrouble,
    RefusedPods,
    is_ready,
    pending_rollout,
    pod_trouble,
    quota_trouble,
)

DEPLOYMENT = {"metadata": {"generation": 2}, "spec": {"replicas": 3}}


@pytest.mark.parametrize(
    ("status", "pending"),
    [
        (
            {"observedGeneration": 1, "updatedReplicas": 3},
            "waiting for the cluster to plan the rollout",
        ),
        (
            {"observedGeneration": 2, "replicas": 3, "availableReplicas": 3},
            "0 of 3 pods are started",
        ),
        (
            {"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3},
            "1 old pods must still end",
        ),
        (
            {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 2},
            "2 of 3 pods are ready",
        ),
        (
            {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3},
            "",
        ),
    ],
)
def test_rollout_ends_when_every_pod_is_ready(status, pending):
    assert pending_rollout({**DEPLOYMENT, "status": status}) == pending


def pod(condition=None, **status):
    container = {"name": "onnxserve", "ready": False, "restartCount": 0, **status}
    return {
        "metadata": {"name": "f-1"},
        "spec": {"containers": [{"name": "onnxserve", "resources": {"limits": {"memory": "64M"}}}]},
        "status": {
            "conditions": [condition] if condition else [],
            "containerStatuses": [container],
        },
    }


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/1 nodes are available: 1 Insufficient cpu.",
}
ENDED = {"terminated": {"reason": "Error", "exitCode": 1}}


@pytest.mark.parametrize(
    ("found", "trouble"),
    [
        (pod(state={"running": {}}, ready=True), None),
        (pod(state={"waiting": {"reason": "ContainerCreating"}}), None),
        (
            # A network failure has the same reason.
            pod(state={"waiting": {"reason": "ErrImagePull", "message": "unauthorized"}}),
            PodTrouble("pod f-1: ErrImagePull: unauthorized", False),
        ),
        (pod(state={"running": {}}, lastState=ENDED, restartCount=1), None),
        (
            pod(
                state={
                    "waiting": {
                        "reason": "ImagePullBackOff",
                        "message": 'Back-off pulling image "no:1"',
                    }
                }
            ),
            PodTrouble('pod f-1: ImagePullBackOff: Back-off pulling image "no:1"', True),
        ),
        (
            pod(
                state={
                    "waiting": {
                        "reason": "CreateContainerConfigError",
                        "message": 'secret "s" not found',
                    }
                }
            ),
            PodTrouble('pod f-1 cannot start: secret "s" not found', True),
        ),
        (
            pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ENDED, restartCount=1),
            PodTrouble("pod f-1 ends repeatedly (exit status 1)", True, wrote=True),
        ),
        (
            pod(
                state={"running": {}},
                lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}},
            ),
            PodTrouble(
                "pod f-1 was killed because it was out of memory (OOMKilled); "
                "container.memory_bytes is 64M",
                True,
            ),
        ),
        (
            pod(UNSCHEDULABLE),  # A cluster may add a node.
            PodTrouble(
                "pod f-1 is unschedulable: 0/1 nodes are available: 1 Insufficient cpu.", False
            ),
        ),
    ],
)
def test_pod_trouble_has_reason_and_finality(found, trouble):
    assert pod_trouble(found) == trouble


def test_pod_of_a_lost_node_is_not_ready():
    assert is_ready(pod({"type": "Ready", "status": "True"}, ready=True))
    assert not is_ready(pod({"type": "Ready", "status": "False"}, ready=True))


def test_full_quota_is_reported_at_once():
    message = (
        'pods "f-1" is forbidden: exceeded quota: few, requested: pods=1, used: pods=3, '
        "limited: pods=3"
    )
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": message,
    }
    assert quota_trouble(condition) == PodTrouble(f"the cluster refuses a pod: {message}", True)
    assert quota_trouble({"type": "Available", "status": "True"}) is None


def test_quota_filled_by_ending_pods_is_temporary():
    refused = RefusedPods(since=100.0)
    assert not refused.is_final(is_ending=True, now=142.0)
    # The cluster has retried at 141, and retries next at 182.
    assert not refused.is_final(is_ending=False, now=182.0)
    assert refused.is_final(is_ending=False, now=195.0)


def test_other_full_quota_is_final():
    assert RefusedPods(since=100.0).is_final(is_ending=False, now=100.0)
