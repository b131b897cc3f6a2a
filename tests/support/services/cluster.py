"""A Kubernetes cluster, reached by `kubectl`, that runs the images of this machine's
Docker engine.
"""

import json
import os
import subprocess
import uuid
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import yaml

from tests.support.waiting import wait_until

NEEDS_CLUSTER = pytest.mark.skipif(
    not os.environ.get("KUBECONFIG"), reason="no Kubernetes cluster is named by KUBECONFIG"
)
"""The mark of a module whose tests need a cluster. Without the mark, they would build
images before they skip.
"""
_OLD = {"policy/v1": "policy/v1beta1", "autoscaling/v2": "autoscaling/v2beta2"}


def _kubectl(*arguments, given=None):
    command = ["kubectl", "--request-timeout", "20s", *arguments]
    return subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=180, check=False
    )


@dataclass(frozen=True)
class Cluster:
    """A separate namespace of the cluster.

    Attributes:
        is_old: True for 1.24 or older, where CronJobs may be of `batch/v1beta1` and do
            not support time zones.
    """

    namespace: str
    is_old: bool

    def kubectl(self, *arguments, given=None):
        done = _kubectl("--namespace", self.namespace, *arguments, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, manifest):
        if self.is_old:
            manifest = {
                **manifest,
                "apiVersion": _OLD.get(manifest["apiVersion"], manifest["apiVersion"]),
            }
        if manifest["kind"] == "CronJob" and self.is_old:
            manifest = {**manifest, "apiVersion": "batch/v1beta1", "spec": dict(manifest["spec"])}
            del manifest["spec"]["timeZone"]
        self.kubectl("apply", "-f", "-", given=yaml.safe_dump(manifest))

    def job(self, name, cronjob):
        """Start a Job as the CronJob would, and return its end (`kubectl create job
        --from` does not support old CronJobs).
        """
        kind = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}}
        self.apply({**kind, "spec": cronjob["spec"]["jobTemplate"]["spec"]})
        return self.end_of(name)

    def secret(self, name, values):
        kind = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
        self.apply({**kind, "stringData": dict(values)})

    def items(self, kind, *selection):
        return json.loads(self.kubectl("get", kind, "-o", "json", *selection))["items"]  # type: ignore[no-any-return]

    def end_of(self, job, seconds=240):
        """Wait until the Job is `Complete` or `Failed`."""

        def end():
            (manifest,) = self.items("job", f"--field-selector=metadata.name={job}")
            ends = [
                condition["type"]
                for condition in manifest["status"].get("conditions", ())
                if condition["status"] == "True"
            ]
            return next((end for end in ends if end in ("Complete", "Failed")), "")

        return wait_until(end, seconds, f"the job {job} has ended")  # type: ignore[no-any-return]

    def logs(self, job):
        """Return the lines that the pods of a Job have written."""
        return self.kubectl("logs", "--tail=-1", "-l", f"job-name={job}").splitlines()


@contextmanager
def own_namespace():
    """Yield a namespace. At the end, delete it with all its pods."""
    versions = _kubectl("api-versions")
    assert versions.returncode == 0, versions.stderr
    cluster = Cluster(
        f"onnxserve-{uuid.uuid4().hex[:8]}", "batch/v1beta1" in versions.stdout.split()
    )
    assert _kubectl("create", "namespace", cluster.namespace).returncode == 0
    try:
        yield cluster
    finally:
        _kubectl(
            "delete",
            "pod,job,cronjob,deployment",
            "--all",
            "--grace-period=1",
            "-n",
            cluster.namespace,
        )
        _kubectl("delete", "namespace", cluster.namespace, "--wait=false")
