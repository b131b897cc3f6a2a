"""The gate policy of a registered model: its requirements for a version, as a YAML or
JSON document with defaults.

    gated_aliases: [champion] gated_stages: [Production] evaluation: {dataset:
    "data/holdout.parquet", target: delayed, metric: roc_auc, margin: 0.01} robustness:
    {noise: 0.05, max_flips: 0.1} budget: {max_latency_ratio: 1.5}

The policy is the value of the tag `onnxserve.gate.policy` of the registered model, or a
file that is passed to a command. A model without a policy is not gated; on request, it
is judged with the default policy.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError, ScopeMissing
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.core.registry.transitions import StageOrAlias
from mlflow_deploy_plugin.core.spec.document import field_problem
from mlflow_deploy_plugin.core.spec.evaluation_names import REFERENCE, MetricName, check_strengths
from mlflow_deploy_plugin.core.spec.types import Count, Duration, Share, SpecPart
from mlflow_deploy_plugin.core.store.people import name_key
from mlflow_deploy_plugin.core.text_files import read_text
from mlflow_deploy_plugin.core.yaml_text import load_yaml

_ARTIFACT = re.compile(r"(runs|models):/[^/]")


def _with_target(part: Any) -> Any:
    if part.dataset and not part.target:
        raise ValueError("the dataset needs a target, which is its label column")
    return part


class EvaluationPolicy(SpecPart):
    """The labelled rows on which the version must not be worse than the served
    version.
    """

    dataset: str = ""
    """A file (.csv, .parquet, .npz), a logged file (runs:/RUN_ID/PATH), a dataset
    logged to MLflow (dataset:/RUN_ID[/NAME]), or `reference`, the sample stored with
    the model. Default: not evaluated.
    """
    target: str = ""
    """The label column of the dataset."""
    metric: MetricName | None = None
    """The metric to compare. Default: accuracy for a classifier, rmse for a regressor.
    """
    margin: NonNegativeFloat = 0.01
    """The largest loss of the metric, in its unit; for rmse and mae, as a share."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """The confidence required that the loss is not above the margin."""
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    """The worst allowed value, regardless of the served version."""
    resamples: int = Field(default=1000, ge=100, le=100_000)
    """Number of resamples of the paired bootstrap."""
    max_rows: int = Field(default=50_000, ge=20)
    """The maximum number of rows, chosen by the seed."""
    min_rows: int = Field(default=100, ge=20)
    """The minimum number of rows with a known target."""

    _has_a_target = model_validator(mode="after")(_with_target)


class RobustnessPolicy(SpecPart):
    """The largest allowed changes of the predictions when the input is disturbed."""

    noise: NonNegativeFloat = 0.05
    """The noise on each number, as a share of its column's std."""
    missing: Share = 0.1
    """The share of values that are removed."""
    out_of_range: NonNegativeFloat = 2.0
    """A tenth of the values move beyond the column's range by this multiple of it."""
    max_flips: Share = 0.1
    """The largest share of rows whose prediction may change under noise."""
    max_loss: NonNegativeFloat = 0.05
    """The largest loss of the metric under noise; needs an evaluation dataset. The unit
    is the unit of `margin`. For rmse and mae, the share is relative to the larger of
    the metric and the predictions' std.
    """
    refusals: Literal["report", "fail"] = "report"
    """`fail` if refusing missing or out-of-range values as a bad request is a failure.
    """
    max_rows: int = Field(default=2_000, ge=20)
    """The maximum number of rows, chosen by the seed."""
    disturbances: dict[str, tuple[float, ...]] = Field(default={})
    """The disturbances for `max_drop`, each with its strengths."""
    max_drop: NonNegativeFloat = 0.1
    """The largest loss of the metric under each of `disturbances`, in the unit of
    `max_loss`.
    """
    dataset: str = ""
    """Labelled rows for `disturbances`. Default: the evaluation dataset."""
    target: str = ""
    """The label column of `dataset`."""
    metric: MetricName | None = None
    """The metric of `max_drop`. Default: of the evaluation."""

    @field_validator("disturbances", mode="before")
    @classmethod
    def _with_strengths(cls, strengths: object) -> object:
        """Return the strengths of each disturbance, also of one without a value or with
        a single value. Raise ValueError for an unknown disturbance or a bad strength.
        """
        if not isinstance(strengths, Mapping):
            raise ValueError(
                "a mapping of disturbances to strengths is expected, as {noise: 0.1, missing: "
                "[0.1, 0.2]}",
            )
        # A disturbance without a value has no strengths.
        lists = {str(name): value for name, value in strengths.items()}
        lists |= {name: [] for name, value in lists.items() if value is None}
        try:
            return check_strengths(lists)
        except OnnxserveError as error:
            raise ValueError(error.message) from None

    _has_a_target = model_validator(mode="after")(_with_target)


class BudgetPolicy(SpecPart):
    """The limits of a version's time and memory relative to the current version on this
    machine.
    """

    max_latency_ratio: PositiveFloat | None = 2.0
    """The largest median time of a row or batch, relative to the served version."""
    max_memory_ratio: PositiveFloat | None = 2.0
    """The largest memory of the loaded model, relative to the served version."""
    max_p99_ms: PositiveFloat | None = None
    """The largest 99th percentile of a row's time."""
    max_memory_mb: PositiveFloat | None = None
    """The largest memory of the loaded model."""
    ignore_below_ms: NonNegativeFloat = 1.0
    """A ratio is ignored if the time grows by at most this many milliseconds."""
    ignore_below_mb: NonNegativeFloat = 32.0
    """A ratio is ignored if the memory grows by at most this many megabytes."""
    batch: int = Field(default=64, ge=2, le=65536)
    """The number of rows in the timed batch."""


class BacktestPolicy(SpecPart):
    """The captured requests on which the version must answer like the served
    versions.
    """

    endpoint: str = ""
    """The endpoint of the requests. Default: no back-test."""
    window: Duration = "7d"
    """The requests that were received in this time before the gate."""
    max_disagreement: Share | None = None
    """The largest share of rows with another answer than the captured answer."""
    max_refusals: Share = 0.0
    """The largest share of rows that are refused."""
    min_rows: Count = 100
    """With fewer captured rows, the check is skipped."""
    max_rows: Count = 100_000
    """The maximum number of rows, chosen by their hash."""


class ApprovalPolicy(SpecPart):
    """The people who must approve a version before it may enter a gated stage or
    alias.
    """

    count: int = Field(default=1, ge=1, le=20)
    """The number of people who must approve."""
    groups: tuple[str, ...] = ()
    """Approvers must be in one of these groups. Default: people who may edit the model.
    """
    not_author: bool = True
    """True if neither the requester nor the person who registered the version may
    approve.
    """
    evaluation: Literal["required", "optional"] = "required"
    """`optional` if people may approve a version that passed the gate without an
    evaluation.
    """
    valid_for: Duration = "72h"
    """The time after which an approval expires, e.g. `72h`."""


class UnapprovedPolicy(SpecPart):
    """The requests that versions without the required approvals may answer, for example
    in a rollout.
    """

    model_config = ConfigDict(populate_by_name=True)

    share: Annotated[float, BeforeValidator(lambda share: str(share).removesuffix("%"))] = Field(
        gt=0, le=100
    )
    """The largest share of an endpoint's requests, in percent, e.g. `5%`."""
    length: Duration = Field(alias="for")
    """The longest time since the first request that the version has answered, e.g.
    `1h`.
    """


class GatePolicy(SpecPart):
    """The requirements for the promotion of a version."""

    gated_aliases: tuple[str, ...] = ("champion",)
    """Aliases that require a passed gate."""
    gated_stages: tuple[Literal["Staging", "Production", "Archived"], ...] = ("Production",)
    """Stages that require a passed gate."""
    parity: Literal["proven", "warned", "any"] = "proven"
    """The lowest accepted parity state of the ONNX form with the original."""
    evaluation: EvaluationPolicy = EvaluationPolicy()
    robustness: RobustnessPolicy = RobustnessPolicy()
    budget: BudgetPolicy = BudgetPolicy()
    backtest: BacktestPolicy = BacktestPolicy()
    skip: tuple[Literal["signature", "evaluation", "robustness", "budget", "backtest"], ...] = ()
    """Checks to skip."""
    signer: str = ""
    """The public key or the certificates of authorities, as PEM text, that must have
    signed the version. Default: no signature is required.
    """
    seed: NonNegativeInt = 7
    """The seed of rows, noise and resamples."""
    fresh_hours: float = Field(default=24.0, gt=0, le=87_600)
    """The number of hours for which `promote` reuses a passed verdict against the same
    version.
    """
    judges: tuple[str, ...] = ()
    """The accounts whose verdicts count, and that may force a promotion. Default: all
    accounts that may edit the model.
    """
    approvals: ApprovalPolicy | None = None
    """The required approvals. Default: none."""
    unapproved: UnapprovedPolicy | None = None
    """The requests that versions without the approvals may answer. Default: none."""
    witnessed: NonNegativeInt = 0
    """The number of witnesses that must cosign a promotion before it is made."""
    steps: tuple[str, ...] = ()
    """The SHA-256 of each file of steps that endpoints with `gate=passed` may use
    around versions.
    """

    @field_validator("gated_aliases")
    @classmethod
    def _bare(cls, aliases: tuple[str, ...]) -> tuple[str, ...]:
        """Accept `@champion` for `champion`."""
        return tuple(alias.removeprefix("@") for alias in aliases)

    def gates(self, place: StageOrAlias | str) -> bool:
        return name_key(str(place)) in {name_key(str(gated)) for gated in self.gated_places}

    def approvals_for(self, place: StageOrAlias | str) -> ApprovalPolicy | None:
        return self.approvals if self.gates(place) else None

    def require_judge(self, account: str, model: str) -> None:
        """Raise ScopeMissing if the verdicts of this account of MLflow's login do not
        count. `account` is empty for an anonymous caller.

        The names are compared exactly, because similar names may be two accounts.
        """
        if self.judges and account not in self.judges:
            raise ScopeMissing(
                f"{account or 'an anonymous caller'} may not judge or force versions of {model}: "
                f"only the verdicts of {join_names(self.judges)} count (`judges` in the gate "
                "policy); ask them to run `onnxserve gate`"
            )

    def required_approvals(self, model: str, place: StageOrAlias | str) -> ApprovalPolicy:
        """Return the approvals that a promotion to `place` requires. Raises
        InvalidConfig if it requires none.
        """
        if (approvals := self.approvals_for(place)) is None:
            raise InvalidConfig(f"the policy of {model} requires no approvals for {place}")
        return approvals

    @model_validator(mode="after")
    def _has_labels(self) -> "GatePolicy":
        """Raise ValueError if the disturbances have no labelled rows."""
        if self.robustness.disturbances and not (
            self.robustness.dataset or self.evaluation.dataset
        ):
            raise ValueError(
                "robustness.disturbances need labelled rows: set robustness.dataset or "
                "evaluation.dataset",
            )
        return self

    @property
    def gated_places(self) -> list[StageOrAlias]:
        return [
            *(StageOrAlias(alias=alias) for alias in self.gated_aliases),
            *(StageOrAlias(stage=stage) for stage in self.gated_stages),
        ]

    @property
    def digest(self) -> str:
        """The digest of the requirements for a promotion, 16 hexadecimal digits.

        `unapproved`, which concerns endpoints, is left out. The default of a field that
        a later release has added is left out too, so that the digest of an older policy
        stays the same.
        """
        omitted: dict[str, bool | set[str]] = {"unapproved": True}
        if self.approvals is None or self.approvals.evaluation == "required":
            omitted["approvals"] = {"evaluation"}
        for name in ("signer", "judges", "witnessed", "steps"):
            if not getattr(self, name):
                omitted[name] = True
        return hashlib.sha256(self.model_dump_json(exclude=omitted).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PolicyChoice:
    """The policy of a verdict. `where` describes the origin of the policy.

    `is_models_own` is True for the policy of the registered model, or for the defaults
    if the model has no policy. A verdict with any other policy is a trial and is not
    stored in the tags of the version.
    """

    policy: GatePolicy
    where: str
    is_models_own: bool


def choose_policy(model: str, file: Path | None = None) -> PolicyChoice:
    """Return the policy in `file`, otherwise in the registered model's tag, otherwise
    the default policy.

    A file counts as the model's own policy if the model has no policy or an equal
    policy. Raises NotFound if the model does not exist, InvalidConfig if the file or
    the tag is not a policy, and RegistryUnavailable if MLflow fails.
    """
    with registry_errors(f"model {model}"):
        tags = registry_client().get_registered_model(model).tags
    tagged = policy_from_tags(model, tags)
    if file is not None:
        policy = parse_policy(read_text(file, "the policy"), f"the policy {file}")
        return PolicyChoice(policy, str(file), tagged is None or tagged.digest == policy.digest)
    if tagged is not None:
        return PolicyChoice(tagged, f"tag {GATE_POLICY_TAG} of model {model}", True)
    return PolicyChoice(GatePolicy(), "the defaults", True)


def parse_policy(text: str, where: str) -> GatePolicy:
    """Parse a YAML or JSON document. If it is not a policy, raise InvalidConfig with
    `where` and the field.
    """
    try:
        document = load_yaml(text)
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # yaml raises ValueError for an invalid date or too long number.
        raise InvalidConfig(f"{where} is not YAML: {one_line(error)}") from None
    if not isinstance(document, dict):
        raise InvalidConfig(
            f"{where} is not a mapping; a policy has the fields "
            f"{', '.join(GatePolicy.model_fields)}",
        )
    try:
        return GatePolicy.model_validate(document)
    except ValidationError as error:
        fields = [*GatePolicy.model_fields]
        for part, default in GatePolicy(approvals=ApprovalPolicy()):
            if isinstance(default, SpecPart):
                fields += [f"{part}.{name}" for name in type(default).model_fields]
        raise InvalidConfig(f"{where}: {field_problem(error, fields)}") from None


def policy_from_tags(model: str, tags: dict[str, str]) -> GatePolicy | None:
    """Return the policy in the tags of a registered model, or None. Raises
    InvalidConfig if the tag is not a policy.
    """
    text = tags.get(GATE_POLICY_TAG)
    if text is None:
        return None
    return parse_policy(text, f"the tag {GATE_POLICY_TAG} of model {model}")


def require_mlflow_data(policy: GatePolicy) -> None:
    """Raise InvalidConfig if a check reads data that is not an artifact that MLflow
    serves to its clients.
    """
    evaluated = policy.evaluation.dataset
    robustness = policy.robustness
    endpoint = policy.backtest.endpoint
    disturbed = robustness.dataset
    if not disturbed and robustness.disturbances:
        disturbed = evaluated
    captured = f"of requests to {endpoint}" if endpoint else ""
    datasets = {"evaluation": evaluated, "robustness": disturbed, "backtest": captured}
    for name, dataset in datasets.items():
        if name in policy.skip or dataset in ("", REFERENCE) or _ARTIFACT.match(dataset):
            continue
        raise InvalidConfig(
            f"the policy's dataset {dataset} may not be read here. Allowed are artifacts of "
            "MLflow (runs:/RUN_ID/PATH, models:/NAME/VERSION/PATH) and `reference`. `onnxserve "
            "gate MODEL` reads any data",
        )


@dataclass(frozen=True)
class Permissions:
    """The permissions of a process that judges a version. With `code`, it may load
    versions without an ONNX form, which runs their code. With `files`, it may read the
    inference log, and datasets that are not artifacts of MLflow.
    """

    code: bool = True
    files: bool = True


ALL_PERMISSIONS = Permissions()
