"""Deployments on Kubernetes: the objects of `ship/manifests/kubernetes_objects.py` are
applied to a namespace and then watched.

Server-side apply changes only differences, so after a crash the same call completes the
work. A change of variants reaches running pods through the ConfigMap, and the pods'
state files show whether they serve the change. The state of the objects is polled,
because a watch stream may break.
"""

import hashlib
import json
import queue
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import TypeVar
from urllib.parse import urlsplit

from sqlalchemy import make_url

from mlflow_deploy_plugin.core.errors import (
    AlreadyExists,
    DeploymentFailed,
    InvalidConfig,
    NotReady,
    OnnxserveError,
    Refused,
)
from mlflow_deploy_plugin.core.settings import Settings, workspace_environment
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.spec.types import is_loopback
from mlflow_deploy_plugin.core.statedir.files import AGENT, LOCAL_KEY, LOOK, SPEC, WANTED
from mlflow_deploy_plugin.core.statedir.models import AgentState, Wanted, WorkerState
from mlflow_deploy_plugin.ship.deployments.backends import kubernetes_status, served_state
from mlflow_deploy_plugin.ship.deployments.backends.kubernetes_api import ApiRefused, Cluster
from mlflow_deploy_plugin.ship.deployments.backends.kubernetes_status import (
    PodTrouble,
    RefusedPods,
    is_ready,
)
from mlflow_deploy_plugin.ship.deployments.backends.served_state import ServedState
from mlflow_deploy_plugin.ship.deployments.backends.supervisor import error_line
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation, Progress
from mlflow_deploy_plugin.ship.manifests.kubernetes_objects import (
    CONTAINER,
    endpoint_labels,
    kubernetes_documents,
)
from mlflow_deploy_plugin.ship.manifests.served import (
    OWNER,
    STATE_FOLDER,
    Document,
    Place,
    http_port,
    lacks_mlflow_address,
)

_T = TypeVar("_T")
_KINDS = (
    "Ingress",
    "HTTPRoute",
    "ServiceMonitor",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "Deployment",
    "Service",
    "NetworkPolicy",
    "ConfigMap",
    "ServiceAccount",
)
"""The kinds of objects of an endpoint, in the order of deletion."""
_OPTIONAL = ("Ingress", "HTTPRoute", "ServiceMonitor", "HorizontalPodAutoscaler", "ServiceAccount")
_CUSTOM = ("HTTPRoute", "ServiceMonitor")
"""The kinds of custom resources, on which the Kubernetes role `edit` has no rights."""
_REVISION = "deployment.kubernetes.io/revision"
_HASH = "pod-template-hash"
_SPEC_DIGEST = "onnxserve/spec"
_REPLICAS = "onnxserve/replicas"
"""The annotation of a Deployment with the last applied `kubernetes.replicas`; absent if
it has an autoscaler.
"""
_POLL_SECONDS = 0.5
_AT_ONCE = 8
_LOG_LINES = 50
_STOP_MARGIN_SECONDS = 60
_LOG_QUEUE = 10_000
_MLFLOW = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_NO_MLFLOW = (
    "the pods cannot reach MLflow at {uri}: set -C container.environment.MLFLOW_TRACKING_URI=… to "
    "an address that they can reach, or set -C container.secrets.MLFLOW_TRACKING_URI=SECRET/KEY"
)
_READ_STATE = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
def lives(file):
    try:
        os.kill(int(file.stem), 0)
    except (ProcessLookupError, ValueError):
        return False
    return True
files = [folder / name for name in sys.argv[2:]] + [one for one in folder.glob("workers/*.json") if lives(one)]
print(json.dumps({str(one.relative_to(folder)): one.read_text() for one in files if one.is_file()}))
"""  # noqa: E501

_READ_PAGE = """
import pathlib, ssl, sys, urllib.request
url, key = sys.argv[1], pathlib.Path(sys.argv[2])
headers = {"Authorization": "Bearer " + key.read_text()} if key.is_file() else {}
any_name = ssl._create_unverified_context() if url.startswith("https:") else None  # of the host for callers
try:
    request = urllib.request.Request(url, headers=headers)
    sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=float(sys.argv[3]), context=any_name).read())
except OSError as error:
    sys.exit(f"{url}: {error}")
"""  # noqa: E501


@dataclass
class KubernetesBackend:
    settings: Settings
    namespace: str
    _cluster: Cluster = field(init=False)
    _may_look: bool = field(default=True, init=False)
    _refusals: dict[str, RefusedPods] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._cluster = Cluster(self.namespace, self.settings.kube_context)

    def apply(self, spec: EndpointSpec, progress: Progress) -> str:
        """Serve `spec`. After a failure, ready pods continue to run, and objects of
        other owners are restored.

        Raises the errors of `Backend.apply`, and AlreadyExists if objects of this name
        belong to another owner.
        """
        running = self._cluster.get("Deployment", spec.name)
        environment = pod_environment(spec, running)
        place = Place(self.namespace, environment | workspace_environment(), self._owner)
        documents = kubernetes_documents(spec, place)
        # The documents would be merged into the objects of other owners.
        objects = [
            self._cluster.get(item["kind"], _name_of(item))
            for item in documents
            if self._cluster.serves(item["kind"])
        ]
        foreign = [item for item in objects if item is not None and not self._is_ours(item)]
        if foreign and not spec.kubernetes.force_conflicts:
            owner = _owner_of(foreign[0])
            whose = f"belongs to the store {owner}" if owner else "was not created by onnxserve"
            raise AlreadyExists(
                f"namespace {self.namespace} already has a {foreign[0]['kind']} {spec.name!r}, "
                f"which {whose}; kubernetes.force_conflicts=true takes it over"
            )
        try:
            self._serve(spec, running, documents, progress)
        except BaseException:  # This includes Ctrl-C.
            for document in foreign:
                with suppress(DeploymentFailed):  # Only the first failure is reported.
                    self._cluster.put_back(document)
            raise
        return self._url(spec)

    def _serve(
        self,
        spec: EndpointSpec,
        running: Document | None,
        documents: list[Document],
        progress: Progress,
    ) -> None:
        """Apply the objects, and wait until every pod serves `spec`. Raises
        DeploymentFailed, with the last log line of a pod, on failure.

        `running` is the Deployment before the change; None if the endpoint has none.
        """
        pods: list[Document] = []
        if running is not None:
            pods = self._living_pods(spec.name)
        states_before = {
            name: state for name, state in self._read_pods(pods).items() if state is not None
        }
        if (
            running is not None
            and not spec.kubernetes.is_autoscaled
            and self._delete("HorizontalPodAutoscaler", spec.name)
        ):
            # No autoscaler sets the number of pods now.
            change: Document = {"spec": {"replicas": spec.kubernetes.replicas}}
            self._cluster.merge("Deployment", spec.name, change)
        for document in documents:
            applied = document
            if document["kind"] == "Deployment":
                applied = self._with_pod_count(spec, document, progress)
            self._cluster.apply(applied, spec.kubernetes.force_conflicts)
        kinds = {document["kind"] for document in documents}
        for kind in _OPTIONAL:
            if kind not in kinds:
                self._delete(kind, spec.name)
        progress(f"{spec.name}: applied to namespace {self.namespace}")
        # Change an annotation of the pods to a digest of the spec in the ConfigMap.
        # kubelet then reads the ConfigMap now, not in 90 s.
        (digest,) = (
            hashlib.sha256(document["data"][SPEC].encode()).hexdigest()[:16]
            for document in documents
            if document["kind"] == "ConfigMap"
        )
        change = {"metadata": {"annotations": {_SPEC_DIGEST: digest}}}
        for pod in pods:
            # The pod may be gone, or the user may not change it.
            with suppress(DeploymentFailed):
                self._cluster.merge("Pod", _name_of(pod), change)
        unready: list[Document] = []

        def pending() -> str:
            try:
                return self._pending_work(spec, states_before, unready)
            except ApiRefused as error:
                if not error.may_pass:
                    raise
                return error.message  # Poll again: the pods also start without this answer.

        def last_words() -> str:
            if unready:
                return f": pod {_name_of(unready[0])}{self._last_words(unready[0])}"
            return ""

        served_state.wait_while_pending(
            spec.name,
            pending,
            self.settings.ready_timeout_seconds,
            progress,
            _POLL_SECONDS,
            last_words,
        )

    def _with_pod_count(
        self, spec: EndpointSpec, document: Document, progress: Progress
    ) -> Document:
        """Return the Deployment with its number of pods, and report a number that
        another manager has set.

        The running Deployment is read again, because an autoscaler may have scaled it
        while the pods were read.
        """
        count = pod_count(spec, self._cluster.get("Deployment", spec.name))
        annotations = document["metadata"]["annotations"]
        if not spec.kubernetes.is_autoscaled:
            replicas = spec.kubernetes.replicas
            annotations = {**annotations, _REPLICAS: str(replicas)}
            if count != replicas:
                message = f"{spec.name}: keeps {count} pods, which were set by another manager"
                progress(f"{message}; kubernetes.force_conflicts=true sets {replicas}")
        return {
            **document,
            "metadata": {**document["metadata"], "annotations": annotations},
            "spec": {**document["spec"], "replicas": count},
        }

    def observe(self, spec: EndpointSpec) -> Observation:
        """Return the state of the endpoint's Deployment, with the state of its ready
        pods.
        """
        deployment = self._own_deployment(spec.name)
        if deployment is None:
            gone = (
                f"its Deployment in namespace {self.namespace} is gone; `onnxserve start "
                f"{spec.name}` recreates it"
            )
            return Observation("failed", gone)
        if deployment["spec"].get("replicas", 1) == 0:
            return Observation("stopped", f"`onnxserve start {spec.name}` starts it")
        pods = self._living_pods(spec.name)
        trouble = self._trouble(deployment, pods)
        if trouble is not None:
            reason = trouble.text
        else:
            reason = kubernetes_status.pending_rollout(deployment)
        read_states = self._read_pods([pod for pod in pods if is_ready(pod)])
        states = [state for state in read_states.values() if state is not None]
        if deployment.get("status", {}).get("readyReplicas", 0):
            return self._observe_pods(spec, pods, states, reason)
        if trouble is not None and trouble.is_final:
            return Observation("failed", reason)
        return Observation("starting", reason)

    def _observe_pods(
        self, spec: EndpointSpec, pods: list[Document], states: list[ServedState], reason: str
    ) -> Observation:
        """Combine the states of the ready pods into one observation.

        `reason` is empty if neither a trouble nor a rollout is known.
        """
        workers: list[WorkerState] = []
        for number, state in enumerate(states):
            # Pids are only unique within a pod.
            for worker in state.workers:
                pid = number * 100_000 + worker.pid
                workers.append(worker.model_copy(update={"pid": pid}))
        applied_specs = [served_state.compare_applied(spec, state) for state in states]
        load_errors: dict[str, str] = {}
        for applied in applied_specs:
            load_errors |= applied.errors
        statuses = map(kubernetes_status.container_status, pods)
        agents = [state.agent for state in states if state.agent is not None]
        return Observation(
            "running",
            reason or _first((applied.pending for applied in applied_specs), ""),
            url=self._url(spec),
            restarts=sum(status.get("restartCount", 0) for status in statuses),
            wanted=_first((applied.wanted for applied in applied_specs), None),
            workers=tuple(workers),
            errors=load_errors,
            refused=_first((agent.refused for agent in agents), ()),
            registry_error=_first((agent.error for agent in agents), ""),
            shipping_error=_first((agent.shipping.error for agent in agents), ""),
        )

    def server_pages(
        self, spec: EndpointSpec, path: str, timeout_seconds: float
    ) -> Mapping[str, bytes | Refused]:
        """Return a page of each ready pod by pod name, or the reason why the pod does
        not return it.

        The request runs inside the pod with a key that only the server's user can read,
        because the API server's proxy does not forward `Authorization` and has no
        client certificate. A terminating pod is included while it answers.
        """
        self._own_deployment(spec.name)
        url = f"{spec.server.scheme}://127.0.0.1:{http_port(spec)}{path}"
        key_file = f"{STATE_FOLDER}/{LOCAL_KEY}"
        command = ["python", "-c", _READ_PAGE, url, key_file, str(timeout_seconds)]

        def read(pod: Document) -> bytes | Refused:
            try:
                return self._cluster.execute(_name_of(pod), command).encode()
            except DeploymentFailed as error:
                return Refused(error.message)

        pods = [
            pod for pod in self._cluster.find("Pod", endpoint_labels(spec.name)) if is_ready(pod)
        ]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            pages = zip(pods, pool.map(read, pods), strict=True)
        return {
            _name_of(pod): page
            for pod, page in pages
            if isinstance(page, bytes) or "deletionTimestamp" not in pod["metadata"]
        }

    def place(self, name: str) -> str:
        """Return the UID of the namespace, which is unique among clusters. Raises
        NotReady without a Deployment of this name, InvalidConfig for the Deployment of
        another owner, and DeploymentFailed if the API server refuses.
        """
        if self._own_deployment(name) is None:
            raise NotReady(f"namespace {self.namespace} of this cluster has no Deployment {name!r}")
        return self._cluster.namespace_uid()

    def stop(self, name: str) -> None:
        """Scale to 0 pods, and wait until the pods have completed their requests."""
        if (deployment := self._own_deployment(name)) is not None:
            self._cluster.merge("Deployment", name, {"spec": {"replicas": 0}})
            self._wait_until_gone(name, deployment)

    def remove(self, name: str) -> None:
        deployment = self._cluster.get("Deployment", name)
        for kind in _KINDS:
            self._delete(kind, name)
        if deployment is not None and self._is_ours(deployment):
            self._wait_until_gone(name, deployment)

    def is_running(self, name: str) -> bool:
        deployment = self._cluster.get("Deployment", name)
        return (
            deployment is not None
            and self._is_ours(deployment)
            and deployment["spec"].get("replicas", 1) > 0
        )

    def poll_registry(self, name: str) -> None:
        with suppress(OnnxserveError):  # The agents also poll on a schedule.
            self._own_deployment(name)
            for pod in self._living_pods(name):
                self._cluster.execute(_name_of(pod), ["touch", f"{STATE_FOLDER}/{LOOK}"])

    def logs(self, name: str, lines: int, follow: bool) -> Iterator[str]:
        """Yield the last log lines of each pod, with the pod's name. If `follow` is
        set, then yield new lines until all pods have ended.

        Raises DeploymentFailed if the API server refuses.
        """
        self._own_deployment(name)
        pod_names = [_name_of(pod) for pod in self._living_pods(name)]
        for pod in pod_names:
            yield from (f"{pod}: {line}" for line in self._cluster.pod_log(pod, lines))
        if not follow:
            return
        new_lines: _LogQueue = queue.Queue(_LOG_QUEUE)

        def queue_log(pod: str) -> None:
            """Queue the new lines of a pod's log and, at its end, None or the error."""
            last_stamp = ""
            since_seconds = 1
            try:
                while self._cluster.get("Pod", pod) is not None:
                    begun = time.monotonic()
                    for line in self._cluster.follow_log(pod, since_seconds):
                        stamp, _, text = line.partition(" ")
                        if stamp > last_stamp:  # After a reconnect, skip repeated lines.
                            last_stamp = stamp
                            new_lines.put(f"{pod}: {text}")
                    since_seconds = int(time.monotonic() - begun) + 5
                    time.sleep(_POLL_SECONDS)
                new_lines.put(None)
            except DeploymentFailed as error:
                new_lines.put(error)

        for pod in pod_names:
            threading.Thread(target=queue_log, args=(pod,), daemon=True).start()
        open_logs = len(pod_names)
        while open_logs:
            line = new_lines.get()
            if isinstance(line, DeploymentFailed):
                raise line
            if line is None:
                open_logs -= 1
            else:
                yield line

    @contextmanager
    def reached(self, spec: EndpointSpec) -> Iterator[str]:
        """Yield a local address that is forwarded to a ready pod. Raises NotReady if no
        pod is ready.
        """
        self._own_deployment(spec.name)
        ready = [pod for pod in self._living_pods(spec.name) if is_ready(pod)]
        if not ready:
            raise NotReady(f"{spec.name}: no pod in namespace {self.namespace} is ready")
        with self._cluster.forwarded(_name_of(ready[0]), http_port(spec)) as address:
            yield f"{spec.server.scheme}://{address}"

    def _url(self, spec: EndpointSpec) -> str:
        """Return the address of an endpoint for callers: the public address, or the
        address within the cluster.
        """
        if spec.kubernetes.host is not None:
            is_encrypted = spec.kubernetes.tls_secret or spec.kubernetes.gateway
            scheme = "https" if is_encrypted else "http"
            return f"{scheme}://{spec.kubernetes.host}"
        return f"{spec.server.scheme}://{spec.name}.{self.namespace}.svc:{http_port(spec)}"

    @cached_property
    def _owner(self) -> str:
        """Return this process's store as a text: the owner of its objects, which other
        stores do not change.
        """
        url = make_url(self.settings.store_url)
        owner = url.render_as_string(hide_password=True)
        if url.drivername.startswith("sqlite"):
            return f"{owner} on {socket.gethostname()}"
        return owner

    def _is_ours(self, document: Document) -> bool:
        return _owner_of(document) == self._owner

    def _own_deployment(self, name: str) -> Document | None:
        """Return the endpoint's Deployment, or None.

        Raises InvalidConfig if another store (or a tool such as GitOps) owns the
        Deployment.
        """
        deployment = self._cluster.get("Deployment", name)
        if deployment is not None and not self._is_ours(deployment):
            owner = _owner_of(deployment)
            whose = f"the store {owner}" if owner else "no store"
            raise InvalidConfig(
                f"the Deployment {name!r} in namespace {self.namespace} belongs to {whose}, not "
                f"to {self._owner}: set ONNXSERVE_STORE_URI to the same text as for the command "
                "that created it, or set kubernetes.force_conflicts=true to take it over"
            )
        return deployment

    def _delete(self, kind: str, name: str) -> bool:
        """Delete an object of this store. Return False if there is no such object, or
        if another store owns it.
        """
        try:
            document = self._cluster.get(kind, name) if self._cluster.serves(kind) else None
        except ApiRefused as error:
            if error.status != 403 or kind not in _CUSTOM:
                raise
            return False  # A user without rights on the kind has created no such object.
        if document is None or not self._is_ours(document):
            return False
        self._cluster.delete(kind, name)
        return True

    def _living_pods(self, name: str) -> list[Document]:
        """Return the endpoint's pods that are not terminating, of all revisions of its
        Deployment.
        """
        pods = self._cluster.find("Pod", endpoint_labels(name))
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def _read_pods(self, pods: list[Document]) -> dict[str, ServedState | None]:
        """Return the state of each pod by pod name, in the order of `pods`; None for a
        pod whose state files cannot be read.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(zip(map(_name_of, pods), pool.map(self._read_pod, pods), strict=True))

    def _read_pod(self, pod: Document) -> ServedState | None:
        """Return the state of a pod, or None if its state files cannot be read.

        If the API server forbids commands in pods, `_may_look` becomes False.
        """
        if "running" not in kubernetes_status.container_status(pod).get("state", {}):
            return None
        command = ["python", "-c", _READ_STATE, STATE_FOLDER, SPEC, AGENT, WANTED]
        spec = None
        agent = None
        wanted = Wanted()
        try:
            texts: Mapping[str, str] = json.loads(self._cluster.execute(_name_of(pod), command))
            if SPEC in texts:
                spec = load_stored_specs(texts[SPEC])[0]
            if AGENT in texts:
                agent = AgentState.model_validate_json(texts[AGENT])
            if WANTED in texts:
                wanted = Wanted.model_validate_json(texts[WANTED])
            workers = [
                WorkerState.model_validate_json(text)
                for path, text in texts.items()
                if path.startswith("workers/")
            ]
            return ServedState(spec=spec, agent=agent, wanted=wanted, workers=tuple(workers))
        except ApiRefused as error:
            self._may_look = self._may_look and error.status != 403
            return None
        except (OnnxserveError, ValueError):
            return None

    def _pending_work(
        self, spec: EndpointSpec, states_before: Mapping[str, ServedState], unready: list[Document]
    ) -> str:
        """Return the work that remains until every pod serves `spec`; empty if none
        does. Raises DeploymentFailed if the work cannot succeed.

        Args:
            spec: the spec to serve.
            states_before: the state of each pod before the change, by pod name.
            unready: receives the pods that are not ready, if nothing explains why.
        """
        deployment = self._cluster.get("Deployment", spec.name)
        if deployment is None:
            raise DeploymentFailed(f"{spec.name}: its Deployment was deleted during the rollout")
        pods: list[Document] = []
        if kubernetes_status.is_planned(deployment):
            # Wait only for the pods of the current revision.
            revision = _annotation(deployment, _REVISION)
            replica_sets = self._cluster.find("ReplicaSet", endpoint_labels(spec.name))
            newest = [item for item in replica_sets if _annotation(item, _REVISION) == revision]
            hashes = {item["metadata"]["labels"].get(_HASH) for item in newest}
            living = self._living_pods(spec.name)
            pods = [pod for pod in living if pod["metadata"]["labels"].get(_HASH) in hashes]
        trouble = self._trouble(deployment, pods)
        if trouble is not None and trouble.is_final:
            raise DeploymentFailed(f"{spec.name}: {trouble.text}")
        unready[:] = [pod for pod in pods if trouble is None and not is_ready(pod)]
        pending_work = kubernetes_status.pending_rollout(deployment)
        if not pending_work:
            pending_work = self._pending_spec(spec, pods, states_before)
        if pending_work and trouble is not None:
            return f"{pending_work}: {trouble.text}"
        return pending_work

    def _pending_spec(
        self, spec: EndpointSpec, pods: list[Document], states_before: Mapping[str, ServedState]
    ) -> str:
        """Return the work that pods must do to serve `spec`; empty if all pods serve
        it. Raises DeploymentFailed if a pod cannot serve it.
        """
        for name, state in self._read_pods(pods).items():
            if state is None and self._may_look:
                return f"the state of pod {name} cannot be read"
            if state is None:
                continue  # Without the right to read the state, trust the pod's readiness.
            applied = served_state.compare_applied(spec, state)
            before = states_before.get(name, ServedState())
            failure = served_state.served_failure(applied, spec, before, state.agent)
            if failure:
                raise DeploymentFailed(f"{spec.name}: {failure}")
            if applied.pending:
                return f"{applied.pending} (pod {name})"
        return ""

    def _trouble(self, deployment: Document, pods: list[Document]) -> PodTrouble | None:
        """Return the reason why pods do not become ready; None if no reason is known.
        A final reason takes precedence.
        """
        name = _name_of(deployment)
        conditions = deployment.get("status", {}).get("conditions", ())
        reported = map(kubernetes_status.quota_trouble, conditions)
        troubles = [trouble for trouble in reported if trouble is not None]
        if troubles:
            # Only a lasting refusal by a quota is final.
            refused = self._refusals.setdefault(name, RefusedPods(time.monotonic()))
            all_pods = self._cluster.find("Pod", endpoint_labels(name))
            is_ending = any("deletionTimestamp" in pod["metadata"] for pod in all_pods)
            is_final = refused.is_final(is_ending, time.monotonic())
            troubles = [replace(trouble, is_final=is_final) for trouble in troubles]
        else:
            self._refusals.pop(name, None)
        for pod in pods:
            trouble = kubernetes_status.pod_trouble(pod)
            if trouble is not None:
                words = self._last_words(pod) if trouble.wrote else ""
                troubles.append(PodTrouble(f"{trouble.text}{words}", trouble.is_final))
        # Sorting is stable, so the first final trouble is first.
        troubles.sort(key=lambda item: not item.is_final)
        return troubles[0] if troubles else None

    def _last_words(self, pod: Document) -> str:
        """Return the line of a pod's log that best explains why the pod has ended or is
        not ready.
        """
        name = _name_of(pod)
        lines = self._cluster.pod_log(name, _LOG_LINES, previous=True)
        line = error_line(lines or self._cluster.pod_log(name, _LOG_LINES))
        return f": {line}" if line else ""

    def _wait_until_gone(self, name: str, deployment: Document) -> None:
        """Wait until the endpoint has no pods, at most for the grace period of
        `deployment` and a margin.
        """
        seconds = deployment["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        deadline = time.monotonic() + seconds + _STOP_MARGIN_SECONDS
        while self._cluster.find("Pod", endpoint_labels(name)) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


_LogQueue = queue.Queue[str | DeploymentFailed | None]
"""The new lines of logs. None is the end of one log, and an error its failure."""


def _first(values: Iterable[_T], otherwise: _T) -> _T:
    """Return the first value that is neither None nor empty."""
    return next(filter(None, values), otherwise)


def _name_of(document: Document) -> str:
    return str(document["metadata"]["name"])


def _owner_of(document: Document) -> str:
    """Return the store that owns an object; empty if the object was not applied by
    onnxserve.
    """
    return _annotation(document, OWNER)


def _annotation(document: Document, name: str) -> str:
    return str(document["metadata"].get("annotations", {}).get(name, ""))


def pod_count(spec: EndpointSpec, running: Document | None) -> int:
    """Return the number of pods that a Deployment should have.

    With an autoscaler, a running Deployment keeps its pods, even outside the new
    bounds. Without an autoscaler, it keeps a number of pods that a user or an external
    tool has set, until `kubernetes.replicas` changes.
    """
    kubernetes = spec.kubernetes
    if running is None or not running["spec"].get("replicas", 0):
        return max(1, kubernetes.replicas)
    applied = _annotation(running, _REPLICAS)
    is_unchanged = applied == str(kubernetes.replicas) and not kubernetes.force_conflicts
    if is_unchanged or kubernetes.is_autoscaled:
        return int(running["spec"]["replicas"])
    return kubernetes.replicas


def pod_environment(spec: EndpointSpec, running: Document | None = None) -> dict[str, str]:
    """Return MLflow's addresses for pods, from the `running` Deployment, or from this
    process if pods can reach them.

    The Deployment's addresses take precedence, so that a later command with another
    MLflow does not replace the pods. Raises InvalidConfig if a model is in the registry
    and no reachable address of the registry is known.
    """
    is_needed = lacks_mlflow_address(spec)
    if running is not None:
        containers = running["spec"]["template"]["spec"]["containers"]
        environments = (item.get("env", ()) for item in containers if item["name"] == CONTAINER)
        addresses = {
            item["name"]: item["value"].replace("$$", "$")
            for item in chain.from_iterable(environments)
            if item["name"] in _MLFLOW and item.get("value")
        }
        if addresses or not is_needed:
            return addresses

    import mlflow  # The import takes a second, and `list` does not need it.

    uris = {"MLFLOW_TRACKING_URI": str(mlflow.get_tracking_uri())}
    registry = str(mlflow.get_registry_uri())
    # If unset, the registry is the tracking server, which the spec may set.
    if registry != uris["MLFLOW_TRACKING_URI"]:
        uris["MLFLOW_REGISTRY_URI"] = registry
    reachable = {}
    for name, uri in uris.items():
        parts = urlsplit(uri)
        is_remote = parts.scheme in ("http", "https") and not is_loopback(parts.hostname or "")
        # Readers of the Deployment would see a password.
        if is_remote and parts.password is None:
            reachable[name] = uri
    if is_needed and "MLFLOW_TRACKING_URI" not in reachable:
        raise InvalidConfig(_NO_MLFLOW.format(uri=uris["MLFLOW_TRACKING_URI"]))
    return reachable
