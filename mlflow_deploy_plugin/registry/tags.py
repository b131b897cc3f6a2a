"""Tags on model versions: what serving and the gate learned about a version, where the MLflow UI shows it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_deploy_plugin.registry.connection import registry_client, registry_errors

ERROR_TAG = "onnxserve.error"

GATE_TAG = "onnxserve.gate"
"""`passed`, `failed` or `forced`; a version without it has not been through the gate."""
GATE_REASON_TAG = "onnxserve.gate.reason"
"""One line: what failed, what passed, or why and by whom it was forced."""
GATE_REPORT_TAG = "onnxserve.gate.report"
"""Where the report is: its page in MLflow, or RUN_ID/gate_report.html where the tracking server has no pages."""
GATE_AGAINST_TAG = "onnxserve.gate.against"
"""What the version was compared with, e.g. models:/flight-delay/6; empty where nothing was served."""
GATE_AT_TAG = "onnxserve.gate.at"
"""When the verdict was given, as 2026-11-20T14:41:47+00:00."""
GATE_POLICY_DIGEST_TAG = "onnxserve.gate.policy_digest"
"""Which policy the verdict was given by: a verdict of another policy is not taken for one of this."""
GATE_POLICY_TAG = "onnxserve.gate.policy"
"""On the registered model: its gate policy, as YAML or JSON (`gate/policy.py`)."""

PARENT_TAG = "onnxserve.parent"
"""The version that was served when this one was trained; where that was incremental, also what it learned from."""
TRAINING_TAG = "onnxserve.training"
"""How it was trained: `full`, or `incremental` and by which way."""
DATA_DIGEST_TAG = "onnxserve.training.data"
"""SHA-256 of the file of labelled rows that it was trained on beside the built-in ones; empty where there was none."""
CAUSE_TAG = "onnxserve.cause"
"""Why it was trained, in a sentence."""
CANDIDATE_TAG = "onnxserve.candidate"
"""Of a version that a retraining made: `proposed`, `left`, or the rollout that brings it."""

PASSING_GATE_STATES = ("passed", "forced")
"""The states in which a version may be promoted and served: it passed, or somebody answers for it by name."""

MAX_TAG_LENGTH = 5000


@dataclass(frozen=True)
class GateStatus:
    """Where a version stands before the gate.

    Attributes:
        passed: it may be promoted and served, because it passed, or because somebody forced it.
        state: `passed`, `failed`, `forced`, or empty where it has never been judged.
        reason: one line for a person.
        report: where the report is; empty where there is none.
    """

    passed: bool
    state: str
    reason: str
    report: str = ""


def gate_status_of(tags: Mapping[str, str]) -> GateStatus:
    """The standing that the tags of a version tell."""
    state, reason, report = tags.get(GATE_TAG, ""), tags.get(GATE_REASON_TAG, ""), tags.get(GATE_REPORT_TAG, "")
    if not state:
        return GateStatus(False, "", "it has not been through the gate")
    return GateStatus(state in PASSING_GATE_STATES, state, reason or f"the gate says {state}", report)


def tag_version(name: str, version: str, key: str, value: str) -> None:
    """Sets a tag of a registered version; of a long value, the beginning.

    Raises:
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"model {name} version {version}"):
        registry_client().set_model_version_tag(name, version, key, value[:MAX_TAG_LENGTH])


def untag_version(name: str, version: str, key: str) -> None:
    """Takes a tag of a registered version away, if it has it.

    Raises:
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"model {name} version {version}"):
        registry_client().delete_model_version_tag(name, version, key)


MAX_DESCRIPTION_LENGTH = 5000
"""Characters that every store of MLflow keeps of a description."""
_BEGIN, _END = "<!-- onnxserve: what follows is replaced -->", "<!-- onnxserve: end -->"
_LINES = (
    r"(?:\n(?:\|[^\n]*)?(?=\n|\Z))*"  # of a table, and empty ones: where somebody took the end away, no more is ours
)
_SECTION = re.compile(rf"\n*{re.escape(_BEGIN)}{_LINES}\n*(?:{re.escape(_END)})?\n*")


def write_description_section(name: str, version: str, lines: list[str]) -> None:
    """Replaces the section by these lines of a Markdown table, as many of them from the first on as there is room for.

    Raises:
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"model {name} version {version}"):
        client = registry_client()
        before = client.get_model_version(name, version).description or ""
        after = with_description_section(before, lines)
        if after != before:
            client.update_model_version(name, version, after)


def with_description_section(description: str, lines: list[str]) -> str:
    """The description with the section at its end; without it where there is no line, or no room for one."""
    own = _SECTION.sub("\n\n", description).strip("\n")
    head = f"{own}\n\n{_BEGIN}\n" if own else f"{_BEGIN}\n"
    kept: list[str] = []
    room = MAX_DESCRIPTION_LENGTH - len(head) - len(_END) - 1
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join([head.rstrip("\n"), *kept, "", _END]) if kept else own


def read_gate_status(name: str, version: str) -> GateStatus:
    """The last verdict on a version.

    Raises:
        NotFound: there is no such version.
        RegistryUnavailable: MLflow does not answer.
    """
    with registry_errors(f"model {name} version {version}"):
        return gate_status_of(registry_client().get_model_version(name, version).tags)
