"""The model card of a registered version: sentences about the facts that MLflow and the
audit trail have recorded.

Each sentence has a source: a run, a tag, an audit event or a page of the registry. The
groups are those of Google's Model Card Toolkit
(https://github.com/tensorflow/model-card-toolkit).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.messages import format_time, join_names
from mlflow_deploy_plugin.core.mlmodel import MALFORMED
from mlflow_deploy_plugin.core.registry import tags, window_runs
from mlflow_deploy_plugin.core.registry.audit_trail import unsigned_events
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.console import console_page
from mlflow_deploy_plugin.core.registry.model_files import fetch
from mlflow_deploy_plugin.core.registry.policy import choose_policy
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.registry.runs import LoggedRun, logged_run, run_of_model
from mlflow_deploy_plugin.core.registry.transitions import (
    ROLLED_BACK_TAG,
    version_at,
    without_step_events,
)
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.audit_seal import SEAL
from mlflow_deploy_plugin.core.store.audit_tree import ADOPT
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.promote.evidence.record import VersionRecord, read_record, version_page
from mlflow_deploy_plugin.promote.evidence.statements import (
    Sections,
    Statement,
    Statements,
    event_statement,
    group_statements,
    quoted,
    statement_of,
    write_document,
)
from mlflow_deploy_plugin.serve.runtime.additive import LINK_SCALES

_SECTIONS = {
    "model_details": ("purpose", "origin", "data", "signature"),
    "quantitative_analysis": (
        "metrics",
        "parity",
        "gate",
        "robustness",
        "segments",
        "explanations",
    ),
    "considerations": ("approvals", "deployments", "monitors"),
}
"""The sections of each group. Each section is a method of `_Facts`."""
_LINEAGE = (
    tags.WRAPPED_FROM_TAG,
    tags.OPTIMIZED_FROM_TAG,
    tags.OPTIMIZED_WITH_TAG,
    tags.PARENT_TAG,
    tags.CAUSE_TAG,
)


@dataclass(frozen=True)
class VersionCard:
    """The statements about a version by group and section. A section without facts is
    left out.
    """

    name: str
    version: str
    created_at: datetime
    model_details: Sections
    quantitative_analysis: Sections
    considerations: Sections

    def write(self, folder: Path) -> None:
        """Write model_card.html and model_card.json. Raises InvalidConfig if the folder
        cannot be written.
        """
        title = f"Model card of {self.name} version {self.version}"
        write_document(self, folder, "model_card", title, _SECTIONS)


def make_card(model_uri: str, store: Store) -> VersionCard:
    """Return the card of a version with the audit trail of `store`.

    Raises InvalidConfig if the URI does not select a registered version, NotFound,
    RegistryUnavailable, and StoreUnavailable.
    """
    record = read_record(model_uri)
    # A deleted version may have had the same number. An adopted trail concerns all
    # versions.
    events = [
        event
        for event in store.events(model=record.name)
        if event.action == ADOPT
        or (event.at >= record.created_at and event.version == record.version)
    ]
    events += [event for event in store.events(model="", actions=(ADOPT, SEAL)) if event.why]
    unsigned = unsigned_events(store, events)
    model_id = str(record.mlmodel.get("model_id") or "")
    run = None
    with suppress(InvalidConfig, NotFound):  # The version may not have been logged to this MLflow.
        measured = run_of_model(resolve(record.uri), record.run.run_id, model_id)
        if measured.run_id:
            run = logged_run(registry_client(), measured.run_id)
    facts = _Facts(record, run, events, unsigned)
    groups = group_statements(_SECTIONS, facts.statements)
    return VersionCard(record.name, record.version, datetime.now(UTC), **groups)


def _read_json(run_id: str, file: str) -> Mapping[str, Any]:
    """Return the content of a JSON file of a run; empty if the file does not exist."""
    with temporary_folder("onnxserve-card-") as folder, suppress(NotFound):
        path = fetch(f"runs:/{run_id}/{file}", folder, f"{file} of run {run_id}")
        return dict(json.loads(path.read_text()))
    return {}


class _Windows(NamedTuple):
    """The windows of a monitor: its name with its endpoint, the run of the newest
    window, and the tags of the windows, the newest window first.
    """

    monitor: str
    newest: LoggedRun
    tags: list[Mapping[str, str]]


@dataclass(frozen=True)
class _Facts:
    """The facts about a version, with a method per section. `run` has the evaluations
    of the version, and `unsigned` the events that do not count.
    """

    record: VersionRecord
    run: LoggedRun | None
    events: Sequence[AuditEvent]
    unsigned: frozenset[AuditEvent]

    @cached_property
    def signed(self) -> Sequence[AuditEvent]:
        return [event for event in self.events if event not in self.unsigned]

    def statements(self, section: str) -> list[Statement]:
        """Return the statements of a section, and a statement about a record that
        cannot be understood.
        """
        statements: list[Statement] = []
        try:
            with registry_errors(f"the {section} of {self.record.uri}"):
                statements.extend(getattr(self, section)())
        except MALFORMED as error:  # A user may have written the tags and the files of a run.
            statements.append(
                self.in_registry(f"A record about {section} cannot be understood: {error!r}")
            )
        return statements

    def in_registry(self, text: str) -> Statement:
        return statement_of(text, "registry", self.record.uri, self.record.url)

    def in_run(
        self,
        text: str,
        file: str = "",
        run: LoggedRun | None = None,
    ) -> Statement:
        """Return a statement from a file of a run, by default the run with the
        evaluations. Without a run, the source is the registry.
        """
        run = run or self.run
        if run is None:
            return self.in_registry(text)
        page = run.page_of(file) if file else run.url
        return statement_of(text, "run", f"{run.run_id}/{file}".rstrip("/"), page)

    def in_tags(self, *names: str) -> Statements:
        for name in names:
            if value := self.record.tags.get(name):
                text = f"The tag {name} of the version is: {value}"
                yield statement_of(text, "tag", name, self.record.url)

    def in_trail(self, *actions: str) -> Statements:
        """Yield the audit events with these actions. An unsigned promotion does not
        hide signed moves.
        """
        shown = [*without_step_events(self.signed), *self.unsigned]
        events = [event for event in shown if event.action in actions]
        page = console_page(model=self.record.name) if events else ""
        for event in sorted(events, key=attrgetter("at")):
            yield event_statement(event, page, event not in self.unsigned)

    def in_gate(self, *names: str) -> Statements:
        """Yield the checks of the gate's report, or only the checks `names` that were
        not skipped.
        """
        gate = self.record.gate
        source = f"{gate.run_id}/{tags.GATE_REPORT_FILE}"
        for check in gate.checks:
            if names and (check.name not in names or check.state == "skipped"):
                continue
            text = f"The gate's check {check.name} is {check.state}: {check.reason}"
            yield statement_of(text, "run", source, gate.status.report)

    def read_report(self, file: str) -> Mapping[str, Any]:
        """Return a JSON file of the run; empty if the file does not exist or is about
        another version.
        """
        document = _read_json(self.run.run_id, file) if self.run else {}
        logged = f"models:/{self.record.mlmodel.get('model_id')}"
        model = str(document.get("model"))
        if re.fullmatch(r"models:/(m-\w+|.+/\d+)", model) is None:
            return document
        return document if model in (self.record.uri, self.record.original, logged) else {}

    def windows(self) -> Iterator[_Windows]:
        """Yield the windows of each monitor that has judged the version."""
        version_tags = {
            "onnxserve.model": self.record.name,
            "onnxserve.version": self.record.version,
        }
        begin = self.record.created_at.timestamp() * 1000
        for tag in self.record.tags:
            if not (tag.startswith(window_runs.PREFIX) and tag.endswith("/window")):
                continue
            name = tag.removeprefix(window_runs.PREFIX).removesuffix("/window")
            endpoint, monitor = name.split("/")
            windows: dict[str, Any] = {}
            for run in window_runs.runs_of_windows(endpoint, monitor):
                if version_tags.items() <= run.data.tags.items() and run.info.start_time >= begin:
                    # The newest revision is first.
                    windows.setdefault(run.data.tags[window_runs.START_TAG], run)
            if runs := list(windows.values()):
                newest = logged_run(registry_client(), runs[0].info.run_id)
                window_tags = [run.data.tags for run in runs]
                yield _Windows(f"{monitor} of the endpoint {endpoint}", newest, window_tags)

    def purpose(self) -> Statements:
        name = self.record.name
        if purpose := registry_client().get_registered_model(name).description:
            yield self.in_registry(f"The description of the model {name} is {quoted(purpose)}")
        if text := tags.with_description_section(self.record.description, []):
            yield self.in_registry(f"The description of the version is {quoted(text)}")

    def origin(self) -> Statements:
        """Yield who registered the version and when, its origin, and its code."""
        record = self.record
        copied = f", as a copy of {record.original}" if record.original else ""
        people = [event.actor for event in self.signed if event.action == "register"]
        person = people[0] if people else record.registered_by
        by = f" by {person}" if person else ""
        yield self.in_registry(
            f"The version was registered{by} on {record.created_at:%Y-%m-%d %H:%M} UTC{copied}"
        )
        if reason := record.missing.get("model"):
            yield self.in_registry(f"The model cannot be read: {reason}")
        yield from self.in_tags(*_LINEAGE, tags.TRAINING_TAG)
        yield from self.algorithm()
        yield from self.training_run()
        if commit := record.git_commit:
            changes = " with uncommitted changes" if record.provenance.get("git_dirty") else ""
            yield self.in_registry(f"The code is the git commit {commit}{changes}")

    def training_run(self) -> Statements:
        """Yield the run that logged the model, with its user and its parameters."""
        run = self.record.run
        if not run.run_id:
            return
        params = join_names(f"{name} {value}" for name, value in run.params.items()) or "none"
        user = run.tags.get("mlflow.user")
        owner = f" of {user}" if user else ""
        text = (
            f"The run {run.tags.get('mlflow.runName')}{owner} of {run.started_at:%Y-%m-%d} "
            "logged the model"
        )
        yield self.in_run(f"{text} with the parameters: {params}")

    def algorithm(self) -> Statements:
        """Yield the class of the model, and the framework. MLflow's autologging tags
        the run with the class.
        """
        section = self.record.section
        framework = " ".join(
            str(section[name]) for name in ("framework", "framework_version") if section.get(name)
        )
        run_tags = self.record.run.tags
        algorithm = self.record.provenance.get("algorithm") or run_tags.get("estimator_class")
        names = [str(name) for name in (algorithm, framework) if name]
        if names:
            yield self.in_registry(f"The algorithm is {' of '.join(names)}")

    def data(self) -> Statements:
        """Yield the datasets with their digests, and the size of the reference."""
        run = self.record.run
        for name, digest in self.record.datasets.items():
            rows = run.dataset_rows.get(name)
            counted = "" if rows is None else f" and {rows:,} rows"
            text = f"The dataset {name} has the digest {digest}{counted}"
            statement = self.in_run if name in run.datasets else self.in_registry
            yield statement(text)
        reference = self.record.section.get("reference") or {}
        if reference.get("rows"):
            begin = str(reference.get("begin") or "")
            end = str(reference.get("end") or "")
            text = f"The reference for monitors has {int(reference['rows']):,} rows"
            if begin and end:
                text += f", from {format_time(begin)} to {format_time(end)} UTC"
            yield self.in_registry(text)

    def signature(self) -> Statements:
        """Yield the columns of each side: `age (long, optional)`, or `float32 [-1, 4]`
        for a tensor without name. The keys of the record are `inputs age`.
        """
        by_side = groupby(
            self.record.signature.items(),
            lambda item: item[0].partition(" ")[0],
        )
        for side, columns in by_side:
            texts = []
            for _, text in columns:
                entry = json.loads(text)
                tensor = entry.get("tensor-spec")
                kind = (
                    f"{tensor.get('dtype')} {tensor.get('shape')}" if tensor else entry.get("type")
                )
                if not entry.get("required", True):
                    kind = f"{kind}, optional"
                name = entry.get("name")
                texts.append(f"{name} ({kind})" if name else str(kind))
            yield self.in_registry(f"The {side} are: {join_names(texts)}")

    def metrics(self) -> Statements:
        """Yield the metrics of the run, without those of onnxserve."""
        run = self.record.run
        figures = [f"{name} {value:.6g}" for name, value in run.user_metrics.items()]
        if figures:
            text = f"The metrics of the run {run.tags.get('mlflow.runName')} are"
            yield self.in_run(f"{text}: {join_names(figures)}")

    def parity(self) -> Statements:
        """Yield the state of the proof with its reasons, and the errors of outputs."""
        yield from self.in_tags(tags.FALLBACK_TAG)
        parity = self.record.section.get("parity")
        if not parity:
            return
        text = f"The proof of parity is {parity['state']} on {parity.get('rows', 0)} rows"
        for key in ("problem", "unproven", "repair"):
            if key in parity:
                text += f"; {key}: {parity[key]}"
        yield self.in_registry(text)
        for output in parity.get("outputs", ()):
            error = float(output["max_absolute_error"])
            text = f"The largest absolute error of the output {output['name']} in the proof is"
            yield self.in_registry(f"{text} {error:.3g} ({output['tolerance']})")

    def gate(self) -> Statements:
        """Yield the verdicts on this and on the served version, and the checks."""
        gate = self.record.gate
        if gate.judged:
            state = gate.status.state or "not valid"
            text = f"The verdict of the gate on {gate.judged} is {state}"
            yield statement_of(
                f"{text}: {gate.status.reason}", "tag", tags.GATE_TAG, self.record.url
            )
            yield from self.verdict_of_served()
        yield from self.in_gate()
        if reason := self.record.missing.get("gate report"):
            yield self.in_registry(f"The report of the gate cannot be read: {reason}")

    def verdict_of_served(self) -> Statements:
        """Yield the verdict on the other version in the first gated alias or stage that
        has one.
        """
        name = self.record.name
        version = self.record.version
        try:
            policy = choose_policy(name).policy
        except InvalidConfig as error:  # A user may have written the tag.
            yield self.in_registry(f"The policy of the gate cannot be understood: {error.message}")
            return
        for place in policy.gated_places:
            served = version_at(name, place, exclude=version)
            if served is None:
                continue
            status = served.gate_status
            state = status.state or "missing"
            text = (
                f"The verdict of the gate on the served version {served.version} in {place} is "
                f"{state}: {status.reason}"
            )
            page = version_page(name, served.version)
            yield statement_of(text, "registry", served.source, page)
            return

    def robustness(self) -> Statements:
        """Yield the checks of the gate, and the worst outcome of each disturbance."""
        yield from self.in_gate("robustness", "disturbances")
        file = "robustness/robustness.json"
        report = self.read_report(file)
        if not report:
            return
        dataset = report["dataset"] or "a table"
        text = (
            f"The {report['metric']} of {report['model']} without a disturbance is "
            f"{report['clean']:.4f}"
        )
        yield self.in_run(f"{text} on {report['rows']} rows of {dataset}", file)
        # A point without a loss has refused rows, which is the worst outcome.
        points = sorted(
            report["points"],
            key=lambda point: inf if point["loss"] is None else float(point["loss"]),
        )
        worst_points = {point["disturbance"]: point for point in points}
        for name, point in worst_points.items():
            outcome = point["refusal"] or f"a loss of {point['loss']:.4f}"
            text = f"The worst outcome under {name} is at the strength {point['strength']}"
            yield self.in_run(f"{text}: {outcome}", file)

    def explanations(self) -> Statements:
        """Yield the mean contribution of each column, if it was measured."""
        file = "explain/explain.json"
        report = self.read_report(file)
        if not report:
            return
        columns = join_names(
            f"{entry['column']} {entry['mean_abs']:.4g}" for entry in report["importance"]
        )
        scale = LINK_SCALES[report.get("link", "identity")]
        text = (
            f"The mean absolute contributions to {report['rows']} predictions{scale} of "
            f"{report['model']} are"
        )
        yield self.in_run(f"{text}: {columns}", file)

    def segments(self) -> Statements:
        """Yield the findings about segments in the newest window of each monitor."""
        for windows in self.windows():
            newest = windows.newest
            for finding in _read_json(newest.run_id, window_runs.DOCUMENT).get("findings", ()):
                if not finding["segment"]:
                    continue
                text = (
                    f"The state of {finding['subject']} for {finding['segment']} is "
                    f"{finding['state']}, judged by {windows.monitor}: {finding['reason']}"
                )
                yield self.in_run(text, window_runs.PAGE, newest)

    def approvals(self) -> Statements:
        return self.in_trail("request", "approve", "decline", "refused", ADOPT, SEAL)

    def deployments(self) -> Statements:
        yield from self.in_trail(
            "promote",
            "transition",
            "alias",
            "rollout.start",
            "rollout.end",
            "rollback",
        )
        yield from self.in_tags(ROLLED_BACK_TAG)

    def monitors(self) -> Statements:
        """Yield the counts of each monitor's verdicts, and its newest verdict."""
        for monitor, newest, window_tags in self.windows():
            counts = Counter(entry[window_runs.VERDICT_TAG] for entry in window_tags)
            verdicts = join_names(f"{count} {verdict}" for verdict, count in counts.items())
            text = f"The verdicts of {monitor} on its last windows are: {verdicts}"
            yield self.in_run(text, run=newest)
            latest = window_tags[0]
            start = format_time(latest[window_runs.START_TAG])
            text = (
                f"The verdict of {monitor} on the window of {start} is "
                f"{latest[window_runs.VERDICT_TAG]}: {latest['onnxserve.reason']}"
            )
            yield self.in_run(text, window_runs.PAGE, newest)
