"""The dossier of an endpoint for a reviewer: statements about a period, from the audit
trail, the inference log, the store and the registry.

Each audit event of the period is in one section. Earlier decisions about the versions
that served in the period are included too.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from itertools import chain
from operator import attrgetter
from pathlib import Path

import pandas as pd
import yaml

from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    NotInstalled,
    OnnxserveError,
    RegistryRefused,
    SignatureRefused,
)
from mlflow_deploy_plugin.core.messages import join_names
from mlflow_deploy_plugin.core.registry.audit_trail import (
    StoredEvent,
    stored_events,
    trusted_keys,
    unsigned_events,
)
from mlflow_deploy_plugin.core.registry.console import console_page
from mlflow_deploy_plugin.core.registry.model_files import fetch_bundle
from mlflow_deploy_plugin.core.registry.model_uri import ModelURI, registered_model_uris
from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.registry.tags import GATE_REPORT_FILE
from mlflow_deploy_plugin.core.registry.window_runs import PAGE
from mlflow_deploy_plugin.core.signatures import BUNDLE, trust_file
from mlflow_deploy_plugin.core.spec.document import load_stored_specs
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.audit import AuditEvent, describe_traffic
from mlflow_deploy_plugin.core.store.audit_seal import SEAL, verify_trail
from mlflow_deploy_plugin.core.store.audit_tree import ADOPT
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, MonitorWindow
from mlflow_deploy_plugin.core.store.store import Store, unknown_endpoint
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.promote.evidence.record import version_page
from mlflow_deploy_plugin.promote.evidence.statements import (
    Sections,
    Statement,
    Statements,
    event_statement,
    group_statements,
    signature_note,
    statement_of,
    write_document,
)
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.stats import (
    VersionAnswers,
    answers_by_version,
    failures_by_code,
)
from mlflow_deploy_plugin.serve.inference_log.windows import TimeRange, Window, parse_window
from mlflow_deploy_plugin.wrap.flavor.signing import verify_version

FORMAT = 1
"""The number of the layout of dossier.json. Files before the first number have none."""
_Version = tuple[str, str]
"""The name of a model and the number of a version."""
_SECTIONS = {
    "serving": ("versions", "requests", "traffic"),
    "decisions": ("promotions", "gate", "signatures", "changes"),
    "monitoring": ("verdicts", "alarms", "responses"),
    "record": ("trail_state", "unsigned_events"),
}
"""The sections of each group. Each section is a method of `_Facts`, or has the events
of `_SECTION_BY_ACTION`. `unsigned_events` has those that no server has signed.
"""
_MOVES = ("promote", "transition", "alias")
_SERVING = (*_MOVES, "rollback", "rollout.start", "rollout.end")
_DECISIONS = ("gate", "request", "approve", "decline", "refused", "sign", *_MOVES)
_TRAFFIC = (
    *("create", "update", "delete", "start", "stop", "load", "unload"),
    *("traffic", "follow", "rollout", "rollback"),
)
_PROMOTIONS = ("request", "approve", "decline", "refused", "intend", "failed", *_MOVES)
_SECTION_BY_ACTION = {
    **dict.fromkeys(_TRAFFIC, "traffic"),
    **dict.fromkeys(_PROMOTIONS, "promotions"),
    "gate": "gate",
    "sign": "signatures",
    **dict.fromkeys(("monitor", "silence", "retrain"), "responses"),
}
"""The first word of an action → its section. The section `changes` has the others."""
_PERIOD = re.compile(r"[12]\d{3}(-Q[1-4]|-(0[1-9]|1[0-2]))?", re.ASCII)


@dataclass(frozen=True)
class Dossier:
    """The statements about an endpoint and a period in UTC by group and section. A
    section without facts is left out. `format` is the number of the layout.
    """

    endpoint: str
    start: datetime
    end: datetime
    created_at: datetime
    serving: Sections
    decisions: Sections
    monitoring: Sections
    record: Sections
    format: int = FORMAT

    def write(self, folder: Path, proof: Json, framework: str | None = None) -> None:
        """Write dossier.html, in the order of a framework (`frameworks.yaml`), and
        dossier.json with its proof (`proof.py`), which is the same in each order.
        Raises InvalidConfig if the folder cannot be written.
        """
        title = f"Dossier of {self.endpoint}, {Window(self.start, self.end)}"
        articles = read_frameworks()[framework] if framework else None
        write_document(self, folder, "dossier", title, _SECTIONS, proof, articles)


def read_frameworks() -> dict[str, Json]:
    """Return the order of the articles of each framework."""
    text = Path(__file__).with_name("frameworks.yaml").read_text(encoding="utf-8")
    frameworks: dict[str, Json] = yaml.safe_load(text)
    return frameworks


def parse_period(text: str, now: datetime) -> Window:
    """Return the period `2026`, `2026-Q4`, `2026-11`, START/END or START/DURATION in
    UTC. Raises InvalidConfig for another text, or if the period has not begun.
    """
    if _PERIOD.fullmatch(text):
        calendar = pd.Period(text)
        period = Window(_start_of(calendar), _start_of(calendar + 1))
    elif "/" in text:
        period = parse_window(text)
    else:
        raise InvalidConfig(
            f"the period {text!r} cannot be read; it is a quarter (2026-Q4), a month (2026-11), "
            "a year (2026) or START/END"
        )
    if period.start > now:
        raise InvalidConfig(f"the period {text} has not begun")
    return period


def _start_of(calendar: pd.Period) -> datetime:
    return calendar.to_timestamp().to_pydatetime().replace(tzinfo=UTC)


def make_dossier(store: Store, endpoint: str, period: Window, log_uri: str) -> Dossier:
    """Return the dossier. A log that cannot be read is a statement.

    Raises NotFound for an endpoint that neither exists nor was deleted,
    RegistryUnavailable, and StoreUnavailable.
    """
    if endpoint not in store.names(deleted=True):
        raise unknown_endpoint(endpoint, store.names(deleted=True))
    trail = read_trail(store, endpoint, period)
    pages = {name: console_page(model=name) for name in trail.names}
    pages[""] = console_page(endpoint=endpoint)
    times = TimeRange(received_from=period.start, received_until=period.end)
    try:
        log = open_log(log_uri)
        answers = answers_by_version(log, endpoint, times)
        captured = _Requests(answers, failures_by_code(log, endpoint, times), log.unreadable)
    except OnnxserveError as error:
        captured = _Requests(unreadable={log_uri: error.message})
    facts = _Facts(store, endpoint, period, trail, captured, pages)
    groups = group_statements(_SECTIONS, facts.statements)
    return Dossier(endpoint, period.start, period.end, store.now(), format=FORMAT, **groups)


def computed_statements(store: Store, endpoint: str, period: Window) -> list[str]:
    """Return the texts of the verdicts and alarms, which the server computes too when
    it signs a dossier. Raises StoreUnavailable.
    """
    trail = Trail(frozenset(), None, (), (), (), frozenset())
    facts = _Facts(store, endpoint, period, trail, _Requests(), {"": ""})
    return [made.text for made in chain(facts.verdicts(), facts.alarms())]


@dataclass(frozen=True)
class Trail:
    """The audit events of an endpoint and of its models, oldest first.

    Attributes:
        models: the URIs of the variants during the period.
        begun_with: the last event before the period that has a spec, and this spec.
        stored: all events with their places in the tree, in the order of their ids.
        earlier / events: the events before and in the period.
        unsigned: the events that MLflow's server has not signed.
    """

    models: frozenset[ModelURI]
    begun_with: tuple[AuditEvent, EndpointSpec] | None
    stored: Sequence[StoredEvent]
    earlier: Sequence[AuditEvent]
    events: Sequence[AuditEvent]
    unsigned: frozenset[AuditEvent]

    @property
    def names(self) -> list[str]:
        return sorted({uri.name for uri in self.models})

    def standing(self) -> dict[tuple[str, str], AuditEvent]:
        """Return the last signed move before the period to each stage and @alias that a
        variant follows, by the model and the place.
        """
        followed = {(uri.name, uri.place.lower()) for uri in self.models}
        moves = dict[tuple[str, str], AuditEvent]()
        for event in self.earlier:
            moved = event.detail.get("moved")
            if isinstance(moved, dict):
                place = str(moved.get("place"))
            else:
                place = str(event.detail.get("to"))
            is_followed = (event.model, place.lower()) in followed
            if event.action in _MOVES and is_followed and event not in self.unsigned:
                moves[event.model, place] = event
        return moves

    def versions(self) -> set[_Version]:
        """Return the versions that the variants name or that moved in the period, and
        those in place at its start.
        """
        pinned = {(uri.name, uri.selector) for uri in self.models if uri.kind == "version"}
        moves = [event for event in self.events if event.action in _SERVING]
        moves += self.standing().values()
        return pinned | {(event.model, event.version) for event in moves if event.version}


def read_trail(store: Store, endpoint: str, period: Window) -> Trail:
    """Return the events until the end of the period. Raises StoreUnavailable, and the
    errors of `unsigned_events`.
    """
    models = set[ModelURI]()
    begun_with = None
    for event in store.events(endpoint):
        spec = None
        with suppress(InvalidConfig):  # Another version of onnxserve may have written it.
            (spec,) = load_stored_specs(str(event.detail.get("spec", "")))
        if spec is None or event.at >= period.end:
            continue
        if event.at < period.start:
            models.clear()
            begun_with = (event, spec)
        models.update(registered_model_uris(spec))
    names = {uri.name for uri in models}
    stored = [event for event in stored_events(store, endpoint, names) if event.at < period.end]
    events = sorted((event.without_place() for event in stored), key=attrgetter("at"))
    first = bisect_left(events, period.start, key=attrgetter("at"))
    return Trail(
        models=frozenset(models),
        begun_with=begun_with,
        stored=stored,
        earlier=events[:first],
        events=events[first:],
        unsigned=unsigned_events(store, events),
    )


@dataclass(frozen=True)
class _Requests:
    """The captured requests of a period.

    Attributes:
        failures: the number of failed requests by error code.
        unreadable: the malformed files, or the whole log, with the reasons.
    """

    answers: Sequence[VersionAnswers] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Facts:
    """The facts about an endpoint and a period, with a method per section.

    Attributes:
        pages: the console's page of each model, and of the endpoint by the empty name.
    """

    store: Store
    endpoint: str
    period: Window
    trail: Trail
    captured: _Requests
    pages: Mapping[str, str]

    @cached_property
    def versions_served(self) -> list[_Version]:
        answered = {(answer.model, answer.version) for answer in self.captured.answers}
        return sorted(answered | self.trail.versions())

    def statements(self, section: str) -> Statements:
        """Yield the statements of a section: the facts, earlier decisions, and the
        events of the period.
        """
        facts = getattr(self, section, None)
        if facts is not None:
            yield from facts()
        earlier = [
            event
            for event in self.trail.earlier
            if event.action in _DECISIONS and (event.model, event.version) in self.versions_served
        ]
        for event in (*earlier, *self.trail.events):
            kind = event.action.partition(".")[0]
            own_section = _SECTION_BY_ACTION.get(kind, "changes")
            if event in self.trail.unsigned:
                own_section = "unsigned_events"
            elif own_section == "traffic" and not event.endpoint:
                own_section = "changes"  # `delete` without an endpoint is about a model.
            if section == own_section:
                yield self.in_trail(event)

    def in_trail(self, event: AuditEvent) -> Statement:
        """Return a statement about an event, which links to the report of a gate."""
        page = self.pages["" if event.endpoint else event.model]
        described = event_statement(event, page, event not in self.trail.unsigned)
        if event.action != "gate":
            return described
        source = f"{event.detail.get('run_id')}/{GATE_REPORT_FILE}"
        return statement_of(described.text, "run", source, str(event.detail.get("report", "")))

    def in_log(self, text: str) -> Statement:
        return statement_of(text, "log", self.endpoint, self.pages[""])

    def versions(self) -> Statements:
        """Yield the versions at the start of the period and those that answered."""
        if self.trail.begun_with is not None:
            event, spec = self.trail.begun_with
            yield self.at_start(f"the variants were: {describe_traffic(spec)}", event)
        for (model, place), event in self.trail.standing().items():
            yield self.at_start(f"{place} of {model} was version {event.version}", event)
        for answer in self.captured.answers:
            text = (
                f"{answer.model} version {answer.version} answered from "
                f"{answer.first:%Y-%m-%d %H:%M} to {answer.last:%Y-%m-%d %H:%M} UTC. The number of "
                f"its captured requests is {answer.requests:,}"
            )
            yield self.in_log(text)

    def at_start(self, text: str, event: AuditEvent) -> Statement:
        note = signature_note(event not in self.trail.unsigned)
        return replace(self.in_trail(event), text=f"At the start of the period, {text}{note}.")

    def requests(self) -> Statements:
        """Yield the numbers of answered and failed requests."""
        captured = self.captured
        answered = sum(answer.requests for answer in captured.answers)
        rows = sum(answer.rows for answer in captured.answers)
        failed = sum(captured.failures.values())
        yield self.in_log(
            f"The log has {answered:,} answered requests with {rows:,} rows, and {failed:,} "
            "failed requests"
        )
        for code, count in sorted(captured.failures.items()):
            yield self.in_log(f"The number of requests that failed with the code {code} is {count}")
        for path, reason in captured.unreadable.items():
            yield self.in_log(f"Captured requests in {path} cannot be read: {reason}")

    def signatures(self) -> Statements:
        """Yield whether the served versions are signed. The key that the endpoint
        requires verifies the signatures, if this machine has its file.
        """
        stored = self.store.endpoint(self.endpoint)
        trust = None
        if stored and stored.spec.trusted_file:
            with suppress(SignatureRefused):
                trust = trust_file(Path(stored.spec.trusted_file))
        for model, version in self.versions_served:
            subject = f"{model} version {version}"
            uri = f"models:/{model}/{version}"
            page = version_page(model, version)
            try:
                bundle = fetch_bundle(uri)
                if bundle is None:
                    text = f"{subject} has no signature {BUNDLE}"
                elif trust is None:
                    digest = sha256(bundle).hexdigest()
                    text = f"{subject} has the signature {BUNDLE} with the SHA-256 {digest}"
                else:
                    verified = verify_version(uri, trust)
                    proof = f"of its {verified.files} files by {trust.name}"
                    text = f"{subject} has a valid signature {proof}"
            except SignatureRefused as error:
                text = f"{subject} has no valid signature: {error.message}"
            except NotInstalled as error:
                text = f"The signature of {subject} cannot be verified here: {error.message}"
            except (InvalidArtifact, InvalidConfig, NotFound, RegistryRefused) as error:
                text = f"{subject} has no signature that can be read: {error.message}"
            yield statement_of(text, "registry", uri, page)

    def verdicts(self) -> Statements:
        """Yield the counts of each monitor's verdicts, and the windows that have alarms
        or failed.
        """
        windows = {
            (window.monitor, window.start, window.end): window  # The last revision is last.
            for window in Monitors(self.store).windows(self.endpoint, since=self.period.start)
            if window.start < self.period.end
        }
        for monitor in dict.fromkeys(name for name, *_ in windows):
            judged = [window for window in windows.values() if window.monitor == monitor]
            counts = Counter(window.outcome or window.state for window in judged)
            verdicts = join_names(f"{count} {outcome}" for outcome, count in counts.items())
            newest = max(judged, key=lambda window: (bool(window.run_id), window.start))
            yield _in_window(f"The windows of the monitor {monitor} are: {verdicts}", newest)
            for window in judged:
                if window.evidence.get("alarms") or window.state == "failed":
                    outcome = window.outcome or window.state
                    text = f"The window {window.start:%Y-%m-%d %H:%M} UTC of {monitor} is {outcome}"
                    yield _in_window(f"{text}: {window.reason}", window)

    def alarms(self) -> Statements:
        """Yield the alerts that were firing in the period."""
        for alert in Alerts(self.store).between(self.endpoint, self.period.start, self.period.end):
            text = (
                f"The alert of {alert.monitor or self.endpoint} began on "
                f"{alert.first_at:%Y-%m-%d %H:%M} UTC and is {alert.state} since "
                f"{alert.last_at:%Y-%m-%d %H:%M} UTC: {'; '.join(alert.detail.get('lines', ()))}"
            )
            page = str(alert.detail.get("link") or self.pages[""])
            yield statement_of(text, "alert", alert.fingerprint, page)

    def trail_state(self) -> Statements:
        """Yield the number of events, and the state of the audit trail."""
        unsigned = self.trail.unsigned.difference(self.trail.earlier)
        text = (
            f"The audit trail has {len(self.trail.events)} events of {self.endpoint} and "
            f"{join_names(self.trail.names) or 'no registered model'} in the period"
        )
        if unsigned:
            text += f", of which {len(unsigned)} are not signed by MLflow's server"
        yield statement_of(text, "trail", self.endpoint, self.pages[""])
        # The events of the period are in the section `changes`.
        adopted = [
            event
            for event in self.store.events(actions=(ADOPT, SEAL))
            if event.why and event.model in self.pages and event not in self.trail.events
        ]
        unsigned = unsigned_events(self.store, adopted)
        for event in adopted:
            yield event_statement(event, self.pages[event.model], event not in unsigned)
        trusted = trusted_keys(self.store)
        state = verify_trail(self.store, trusted and trusted.keys, trusted and trusted.checkpoint)
        text = f"The audit trail is {state.state}: {state.events:,} events, {state.signed:,} signed"
        if trusted:
            size = f"of {trusted.checkpoint.size:,} events" if trusted.checkpoint else "none"
            text += f", by the keys of {trusted.origin}, checkpoint {size}"
        for line in (text, *state.faults):
            yield statement_of(line, "trail", self.endpoint, self.pages[""])


def _in_window(text: str, window: MonitorWindow) -> Statement:
    run = LoggedRun(window.run_id, "", window.run_url)
    return statement_of(text, "run", f"{window.run_id}/{PAGE}", run.page_of(PAGE))
