"""A run of the gate: check a version by its policy, compared with the current version,
log the report, tag the version and record the event.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core import errors
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.mlmodel import hash_folder
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.connection import (
    find_login,
    registry_client,
    registry_errors,
)
from mlflow_deploy_plugin.core.registry.model_files import (
    find_signature,
    require_signed,
    version_digest,
)
from mlflow_deploy_plugin.core.registry.policy import (
    ALL_PERMISSIONS,
    EvaluationPolicy,
    GatePolicy,
    Permissions,
    PolicyChoice,
    RobustnessPolicy,
    choose_policy,
    require_mlflow_data,
)
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel, registered_version, resolve
from mlflow_deploy_plugin.core.registry.runs import (
    LoggedRun,
    get_or_create_experiment,
    log_metrics,
    log_run,
)
from mlflow_deploy_plugin.core.registry.transitions import version_at
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.signatures import Trust
from mlflow_deploy_plugin.core.store.audit import current_actor
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.promote.gate.checks.artifact import (
    PARITY,
    check_agreement,
    check_parity,
    check_signature,
)
from mlflow_deploy_plugin.promote.gate.checks.backtest_check import check_backtest
from mlflow_deploy_plugin.promote.gate.checks.budget import check_budget, measure_costs
from mlflow_deploy_plugin.promote.gate.checks.evaluation import check_evaluation
from mlflow_deploy_plugin.promote.gate.checks.robustness import check_disturbances, check_robustness
from mlflow_deploy_plugin.promote.gate.recording import VerdictRecord, finite, write_verdict
from mlflow_deploy_plugin.promote.gate.verdict import (
    MAX_FIGURE,
    NO_CURRENT,
    CheckResult,
    GateVerdict,
    verdict_as_html,
    verdict_as_json,
)
from mlflow_deploy_plugin.promote.replay.traffic import open_traffic
from mlflow_deploy_plugin.serve.runtime.feeds import row_count, sample_positions
from mlflow_deploy_plugin.serve.runtime.values import numpy_dtype
from mlflow_deploy_plugin.wrap.evaluation.agreement import graph_digest
from mlflow_deploy_plugin.wrap.evaluation.curves import measure_robustness
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    LabelledRows,
    NamedArrays,
    cast_to_signature,
    load_dataset,
    own_columns,
    reference_rows,
    take_rows,
)
from mlflow_deploy_plugin.wrap.evaluation.disturbances import DisturbedVersion
from mlflow_deploy_plugin.wrap.evaluation.metrics import default_metric
from mlflow_deploy_plugin.wrap.evaluation.model import (
    LoadedModel,
    LoadedOnnx,
    ModelPredictions,
    downloaded_version,
    load_version,
)

GATE_JSON_FILE = "gate.json"
_OF_RUN = (tags.GATE_REPORT_TAG, tags.GATE_AT_TAG)
_NO_ROWS = "there are no rows: the policy has no dataset, and the model has no reference"


@dataclass(eq=False)
class _Checks:
    """The checks of a version, and inputs of the checks. An input that cannot be loaded
    is None for later checks.
    """

    policy: GatePolicy
    progress: ProgressCallback
    resolved: ResolvedModel
    folder: Path
    candidate: LoadedModel
    allows_code: bool = True
    original: str = ""
    store: Store | None = None
    against: str = ""
    current_folder: Path | None = None
    current: LoadedModel | None = None
    labelled: LabelledRows | None = None
    predictions: ModelPredictions | None = None
    notes: list[str] = field(default_factory=list)

    def load_current(
        self,
        current: ResolvedModel,
        folders: ExitStack,
        allowed: Permissions,
    ) -> None:
        """Load the current version. If loading fails, judge the candidate without a
        comparison.
        """
        self.against = current.source
        try:
            folder = folders.enter_context(downloaded_version(current))
            self.current = load_version(folder, allowed.code)
            self.current_folder = folder
        except (errors.RegistryUnavailable, errors.CodeRefused):
            raise
        except errors.OnnxserveError as error:
            self.notes.append(
                f"{self.against} cannot be loaded for the comparison: {error.message}"
            )

    def run(self) -> Iterator[CheckResult]:
        """Yield the results of the checks that the policy asks for. Later checks use
        the inputs that earlier checks have loaded.
        """
        yield self.parity()
        checks = {
            "signature": self.signature,
            "evaluation": self.evaluation,
            "robustness": self.robustness,
        }
        if self.policy.robustness.disturbances:
            checks["disturbances"] = self.disturbances
        if self.policy.signer:
            checks["signed"] = self.signed
        checks["budget"] = self.budget
        if self.policy.backtest.endpoint:
            checks["backtest"] = self.backtest
        for name, check in checks.items():
            # A policy that skips the robustness also skips the disturbances.
            skip_name = "robustness" if name == "disturbances" else name
            if skip_name in self.policy.skip:
                yield CheckResult(name, "skipped", "the policy skips it")
            else:
                yield self.run_check(name, check)

    def run_check(self, name: str, check: Callable[[], CheckResult]) -> CheckResult:
        """Return the result of a check with the notes that were collected for it. An
        error is a failed check, unless MLflow fails.
        """
        self.progress(f"checking {name}")
        try:
            result = check()
        except errors.RegistryUnavailable:
            raise
        except errors.OnnxserveError as error:
            result = CheckResult(name, "failed", error.message)
        notes = (*self.notes, *result.notes)
        self.notes.clear()
        return replace(result, notes=notes)

    def parity(self) -> CheckResult:
        """Check the version's parity. If it is optimized, check the base's parity and
        the agreement with the base.
        """
        record = self.candidate.artifact.optimization
        if not record or not isinstance(self.candidate, LoadedOnnx):
            return check_parity(self.candidate.artifact, self.policy)
        where = str(record.get("base"))
        self.progress(f"comparing with {where}")
        try:
            return self.agreement_with_base(self.candidate, where, record.get("base_digest"))
        except errors.RegistryUnavailable:
            raise
        except errors.OnnxserveError as error:
            reason = f"the version cannot be compared with its base {where}: {error.message}"
            return CheckResult(PARITY, "failed", reason)

    def agreement_with_base(
        self,
        candidate: LoadedOnnx,
        where: str,
        base_digest: object,
    ) -> CheckResult:
        """Compare the optimized candidate with its base, on the policy's dataset or,
        without an evaluation, on the reference rows of the base.

        Raises InvalidConfig if the base is not a version in MLflow, or if the digest of
        its graph is not `base_digest`.
        """
        # The MLmodel file may contain any URI.
        if not where.startswith(("models:/", "runs:/")):
            raise errors.InvalidConfig("it is not a version in MLflow")
        with downloaded_version(resolve(where)) as folder:
            base = load_version(folder, allow_pyfunc=False)
            if not isinstance(base, LoadedOnnx) or base_digest != graph_digest(base):
                raise errors.InvalidConfig("the files of the base have changed")
            rows = None
            labelled = None
            policy = self.policy.evaluation
            if policy.dataset and "evaluation" not in self.policy.skip:
                labelled = self.load_rows(policy, policy.max_rows)
            else:
                rows = reference_rows(base.artifact, policy.max_rows, self.policy.seed)
            return check_agreement(candidate, base, self.policy, labelled, rows)

    def load_rows(self, source: EvaluationPolicy | RobustnessPolicy, max_rows: int) -> LabelledRows:
        """Return the labelled rows of the dataset of a policy."""
        artifact = self.candidate.artifact
        return load_dataset(source.dataset, source.target, artifact, self.policy.seed, max_rows)

    def signature(self) -> CheckResult:
        if self.current is None:
            return CheckResult("signature", "skipped", NO_CURRENT)
        return check_signature(self.candidate.artifact, self.current.artifact, self.against)

    def signed(self) -> CheckResult:
        """Check that the policy's key or authority has signed the files."""
        trust = Trust(self.policy.signer.encode(), "the signer of the policy")
        signature = find_signature(self.resolved.source, trust)
        require_signed(self.resolved, self.folder, signature)
        return CheckResult("signed", "passed", "the policy's signer has signed its files")

    def evaluation(self) -> CheckResult:
        """Compare the predictions for the policy's dataset, and keep rows and
        predictions for the later checks and the report.
        """
        policy = self.policy.evaluation
        if not policy.dataset:
            return CheckResult("evaluation", "skipped", "the policy has no dataset")
        labelled = self.load_rows(policy, policy.max_rows)
        predictions = self.candidate.predict(labelled.rows)
        self.labelled = labelled
        self.predictions = predictions
        current = None
        if self.current is not None:
            try:
                current_rows = cast_to_signature(self.current.artifact, labelled.rows)
                current = self.current.predict(current_rows)
            except errors.OnnxserveError as error:
                reason = f"{self.against} cannot predict the rows of the dataset: {error.message}"
                return CheckResult("evaluation", "failed", reason)
        return check_evaluation(
            labelled.truth,
            predictions,
            current,
            policy,
            self.policy.seed,
            self.against,
        )

    def robustness(self) -> CheckResult:
        """Disturb a sample of the rows. The metric is measured if the evaluation has
        loaded labels.
        """
        policy = self.policy.robustness
        seed = self.policy.seed
        rows = self.rows(policy.max_rows)
        if rows is None:
            return CheckResult("robustness", "skipped", _NO_ROWS)
        positions = sample_positions(row_count(rows), policy.max_rows, seed)
        truth = None
        metric = self.policy.evaluation.metric
        if self.labelled is not None and self.predictions is not None:
            metric = metric or default_metric(self.labelled.truth, self.predictions)
            truth = self.labelled.truth[positions]
        rows = take_rows(rows, positions)
        current = None
        if self.current is not None:
            current = self.current, own_columns(self.current.artifact, rows)
        candidate_rows = own_columns(self.candidate.artifact, rows)
        return check_robustness(
            self.candidate,
            candidate_rows,
            policy,
            seed,
            truth,
            metric,
            current,
            self.against,
        )

    def disturbances(self) -> CheckResult:
        """Measure the loss under each disturbance on the rows of the robustness policy
        or, if it has no dataset, of the evaluation.
        """
        policy = self.policy.robustness
        evaluation = self.policy.evaluation
        labelled = self.labelled
        if policy.dataset or labelled is None:
            source = policy if policy.dataset else evaluation
            labelled = self.load_rows(source, policy.max_rows)
        positions = sample_positions(len(labelled.truth), policy.max_rows, self.policy.seed)
        version = DisturbedVersion(
            take_rows(labelled.rows, positions),
            labelled.truth[positions],
            self.candidate,
            self.resolved,
            self.folder,
            self.original,
            allows_code=self.allows_code,
        )
        metric = policy.metric or evaluation.metric
        report = measure_robustness(
            version, metric, policy.disturbances, self.policy.seed, self.progress
        )
        return check_disturbances(report, policy)

    def budget(self) -> CheckResult:
        """Measure the cost, together with the current version if both predict the same
        rows. Without rows, the version predicts zeros and empty strings.
        """
        policy = self.policy.budget
        rows = self.rows(policy.batch)
        if rows is None:
            rows = {}
            for entry in self.candidate.artifact.inputs:
                dtype = numpy_dtype(entry.dtype)
                shape: tuple[int, ...] = (1,)
                if not entry.columns:
                    shape = (
                        1,
                        *(max(size, 1) for size in entry.shape[1:]),
                    )
                value = "" if dtype.kind == "O" else 0
                blank = np.full(shape, value, dtype=dtype)
                rows |= dict.fromkeys(entry.columns or (entry.name,), blank)
        if not rows:
            return CheckResult("budget", "skipped", _NO_ROWS)
        if self.current_folder is not None:
            try:
                candidate, current = measure_costs(
                    [self.folder, self.current_folder],
                    rows,
                    policy.batch,
                )
                return check_budget(candidate, current, policy, self.against)
            except errors.InferenceError as error:
                self.notes.append(f"not measured together with {self.against}: {error.message}")
        (candidate,) = measure_costs([self.folder], rows, policy.batch)
        return check_budget(candidate, None, policy)

    def backtest(self) -> CheckResult:
        name = self.policy.backtest.endpoint
        endpoint = None if self.store is None else self.store.endpoint(name)
        traffic = open_traffic(name, endpoint)
        return check_backtest(self.candidate, traffic, self.policy)

    def rows(self, max_rows: int) -> NamedArrays | None:
        """Return the rows of the evaluation or, without an evaluation, reference rows
        of a version; None without a reference.
        """
        if self.labelled is not None:
            return self.labelled.rows
        sample = reference_rows(self.candidate.artifact, max_rows, self.policy.seed)
        if sample is None and self.current is not None:
            sample = reference_rows(self.current.artifact, max_rows, self.policy.seed)
        return sample


def judge(
    candidate: ResolvedModel,
    current: ResolvedModel | None,
    policy: GatePolicy,
    policy_from: str,
    progress: ProgressCallback = lambda line: None,
    allowed: Permissions = ALL_PERMISSIONS,
    original: str = "",
    store: Store | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> GateVerdict:
    """Run the checks. An error of the version or of the policy's dataset is a failed
    check.

    Args:
        current: the version to compare with, e.g. the served version; None for no
            comparison.
        original: the URI of the torch model that the candidate was made from; default:
            named by the candidate.
        store: knows the masked columns of the back-tested endpoint; None if it is not
            available.

    Raises CodeRefused if a version has no ONNX form and its code may not run,
    InvalidConfig if the data of the policy may not be read, NotFound if the files of
    the version are missing, and RegistryUnavailable if MLflow fails.
    """
    if not allowed.files:
        require_mlflow_data(policy)
    results: tuple[CheckResult, ...]
    with ExitStack() as folders:
        compared = f" and version {current.version}" if current else ""
        progress(f"fetching version {candidate.version}{compared}")
        folder = folders.enter_context(downloaded_version(candidate))
        digest = hash_folder(folder)
        try:
            loaded = load_version(folder, allowed.code)
            checks = _Checks(
                policy,
                progress,
                candidate,
                folder,
                loaded,
                allows_code=allowed.code,
                original=original,
                store=store,
            )
        except (errors.RegistryUnavailable, errors.CodeRefused):
            raise
        except errors.OnnxserveError as error:
            results = (CheckResult("load", "failed", error.message),)
        else:
            if current is not None:
                checks.load_current(current, folders, allowed)
            results = tuple(checks.run())
    return GateVerdict(
        model=candidate.name,
        version=candidate.version,
        digest=digest,
        against=current.source if current else "",
        at=clock(),
        checks=results,
        policy=policy.model_dump(mode="json"),
        policy_digest=policy.digest,
        policy_from=policy_from,
    )


@dataclass(frozen=True)
class GateRun:
    """A verdict and the MLflow run with its report. `is_tagged` is True if the verdict
    is in the version's tags.
    """

    verdict: GateVerdict
    run: LoggedRun
    is_tagged: bool

    @property
    def report(self) -> str:
        return self.run.page_of(tags.GATE_REPORT_FILE)


@dataclass(frozen=True)
class ServedVerdict:
    """The verdict on the served version. `stands` lists the gated aliases and stages of
    this version.
    """

    model: str
    version: str
    stands: str
    state: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.model} version {self.version} is the served version ({self.stands}), and "
            f"there is no version to compare it with; its gate remains {self.state}: {self.reason}"
        )


def verdict_of_served(
    model: str,
    version: str,
    policy_file: Path | None = None,
) -> ServedVerdict | None:
    """Return the passed verdict on the only version in the gated aliases and stages, or
    None.

    A new verdict would have no version to compare with. The stored verdict must be for
    this policy and the current files. A forced promotion counts as passed.
    """
    candidate = registered_version(model, version)
    choice = choose_policy(model, policy_file)
    status = candidate.gate_status
    if not choice.is_models_own or not status.passed or _served_version(candidate, choice.policy):
        return None
    # No other version has a gated stage or alias, so a non-empty stage or alias
    # contains the candidate.
    places = [place for place in choice.policy.gated_places if version_at(model, place) is not None]
    with registry_errors(f"model {model} version {version}"):
        version_tags = registry_client().get_model_version(model, candidate.version).tags
    if (
        not places
        or version_tags.get(tags.GATE_POLICY_DIGEST_TAG, choice.policy.digest)
        != choice.policy.digest
    ):
        return None
    if not status.on_files(version_digest(candidate.source)).passed:
        return None
    return ServedVerdict(
        model,
        candidate.version,
        ", ".join(map(str, places)),
        status.state,
        status.reason,
    )


def run_gate(
    model: str,
    version: str,
    *,
    policy_file: Path | None = None,
    against: str | None = None,
    actor: str | None = None,
    store: Store | None = None,
    progress: ProgressCallback = lambda line: None,
    allowed: Permissions = ALL_PERMISSIONS,
    original: str = "",
) -> GateRun:
    """Judge a version, log the report to MLflow, tag the version and record the verdict
    in the audit trail.

    Args:
        against: the model URI to compare with; default: the version in the first gated
            alias or stage that contains another version. A verdict against any other
            version is not stored in the tags of the version.
        actor: see `promote`.
        store: see `promote`.
        allowed: see `promote`.
        original: see `promote`.

    Raises CodeRefused, InvalidConfig, NotFound, RegistryUnavailable, ScopeMissing and
    StoreUnavailable like `promote`.
    """
    candidate = registered_version(model, version)
    choice = choose_policy(model, policy_file)
    served = _served_version(candidate, choice.policy)
    current = resolve(against) if against else served
    is_official = choice.is_models_own and (current and current.source) == (
        served and served.source
    )
    return gate_version(
        candidate,
        current,
        choice,
        actor,
        store,
        progress,
        is_official,
        allowed,
        original,
    )


def _served_version(candidate: ResolvedModel, policy: GatePolicy) -> ResolvedModel | None:
    versions = (
        version_at(candidate.name, place, exclude=candidate.version)
        for place in policy.gated_places
    )
    return next((version for version in versions if version is not None), None)


def gate_version(
    candidate: ResolvedModel,
    current: ResolvedModel | None,
    choice: PolicyChoice,
    actor: str | None,
    store: Store | None,
    progress: ProgressCallback,
    is_official: bool = True,
    allowed: Permissions = ALL_PERMISSIONS,
    original: str = "",
) -> GateRun:
    """Judge the candidate against the current version. Log and record the verdict, and
    set tags if `is_official`, for which this user must be a judge of the policy.
    """
    with store_or_default(store) as trail:
        if is_official:
            choice.policy.require_judge(trail.login.user, candidate.name)
        verdict = judge(
            candidate,
            current,
            choice.policy,
            choice.where,
            progress,
            allowed,
            original,
            trail,
        )
        progress("logging the report to MLflow")
        record = VerdictRecord(
            model=verdict.model,
            version=verdict.version,
            state=verdict.state,
            reason=verdict.reason,
            files=verdict.digest,
            policy=choice.where,
            policy_digest=verdict.policy_digest,
            against=verdict.against,
            at=verdict.at.isoformat(timespec="seconds"),
            report_digest=hashlib.sha256(verdict_as_html(verdict).encode()).hexdigest(),
            checks={
                check.name: {"state": check.state, **finite(check.figures)}
                for check in verdict.checks
            },
            actor=actor or trail.user,
            machine=current_actor(),
        )
        logged_run = _log_verdict(verdict, candidate, record.tags)
        done = GateRun(verdict, logged_run, is_official)
        record = record.model_copy(
            update={
                "report": done.report,
                "run_id": done.run.run_id,
            }
        )
        if is_official:
            write_verdict(record, trail)
        else:
            record.record(trail, record.actor, is_tagged=False)
    return done


@contextmanager
def store_or_default(store: Store | None) -> Iterator[Store]:
    if store is not None:
        yield store
        return
    with closing(open_store(load_settings().store_url, find_login=find_login)) as trail:
        yield trail


def _log_verdict(
    verdict: GateVerdict,
    candidate: ResolvedModel,
    verdict_tags: dict[str, str],
) -> LoggedRun:
    """Log the verdict to the run of this MLflow project, or to a new run in the
    experiment of the model's run.
    """

    def experiment_id(client: MlflowClient) -> str:
        try:
            if run_id := candidate.aspects.get("run_id"):
                return str(client.get_run(run_id).info.experiment_id)
            if model_id := candidate.aspects.get("model_id"):
                return str(client.get_logged_model(model_id).experiment_id)
        except MlflowException:
            pass  # The model is from another tracking server, or its run was deleted.
        return get_or_create_experiment(client, f"onnxserve/{candidate.name}")

    def log_content(client: MlflowClient, run_id: str) -> None:
        metrics = [("gate_passed", float(verdict.passed))]
        for check in verdict.checks:
            for name, value in check.figures.items():
                if abs(value) < MAX_FIGURE:  # NaN is excluded too.
                    metrics.append((f"{check.name}/{name}", value))
        log_metrics(client, run_id, candidate.aspects.get("model_id", ""), metrics)
        client.log_text(run_id, verdict_as_html(verdict), tags.GATE_REPORT_FILE)
        client.log_dict(run_id, verdict_as_json(verdict), GATE_JSON_FILE)

    name = f"gate {verdict.model} v{verdict.version}"
    names = {"onnxserve.model": verdict.model, "onnxserve.version": verdict.version}
    # The run has the time, and its own page is the report.
    verdict_tags = {key: value for key, value in verdict_tags.items() if key not in _OF_RUN}
    return log_run("the run of the gate", name, names | verdict_tags, experiment_id, log_content)
