"""The status of Deployments and pods from the API server, as one line each."""

from dataclasses import dataclass

from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.ship.manifests.kubernetes_objects import CONTAINER
from mlflow_deploy_plugin.ship.manifests.served import Document

_RETRY_MARGIN_SECONDS = 10
_PENDING_IMAGE = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")


@dataclass(frozen=True)
class PodTrouble:
    """The reason why a pod does not become ready.

    Attributes:
        is_final: True if waiting does not help.
        wrote: True if the container wrote to its log before it ended, and the last log
            line is part of the reason.
    """

    text: str
    is_final: bool
    wrote: bool = False


def is_planned(deployment: Document) -> bool:
    """Return True if the cluster has planned the rollout of the last change."""
    generation: int = deployment["metadata"].get("generation", 0)
    return generation <= int(deployment.get("status", {}).get("observedGeneration", 0))


def pending_rollout(deployment: Document) -> str:
    """Return the pending work of a Deployment; empty if all its pods are of the newest
    revision and ready.
    """
    if not is_planned(deployment):
        return "waiting for the cluster to plan the rollout"
    status = deployment.get("status", {})
    count = deployment["spec"].get("replicas", 1)
    updated = status.get("updatedReplicas", 0)
    available = status.get("availableReplicas", 0)
    if updated < count:
        return f"{updated} of {count} pods are started"
    if status.get("replicas", 0) > updated:
        return f"{status['replicas'] - updated} old pods must still end"
    if available < updated:
        return f"{available} of {count} pods are ready"
    return ""


def quota_trouble(condition: Document) -> PodTrouble | None:
    """Return the quota or the policy of the cluster that refuses pods, according to a
    condition of a Deployment.
    """
    if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
        message = one_line(condition.get("message", ""))
        return PodTrouble(f"the cluster refuses a pod: {message}", is_final=True)
    return None


@dataclass
class RefusedPods:
    """The refusal of pods by a quota, which may end by itself. Times are from the
    monotonic clock.

    A quota also counts terminating pods, and the cluster doubles the wait after each
    failed try. After the last pod has ended, the next wait is at most the time since
    the first refusal (`since`). This wait ends by `waits_until`.
    """

    since: float
    waits_until: float = 0.0

    def is_final(self, is_ending: bool, now: float) -> bool:
        """Return True if the quota will still refuse the pods later. `is_ending` is
        True while a pod is terminating.
        """
        if is_ending:
            self.waits_until = now + (now - self.since) + _RETRY_MARGIN_SECONDS
        return now > self.waits_until


def pod_trouble(pod: Document) -> PodTrouble | None:
    """Return why a pod does not become ready, according to its status; None if there is
    no problem.
    """
    name = pod["metadata"]["name"]
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            # This is not final, because an autoscaler may add a node.
            message = one_line(condition.get("message", ""))
            return PodTrouble(f"pod {name} is unschedulable: {message}", is_final=False)
    status = container_status(pod)
    state = status.get("state", {})
    ended = state.get("terminated") or status.get("lastState", {}).get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        limits = pod["spec"]["containers"][0].get("resources", {}).get("limits", {})
        return PodTrouble(
            f"pod {name} was killed because it was out of memory (OOMKilled); "
            f"container.memory_bytes is {limits.get('memory', 'no limit')}",
            is_final=not is_ready(pod),
        )
    waiting = state.get("waiting", {})
    code = waiting.get("reason", "")
    message = one_line(waiting.get("message", ""))
    # ErrImagePull contains the reason. The pull is retried, and the code becomes
    # ImagePullBackOff.
    if code in _PENDING_IMAGE or code == "ErrImagePull":
        return PodTrouble(f"pod {name}: {code}: {message}", is_final=code in _PENDING_IMAGE)
    if code in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return PodTrouble(f"pod {name} cannot start: {message}", is_final=True)
    ends_repeatedly = code == "CrashLoopBackOff" or status.get("restartCount", 0) > 1
    if ended and ends_repeatedly and not is_ready(pod):
        text = f"pod {name} ends repeatedly (exit status {ended.get('exitCode')})"
        return PodTrouble(text, is_final=True, wrote=True)
    return None


def container_status(pod: Document) -> Document:
    statuses: list[Document] = pod.get("status", {}).get("containerStatuses", [])
    return next((status for status in statuses if status["name"] == CONTAINER), {})


def is_ready(pod: Document) -> bool:
    """Return True if a Service sends requests to the pod. The container's status would
    stay ready on a lost node.
    """
    conditions = pod.get("status", {}).get("conditions", ())
    return any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )
