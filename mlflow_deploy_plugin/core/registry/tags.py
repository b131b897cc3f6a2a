"""The tags of a model version in MLflow, and onnxserve's section of its description."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import yaml

from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors

ERROR_TAG = "onnxserve.error"

GATE_TAG = "onnxserve.gate"
"""The state of the gate's verdict: a `VerdictState` or `forced`. A version without this
tag was not judged.
"""
VerdictState = Literal["passed", "passed without an evaluation", "failed"]
PASSED_WITHOUT_EVALUATION: VerdictState = "passed without an evaluation"
"""The state of a version that was judged without labelled rows."""
PASSED_STATES = ("passed", PASSED_WITHOUT_EVALUATION, "forced")
GATE_REASON_TAG = "onnxserve.gate.reason"
"""The reason for the state in one line: the failed check, the passed checks, or who
forced the version and why.
"""
GATE_REPORT_TAG = "onnxserve.gate.report"
"""The address of the report in MLflow, or RUN_ID/gate_report.html if the tracking
server has no pages.
"""
GATE_REPORT_FILE = "gate_report.html"
GATE_AGAINST_TAG = "onnxserve.gate.against"
"""The version that the judged version was compared with, e.g. models:/flight-delay/6;
empty without a comparison.
"""
GATE_AT_TAG = "onnxserve.gate.at"
"""The time of the verdict, such as 2026-11-20T14:41:47+00:00."""
GATE_POLICY_DIGEST_TAG = "onnxserve.gate.policy_digest"
"""The digest of the verdict's policy. A verdict based on another policy is not valid.
"""
GATE_DIGEST_TAG = "onnxserve.gate.digest"
"""The digest of all judged files (`core.mlmodel.combine_hashes`). The verdict is valid
only for these files.
"""
GATE_POLICY_TAG = "onnxserve.gate.policy"
"""The gate policy of a registered model, as YAML or JSON (`core/registry/policy.py`).
"""

PARENT_TAG = "onnxserve.parent"
"""The version that was served when this version was trained. Incremental training
started from that version.
"""
TRAINING_TAG = "onnxserve.training"
"""`full`, or `incremental` and the method."""
DATA_DIGEST_TAG = "onnxserve.training.data"
"""SHA-256 of the file of additional labelled rows for the training; empty if only the
built-in rows were used.
"""
CAUSE_TAG = "onnxserve.cause"
"""The reason for the training, as a sentence."""
CANDIDATE_TAG = "onnxserve.candidate"
"""The state of a retrained version: `proposed`, `left`, or the rollout that deploys the
version.
"""

WRAPPED_FROM_TAG = "onnxserve.wrapped_from"
"""The version (models:/old/3) or path that a version was made from. The version and its
logged model have this tag.
"""

FALLBACK_TAG = "onnxserve.fallback"
"""The reason why a version has no ONNX form. The run and the logged model of the
version have this tag.
"""

OPTIMIZED_FROM_TAG = "onnxserve.optimized_from"
"""The version that this optimized (smaller or faster) version was made from, as
models:/X/3.
"""
OPTIMIZED_WITH_TAG = "onnxserve.optimized_with"
"""The kind of optimization, such as `int8 static` or `fp16`."""

COPIED_FROM_TAG = "onnxserve.copied_from"
"""The page of the version, in this or another registry, that this version is a copy of.
"""

MAX_TAG_LENGTH = 5000
MAX_DESCRIPTION_LENGTH = 5000
"""The maximum number of characters of a description that all MLflow stores support."""

_BEGIN = "<!-- onnxserve: what follows is replaced -->"
_END = "<!-- onnxserve: end -->"
# If the end mark is missing, the section ends after its table lines and empty lines.
_TABLE = r"(?:\n(?:\|[^\n]*)?(?=\n|\Z))*"
_SECTION = re.compile(rf"\n*{re.escape(_BEGIN)}{_TABLE}\n*(?:{re.escape(_END)})?\n*")


def kept_tags(
    tags: Mapping[str, str],
    *kept: str,
) -> dict[str, str]:
    """Return the tags that a copy keeps. Of MLflow and onnxserve, these are the tags of
    the training and `kept`.
    """
    kept += (CAUSE_TAG, DATA_DIGEST_TAG, PARENT_TAG, TRAINING_TAG)
    return {
        key: value
        for key, value in tags.items()
        if key in kept or not key.startswith(("onnxserve.", "mlflow."))
    }


@dataclass(frozen=True)
class GateStatus:
    """The verdict of the gate on a version, read from its tags.

    Attributes:
        passed: True if the version may be promoted and served, because it passed or a
            person forced it.
        state: a `VerdictState`, `forced`, or empty if there is no verdict on the
            version's files.
        digest: the digest of all judged files; empty if the verdict does not have a
            digest.
    """

    passed: bool = False
    state: str = ""
    reason: str = ""
    report: str = ""
    digest: str = ""

    def on_files(self, digest: str) -> "GateStatus":
        """Return the status of a version whose files have this digest. A verdict on
        other files is invalid.
        """
        if not self.state or self.digest == digest:
            return self
        compared = f"sha256 {digest[:12]}, judged {self.digest[:12] or 'unknown'}"
        reason = (
            f"its files differ from the files that the gate judged ({compared}); restore the "
            "judged files, or judge the version again with `onnxserve gate`"
        )
        return GateStatus(reason=reason, report=self.report)


def gate_status_of(tags: Mapping[str, str]) -> GateStatus:
    """Return the gate's status of a version with these tags.

    A passed verdict without the digest of the judged files does not count.
    """
    state = tags.get(GATE_TAG, "")
    reason = tags.get(GATE_REASON_TAG, "")
    report = tags.get(GATE_REPORT_TAG, "")
    if not state:
        return GateStatus(reason="it has not been through the gate")
    digest = tags.get(GATE_DIGEST_TAG, "")
    if state in PASSED_STATES and not digest:
        command = "promote --force --why" if state == "forced" else "gate"
        reason = (
            f"its verdict ({state}) has no digest of the judged files; run `onnxserve {command}` "
            "again"
        )
        return GateStatus(reason=reason, report=report)
    return GateStatus(
        state in PASSED_STATES,
        state,
        reason or f"the verdict of the gate is {state}",
        report,
        digest,
    )


def names_dataset(policy: str) -> bool:
    """Return True if a gate policy, as YAML, specifies labelled rows for the
    evaluation, or is not valid.
    """
    # PyYAML is not needed by most commands.
    from mlflow_deploy_plugin.core.yaml_text import load_yaml

    try:
        return bool(((load_yaml(policy) or {}).get("evaluation") or {}).get("dataset"))
    except (yaml.YAMLError, ValueError, AttributeError):
        # AttributeError: the document is not a policy.
        return True


def requires_approvals(policy: str) -> bool:
    """Return True if a gate policy, as YAML, requires approvals of people, or is not
    valid and may require them.
    """
    # PyYAML is not needed by most commands.
    from mlflow_deploy_plugin.core.yaml_text import load_yaml

    try:
        return (load_yaml(policy) or {}).get("approvals") is not None
    except (yaml.YAMLError, ValueError, AttributeError):
        # AttributeError: the document is not a policy.
        return "approvals" in policy


def wrapped_from(name: str, version: str) -> str:
    """Return the address of the source model of a registered version (or of a logged
    model, by its id), or "".
    """
    if not version:
        return ""
    with registry_errors(f"model {name} version {version}"):
        client = registry_client()
        if version.isdigit():
            model = client.get_model_version(name, version)
        else:
            model = client.get_logged_model(version)
        return str(model.tags.get(WRAPPED_FROM_TAG, ""))


def tag_version(name: str, version: str, key: str, value: str) -> None:
    """Set a tag of a registered version. A long value is truncated. Raises NotFound if
    the version does not exist.
    """
    with registry_errors(f"model {name} version {version}"):
        registry_client().set_model_version_tag(name, version, key, value[:MAX_TAG_LENGTH])


def untag_version(name: str, version: str, key: str) -> None:
    """Delete a tag of a registered version, if the tag exists. Raises NotFound if the
    version does not exist.
    """
    with registry_errors(f"model {name} version {version}"):
        registry_client().delete_model_version_tag(name, version, key)


def write_description_section(name: str, version: str, lines: list[str]) -> None:
    """Replace onnxserve's section of the description with as many of the table `lines`
    as fit. Raises NotFound.
    """
    with registry_errors(f"model {name} version {version}"):
        client = registry_client()
        before = client.get_model_version(name, version).description or ""
        after = with_description_section(before, lines)
        if after != before:
            client.update_model_version(name, version, after)


def with_description_section(description: str, lines: list[str]) -> str:
    """Return the description with onnxserve's section at the end, or without this
    section if no line fits.
    """
    user_text = _SECTION.sub("\n\n", description).strip("\n")
    head = f"{user_text}\n\n{_BEGIN}\n" if user_text else f"{_BEGIN}\n"
    bullets: list[str] = []
    room = MAX_DESCRIPTION_LENGTH - len(head) - len(_END) - 1
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        bullets.append(line)
    if bullets:
        return "\n".join([head.rstrip("\n"), *bullets, "", _END])
    return user_text
