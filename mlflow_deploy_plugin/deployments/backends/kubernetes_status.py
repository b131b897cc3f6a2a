"""The status of Deployments and pods, as the API server gives it, in one line each."""

from dataclasses import dataclass

from mlflow_deploy_plugin.manifests import CONTAINER, Document
from mlflow_deploy_plugin.messages import one_line

UNSEEN = "waiting for the cluster to plan the rollout"
_RETRY_MARGIN_SECONDS = 10
_PENDING_IMAGE = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")


@dataclass(frozen=True)
class PodTrouble:
    """The reason why a pod does not become ready; if it `is_final`, waiting does not help.

    If the container `wrote` more before its end, the last words in its log are part of the reason.
    """

    text: str
    is_final: bool
    wrote: bool = False


def pending_rollout(deployment: Document) -> str:
    """Return the pending work of a Deployment until all its pods are new and ready; empty if there is none."""
    status = deployment.get("status", {})
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return UNSEEN
    count = deployment["spec"].get("replicas", 1)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if updated < count:
        return f"{updated} of {count} pods are started"
    if status.get("replicas", 0) > updated:
        return f"{status['replicas'] - updated} pods of before are to end"
    if available < updated:
        return f"{available} of {count} pods are ready"
    return ""


def quota_trouble(condition: Document) -> PodTrouble | None:
    """Return why a Deployment may have no more pods, by its condition: a quota, or a policy of the cluster."""
    if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
        return PodTrouble(f"the cluster refuses a pod: {one_line(condition.get('message', ''))}", True)
    return None


@dataclass
class RefusedPods:
    """A quota's refusal of pods, which the cluster may still take back. Times are of one monotonic clock.

    A quota counts pods that are ending, and the cluster doubles its wait between two tries: after the last pod has
    ended, it waits at most as long as it has tried in vain. The cluster first refused at `since`, and may try until
    `waits_until`.
    """

    since: float
    waits_until: float = 0.0

    def is_final(self, is_ending: bool, now: float) -> bool:
        """Return True if waiting does not help, where a pod is ending now or none is."""
        if is_ending:
            self.waits_until = now + (now - self.since) + _RETRY_MARGIN_SECONDS
        return now > self.waits_until


def pod_trouble(pod: Document) -> PodTrouble | None:
    """Return why a pod does not become ready, by its status; None without a problem."""
    name = pod["metadata"]["name"]
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            # a cluster that adds nodes may help
            return PodTrouble(f"pod {name} is unschedulable: {one_line(condition.get('message', ''))}", False)
    status = container_status(pod)
    state, last = status.get("state", {}), status.get("lastState", {})
    waiting, ended = state.get("waiting", {}), state.get("terminated") or last.get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        limit = pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get("memory", "no limit")
        killed = f"pod {name} was killed for want of memory (OOMKilled), container.memory_bytes is {limit}"
        return PodTrouble(killed, not is_ready(pod))
    code, said = waiting.get("reason", ""), one_line(waiting.get("message", ""))
    if code in _PENDING_IMAGE or code == "ErrImagePull":  # which says why, is tried again, and becomes a back-off
        return PodTrouble(f"pod {name}: {code}: {said}", code in _PENDING_IMAGE)
    if code in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return PodTrouble(f"pod {name} cannot start: {said}", True)
    if ended and (code == "CrashLoopBackOff" or status.get("restartCount", 0) > 1) and not is_ready(pod):
        how = f"exit status {ended.get('exitCode')}"
        return PodTrouble(f"pod {name} ends again and again ({how})", True, wrote=True)
    return None


def container_status(pod: Document) -> Document:
    statuses: list[Document] = pod.get("status", {}).get("containerStatuses", [])
    return next((one for one in statuses if one["name"] == CONTAINER), {})


def is_ready(pod: Document) -> bool:
    """Return True if a Service counts the pod as ready; the status of its container stays ready if the node is lost."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
