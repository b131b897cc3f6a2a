"""The gate policy of a registered model: its requirements for a version, as a YAML or JSON document with defaults.

    gated_stages: [Production]
    gated_aliases: [champion]
    evaluation: {dataset: "data/holdout.parquet", target: delayed, metric: roc_auc, margin: 0.01}
    robustness: {noise: 0.05, max_flips: 0.1}
    budget: {max_latency_ratio: 1.5}

It is the value of the tag `onnxserve.gate.policy` of the registered model, or a file that a command gets. A model
without a policy is judged by the defaults if a user asks for it, and nothing requires that.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.evaluation import MetricName
from mlflow_deploy_plugin.evaluation.names import REFERENCE, check_strengths
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.registry import registry_client, registry_errors
from mlflow_deploy_plugin.registry.tags import GATE_POLICY_TAG
from mlflow_deploy_plugin.registry.transitions import StageOrAlias
from mlflow_deploy_plugin.runtime import load_yaml

_ARTIFACT = re.compile(r"(runs|models):/[^/]")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _with_target(part: Any) -> Any:
    if part.dataset and not part.target:
        raise ValueError("the dataset needs a target, the column that holds the truth")
    return part


class EvaluationPolicy(_Part):
    """Labelled rows on which the version may not be worse than what is served."""

    dataset: str = Field(
        default="",
        description="A file (.csv, .parquet, .npz), runs:/RUN_ID/PATH of such a file, dataset:/RUN_ID[/NAME] of a "
        "dataset that was logged to MLflow, or `reference`, the sample beside the model. Default: not evaluated.",
    )
    target: str = Field(default="", description="The column of the dataset that holds the truth.")
    metric: MetricName | None = Field(
        default=None, description="What is compared. Default: accuracy for a classifier, rmse for a regressor."
    )
    margin: float = Field(
        default=0.01, ge=0, description="How much worse it may be: in units of the metric; of rmse and mae, as a share."
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="How sure it has to be that it is not worse by more than the margin."
    )
    at_least: float | None = Field(
        default=None, allow_inf_nan=False, description="The worst value the metric may have, whatever is served now."
    )
    resamples: int = Field(default=1000, ge=100, le=100_000, description="Resamples of the paired bootstrap.")
    max_rows: int = Field(default=50_000, ge=20, description="At most so many rows of the dataset, chosen by the seed.")
    min_rows: int = Field(default=100, ge=20, description="Fewer rows with a known target prove nothing.")

    _has_a_target = model_validator(mode="after")(_with_target)


class RobustnessPolicy(_Part):
    """The bounds of how much the predictions may change when the input is disturbed."""

    noise: float = Field(default=0.05, ge=0, description="Noise on each number, as a share of its column's std.")
    missing: float = Field(default=0.1, ge=0, le=1, description="Share of the values that are taken away.")
    out_of_range: float = Field(
        default=2.0, ge=0, description="So many ranges of the column beyond its end are added to a tenth of its values."
    )
    max_flips: float = Field(
        default=0.1, ge=0, le=1, description="Share of the rows whose answer may change under noise."
    )
    max_loss: float = Field(
        default=0.05,
        ge=0,
        description="How much worse the metric may become under noise; needs an evaluation dataset. As the margin, but "
        "of rmse and mae a share of the answers' standard deviation where that is larger than the metric.",
    )
    refusals: Literal["report", "fail"] = Field(
        default="report", description="Whether refusing missing or out-of-range values as a bad request is a failure."
    )
    max_rows: int = Field(default=2_000, ge=20, description="At most so many rows, chosen by the seed.")
    disturbances: dict[str, tuple[float, ...]] = Field(
        default={}, description="Disturbances under which the metric has to hold, each with its strengths."
    )
    max_drop: float = Field(
        default=0.1,
        ge=0,
        description="How much worse the metric may become under each of these disturbances; in units as of `max_loss`.",
    )
    dataset: str = Field(default="", description="Rows with labels for `disturbances`. Default: the evaluation's.")
    target: str = Field(default="", description="The column of `dataset` that holds the truth.")
    metric: MetricName | None = Field(default=None, description="What `max_drop` is of. Default: the evaluation's.")

    @field_validator("disturbances", mode="before")
    @classmethod
    def _with_strengths(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            raise ValueError("a mapping of disturbances to strengths is expected, as {noise: 0.1, missing: [0.1, 0.2]}")
        try:
            return check_strengths({str(name): [] if one is None else one for name, one in given.items()})
        except InvalidConfig as error:
            raise ValueError(error.message) from None

    _has_a_target = model_validator(mode="after")(_with_target)


class BudgetPolicy(_Part):
    """The bounds of time and memory, compared with the current version on this machine."""

    max_latency_ratio: float | None = Field(
        default=2.0, gt=0, description="Largest median time of a row, and of a batch, in terms of what is served."
    )
    max_memory_ratio: float | None = Field(
        default=2.0, gt=0, description="Largest memory of the loaded model, in terms of what is served."
    )
    max_p99_ms: float | None = Field(default=None, gt=0, description="Largest 99th percentile of a row's time.")
    max_memory_mb: float | None = Field(default=None, gt=0, description="Largest memory of the loaded model.")
    ignore_below_ms: float = Field(
        default=1.0, ge=0, description="A ratio counts only where the time has grown by more than so many milliseconds."
    )
    ignore_below_mb: float = Field(
        default=32.0, ge=0, description="A ratio counts only where the memory has grown by more than so many megabytes."
    )
    batch: int = Field(default=64, ge=2, le=65536, description="Rows of the batch that is timed.")


class GatePolicy(_Part):
    """The requirements for a version to be promoted."""

    gated_stages: tuple[Literal["Staging", "Production", "Archived"], ...] = Field(
        default=("Production",), description="Stages into which only a passed version may move."
    )
    gated_aliases: tuple[str, ...] = Field(default=(), description="Aliases that only a passed version may carry.")
    parity: Literal["proven", "warned", "any"] = Field(
        default="proven", description="The least that has to be known of the ONNX form against the original."
    )
    evaluation: EvaluationPolicy = EvaluationPolicy()
    robustness: RobustnessPolicy = RobustnessPolicy()
    budget: BudgetPolicy = BudgetPolicy()
    skip: tuple[Literal["signature", "evaluation", "robustness", "budget"], ...] = Field(
        default=(), description="Checks that are not run."
    )
    seed: int = Field(default=7, ge=0, description="Chooses rows, noise and resamples.")
    fresh_hours: float = Field(
        default=24.0,
        gt=0,
        le=87_600,
        description="For so long a passed verdict against the same version is taken by `promote`.",
    )

    @field_validator("gated_aliases")
    @classmethod
    def _bare(cls, aliases: tuple[str, ...]) -> tuple[str, ...]:
        """Accept `@champion` for `champion`, which would otherwise gate nothing."""
        return tuple(alias.removeprefix("@") for alias in aliases)

    def gates(self, place: StageOrAlias) -> bool:
        return str(place).lower() in {str(gated).lower() for gated in self.gated_places}

    @model_validator(mode="after")
    def _has_labels(self) -> "GatePolicy":
        if self.robustness.disturbances and not (self.robustness.dataset or self.evaluation.dataset):
            raise ValueError("robustness.disturbances need labelled rows: robustness.dataset, or evaluation.dataset")
        return self

    @property
    def gated_places(self) -> list[StageOrAlias]:
        return [
            *(StageOrAlias(stage=stage) for stage in self.gated_stages),
            *(StageOrAlias(alias=alias) for alias in self.gated_aliases),
        ]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PolicyChoice:
    """The policy that a version is judged by; `where` is its origin, for the reader.

    `is_models_own` is true for the registered model's own policy, or the defaults if it has none. The verdict by
    another policy, which a user tries out, is not written on the version.
    """

    policy: GatePolicy
    where: str
    is_models_own: bool


def choose_policy(model: str, file: Path | None = None) -> PolicyChoice:
    """Return the policy of a file, of the registered model's tag, or otherwise the defaults.

    A file counts as the model's own policy if the model has none, or the same one. Raises NotFound if there is no such
    model, InvalidConfig if the file or the tag is not a policy, and RegistryUnavailable if MLflow does not answer.
    """
    with registry_errors(f"model {model}"):
        tags = registry_client().get_registered_model(model).tags
    own = policy_from_tags(model, tags)
    if file is not None:
        try:
            given = parse_policy(file.read_text(), f"the policy {file}")
        except FileNotFoundError:
            raise InvalidConfig(f"the policy {file} does not exist") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"the policy {file} cannot be read: {error}") from None
        return PolicyChoice(given, str(file), own is None or own.digest == given.digest)
    if own is not None:
        return PolicyChoice(own, f"tag {GATE_POLICY_TAG} of model {model}", True)
    return PolicyChoice(GatePolicy(), "the defaults", True)


def parse_policy(text: str, where: str) -> GatePolicy:
    """Parse a YAML or JSON document called `where`; raise InvalidConfig with the field if it is not a policy."""
    try:
        document = load_yaml(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date, a number too long
        raise InvalidConfig(f"{where} is not YAML: {one_line(error)}") from None
    if not isinstance(document, dict):
        raise InvalidConfig(f"{where} is not a mapping; its fields are {', '.join(GatePolicy.model_fields)}")
    try:
        return GatePolicy.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        known = f"; the fields are {', '.join(GatePolicy.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise InvalidConfig(f"{where}: {field + ': ' if field else ''}{first['msg']}{known}") from None


def policy_from_tags(model: str, tags: dict[str, str]) -> GatePolicy | None:
    """Return the policy among the tags of a registered model; raises InvalidConfig if the tag holds none."""
    text = tags.get(GATE_POLICY_TAG)
    return None if text is None else parse_policy(text, f"the tag {GATE_POLICY_TAG} of model {model}")


def require_mlflow_artifact(dataset: str) -> None:
    """Raise InvalidConfig for a dataset that is not an artifact which MLflow gives to any client."""
    if dataset in ("", REFERENCE) or _ARTIFACT.match(dataset):
        return
    raise InvalidConfig(
        f"the policy's dataset {dataset} may not be read here, where only artifacts of MLflow are "
        "(runs:/RUN_ID/PATH, models:/NAME/VERSION/PATH, or `reference`): `onnxserve gate MODEL VERSION` reads any file"
    )


@dataclass(frozen=True)
class Permissions:
    """The permissions of a process that judges a version, which are limited in a server that judges for its clients.

    Attributes:
        code: load versions without an ONNX form, which runs their own code.
        files: read the policy's dataset from a file of this machine or any address that it reaches. Otherwise the
            dataset has to be an artifact that MLflow gives to any client.
    """

    code: bool = True
    files: bool = True


ALL_PERMISSIONS = Permissions()
