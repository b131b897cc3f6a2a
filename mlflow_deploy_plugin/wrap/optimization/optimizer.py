"""Create a smaller or faster form of a version, compare it with the version, and
register it if its loss is small.
"""

import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from mlflow.exceptions import MlflowException
from onnx import ModelProto

from mlflow_deploy_plugin.core.errors import (
    ConversionError,
    DeadlineExceeded,
    InvalidConfig,
    OnnxserveError,
    ParityError,
)
from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.processes.memory import limit_growth
from mlflow_deploy_plugin.core.processes.worker import ProcessCrashed, Worker
from mlflow_deploy_plugin.core.registry import tags
from mlflow_deploy_plugin.core.registry.connection import registry_client, registry_errors
from mlflow_deploy_plugin.core.registry.policy import choose_policy
from mlflow_deploy_plugin.core.registry.resolution import (
    PARITY_TAG,
    ResolvedModel,
    check_new_name,
    resolve,
)
from mlflow_deploy_plugin.core.registry.runs import (
    get_or_create_experiment,
    log_flavor,
    log_metrics,
)
from mlflow_deploy_plugin.core.spec.evaluation_names import MetricName
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, row_count, slice_feeds
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.evaluation.agreement import (
    FormAgreement,
    compare_with_base,
    graph_digest,
)
from mlflow_deploy_plugin.wrap.evaluation.dataset import (
    NamedArrays,
    load_dataset,
    load_rows,
    reference_rows,
    take_rows,
)
from mlflow_deploy_plugin.wrap.evaluation.model import LoadedOnnx, downloaded_version
from mlflow_deploy_plugin.wrap.optimization import forms, saved_form
from mlflow_deploy_plugin.wrap.optimization.measure import (
    FormCost,
    load_onnx,
    measure_forms,
    try_out,
)

MIN_ROWS = 100
"""The minimum number of rows to measure a loss of 1 %."""
MAX_ROWS = 10_000
CALIBRATION_ROWS = 500
_PART = 100
_TRIAL_SECONDS = 300.0
_SEED = 7
_LINEAGE = (tags.PARENT_TAG, tags.TRAINING_TAG, tags.DATA_DIGEST_TAG)


@dataclass(frozen=True)
class MeasuredForm:
    """A form that was compared with its base. For the base, `agreement` is None."""

    name: str
    cost: FormCost
    agreement: FormAgreement | None = None
    note: str = ""


@dataclass(frozen=True)
class Optimization:
    """The result of `optimize`.

    Attributes:
        forms: the base, and the form if it can be created.
        impossible: the reason why the form cannot be created, by form name.
        chosen: the registered form; if no form was registered, this is empty and
            `reason` is set.
        is_refused: True if the requested form loses too much or cannot be created.
        model: the registered model.
        version: the registered version.
    """

    base: str
    forms: tuple[MeasuredForm, ...]
    impossible: Mapping[str, str]
    max_loss: float
    chosen: str = ""
    reason: str = ""
    is_refused: bool = False
    model: str = ""
    version: str = ""

    def raise_if_refused(self) -> None:
        """Raise ConversionError for a form that cannot be created, and ParityError for
        a form that loses too much.
        """
        if self.is_refused:
            error = ConversionError if self.impossible else ParityError
            raise error(self.reason)


def optimize(
    model_uri: str,
    *,
    int8: forms.Int8 | None = None,
    fp16: bool = False,
    data: str = "",
    target: str = "",
    metric: MetricName | None = None,
    max_loss: float = 0.01,
    register: str | None = None,
    raises: bool = True,
    progress: ProgressCallback = lambda line: None,
) -> Optimization:
    """Create a smaller or faster form of a version, measure its loss, and register it
    as a version with its lineage.

    Args:
        model_uri: a version with an ONNX form, for example models:/digits-cnn/1.
        int8: "dynamic" or "static" (see `forms`).
        fp16: True for 16-bit floats, and 32-bit floats where 16-bit floats would
            overflow.
        data: rows for calibration and comparison, in the form of a gate policy's
            dataset; default: the dataset of the model's gate policy, otherwise the
            model's reference. One half is for calibration (at most 500 rows), the other
            half is for measurement.
        target: the label column.
        metric: the metric for labelled rows; default: accuracy, or rmse for numbers.
        max_loss: the maximum loss. With labels, it is in the unit of the metric, or
            relative for rmse and mae. Without labels, it is the share of labels that
            differ, or the mean difference relative to the predictions' spread.
        register: the name of the registered model; default: the name of the base.
        raises: False to return a form that is refused, with its figures, instead of
            raising the first two errors.
        progress: a function that receives one line per step.

    Raises:
        ParityError: the form loses more than `max_loss`.
        ConversionError: the form cannot be created.
        InvalidConfig: an argument is invalid, or there are too few rows.
        OnnxserveError: the version does not exist, or cannot be read.
    """
    if int8 not in (None, "dynamic", "static"):
        raise InvalidConfig(f"int8: {int8!r} is neither dynamic nor static")
    if int8 and fp16:
        raise InvalidConfig("int8 and fp16 cannot be combined: a weight has either 8 or 16 bits")
    if not (int8 or fp16):
        raise InvalidConfig("set a form: int8 (dynamic or static) or fp16")
    form = f"int8 {int8}" if int8 else "fp16"
    if not max_loss >= 0:
        raise InvalidConfig(f"max_loss: {max_loss:g} is below 0")
    check_new_name(register or "")
    resolved = resolve(model_uri)
    is_registered = resolved.source == f"models:/{resolved.name}/{resolved.version}"
    if not register and not (is_registered and resolved.name):
        raise InvalidConfig(
            f"{model_uri} is not a registered version: set the name of the form (register)"
        )
    name = register or resolved.name
    progress(f"fetching {resolved.source}")
    with downloaded_version(resolved) as folder, temporary_folder("onnxserve-optimize-") as drafts:
        base = load_onnx(folder, resolved)
        if base.artifact.optimization:
            first = base.artifact.optimization.get("base")
            raise InvalidConfig(
                f"{resolved.source} is already an optimized form of {first}: optimize {first} "
                "instead"
            )
        if not data and is_registered:
            policy = choose_policy(resolved.name).policy.evaluation
            data = policy.dataset
            target = target or policy.target
            metric = metric or policy.metric
        halves = _read_halves(base, data, target)
        progress(f"creating {form}")
        created = _FormMaker(base, halves, metric, drafts).make(form)
        if isinstance(created, ConversionError):
            progress("measuring the base")
        else:
            progress(f"measuring {form} and the base")
        done = _measured(resolved.source, folder, form, created, halves.evaluation.rows, max_loss)
        if raises:
            done.raise_if_refused()
        if isinstance(created, ConversionError) or done.is_refused:
            return done
        progress(f"registering {form} as a version of {name}")
        done = replace(done, chosen=form, model=name)
        return replace(done, version=_log_form(base, resolved, created, done))


class _Half(NamedTuple):
    """Half of the rows, and their labels if they are known."""

    rows: NamedArrays
    truth: Array | None


class _Halves(NamedTuple):
    """The rows for calibration, and the rows for measurement."""

    calibration: _Half
    evaluation: _Half


def _read_halves(base: LoadedOnnx, data: str, target: str) -> _Halves:
    """Return the rows for calibration and for measurement: the rows of `data` with the
    label column `target`, or without data those of the reference. Raises InvalidConfig
    if there are too few rows, and for a target without data.
    """
    if target and not data:
        raise InvalidConfig(
            "target: set data that contains the label column; a model's reference has no labels"
        )
    truth = None
    if target:
        labelled = load_dataset(data, target, base.artifact, _SEED, 2 * MAX_ROWS)
        rows = labelled.rows
        truth = labelled.truth
    else:
        loaded = None
        if data:
            loaded = load_rows(data, base.artifact, 2 * MAX_ROWS, _SEED)
        rows = loaded or reference_rows(base.artifact, 2 * MAX_ROWS, _SEED) or {}
    total = row_count(rows)
    if total < MIN_ROWS:
        where = data or "the model's reference"
        raise InvalidConfig(
            f"{where} has {total} rows, which are too few to measure a loss; use data with at "
            f"least {MIN_ROWS}"
        )
    order = np.random.default_rng(_SEED).permutation(total)
    halves = []
    for positions in (order[: total // 2], order[total // 2 :]):
        labels = None if truth is None else truth[positions]
        halves.append(_Half(take_rows(rows, positions), labels))
    return _Halves(*halves)


class _Draft(NamedTuple):
    """A created form, its folder, and its comparison with the base."""

    graph: ModelProto
    folder: Path
    agreement: FormAgreement
    note: str


def _measured(
    source: str,
    folder: Path,
    form: str,
    created: _Draft | ConversionError,
    rows: NamedArrays,
    max_loss: float,
) -> Optimization:
    """Return the outcome with the cost of the base and of the created form, and with
    the reason if the form is refused.

    Args:
        source: the URI of the base.
        folder: the folder of the base.
        form: the name of the form.
        created: the form, or the reason why it cannot be created.
        rows: the rows of the requests, [N, …] by name.
        max_loss: the maximum loss.
    """
    if isinstance(created, ConversionError):
        [base_cost] = measure_forms([folder], rows)
        return Optimization(
            source,
            (MeasuredForm("base", base_cost),),
            {form: created.message},
            max_loss,
            reason=f"the form {form} of {source} cannot be created: {created.message}",
            is_refused=True,
        )
    base_cost, cost = measure_forms([folder, created.folder], rows)
    agreement = created.agreement
    measured = MeasuredForm(form, cost, agreement, created.note)
    done = Optimization(source, (MeasuredForm("base", base_cost), measured), {}, max_loss)
    if agreement.loss <= max_loss:
        return done
    loss = f"{form} loses {agreement.loss:.4g} ({agreement.loss_of})"
    reason = f"{loss}, more than the limit of {max_loss:g}: {agreement}"
    return replace(done, is_refused=True, reason=reason)


@dataclass(eq=False)
class _FormMaker:
    """A factory that creates forms of a base in subfolders of `drafts`, and compares
    them with the base.

    Each form is first run in the process `trial`, because ONNX Runtime may crash on a
    graph from its converters.
    """

    base: LoadedOnnx
    halves: _Halves
    metric: MetricName | None
    drafts: Path
    trial: Worker = field(default_factory=partial(Worker, limit_growth, stderr=subprocess.DEVNULL))

    @cached_property
    def answers(self) -> dict[str, Array]:
        return self.base.outputs(self.halves.evaluation.rows)

    @cached_property
    def feeds(self) -> list[Feeds]:
        rows = take_rows(self.halves.calibration.rows, slice(0, CALIBRATION_ROWS))
        feeds = self.base.feeds(rows)
        count = row_count(rows)
        parts = [
            slice_feeds(feeds, slice(start, start + _PART)) for start in range(0, count, _PART)
        ]
        return [self.base.model.graph_feeds(part) for part in parts]

    def make(self, form: str) -> _Draft | ConversionError:
        """Create a form, and compare it with the base. Return the error of a form that
        cannot be created or loaded.
        """
        graph = onnx.load(str(self.base.artifact.onnx_file))
        try:
            match form:
                case "fp16":
                    return self.draft(forms.half_precision(graph, self.feeds), form)
                case "int8 dynamic":
                    return self.draft(forms.int8_dynamic(graph), form)
                case _:
                    scales = "one scale per channel"
                    try:
                        return self.draft(forms.int8_static(graph, self.feeds), form, scales)
                    except ConversionError:  # Some Gemms have no scales per channel.
                        quantized = forms.int8_static(graph, self.feeds, per_channel=False)
                        return self.draft(quantized, f"{form}, per tensor", "one scale per tensor")
        except ConversionError as error:
            return error
        finally:
            self.trial.end()

    def draft(self, graph: ModelProto, name: str, note: str = "") -> _Draft:
        """Save the form in a subfolder, run it in the trial process, and compare it
        with the base. Raises ConversionError if the form cannot run.
        """
        folder = self.drafts / name
        saved_form.save_model(folder, base=self.base.artifact.folder, graph=graph)
        try:
            self.trial.call(try_out, folder, seconds=_TRIAL_SECONDS)
        except (DeadlineExceeded, ProcessCrashed) as error:
            raise ConversionError(f"ONNX Runtime cannot run the form: {error.message}") from None
        except OnnxserveError as error:
            raise ConversionError(
                f"ONNX Runtime cannot run its converted graph ({forms.shown_operators(graph)}): "
                "the converters are for neural networks. Serve the version without optimization, "
                "or try its other forms"
            ) from error
        form = LoadedOnnx(OnnxModel.load(folder))
        agreement = compare_with_base(
            self.base, form, *self.halves.evaluation, self.metric, self.answers
        )
        return _Draft(graph, folder, agreement, note)


def _log_form(base: LoadedOnnx, resolved: ResolvedModel, draft: _Draft, done: Optimization) -> str:
    """Log the form to the run of its base, and return the new version. Raises
    RegistryUnavailable if this fails.

    Args:
        base: the loaded base.
        resolved: the version of the base.
        draft: the form.
        done: the outcome with the measured forms and the name of the registered model.
    """
    client = registry_client()
    figures = _logged_figures(done)
    record = {
        "base": resolved.source,
        "base_digest": graph_digest(base),
        "form": done.chosen,
        "note": draft.note,
        "loss_of": draft.agreement.loss_of,
        **figures,
    }
    state = "warned" if base.artifact.parity_state != "no-original" else "no-original"
    with registry_errors(f"the form of {resolved.source}"):
        run_id = resolved.aspects.get("run_id", "")
        has_run = False
        if run_id:
            with suppress(MlflowException):  # The run may be deleted, or on another server.
                has_run = client.get_run(run_id).info.lifecycle_stage == "active"
        if not has_run:
            run = client.create_run(
                get_or_create_experiment(client, f"onnxserve/{resolved.name}"),
                run_name=f"optimize {resolved.name}",
            )
            run_id = str(run.info.run_id)
        form_tags = {}
        if resolved.version.isdigit():
            base_tags = client.get_model_version(resolved.name, resolved.version).tags
            form_tags = {key: base_tags[key] for key in _LINEAGE if key in base_tags}
        form_tags |= {
            tags.OPTIMIZED_FROM_TAG: resolved.source,
            tags.OPTIMIZED_WITH_TAG: done.chosen,
            PARITY_TAG: state,
        }
        info = log_flavor(
            saved_form,
            "model",
            run_id=run_id,
            registered_model_name=done.model,
            tags=form_tags,
            base=base.artifact.folder,
            graph=draft.graph,
            record=record,
            parity={
                "state": state,
                "rows": draft.agreement.rows,
                "problem": f"this is a form of {resolved.source}, {done.chosen}: {draft.agreement}",
            },
        )
        log_metrics(
            client,
            run_id,
            info.model_id,
            [(f"onnxserve.optimize.{key}", value) for key, value in figures.items()],
        )
        if not has_run:
            client.set_terminated(run_id, "FINISHED")
    return str(info.registered_model_version)


def _logged_figures(done: Optimization) -> dict[str, float]:
    """Return the loss of the form, and its size and duration relative to the base."""
    base, form = done.forms
    assert form.agreement is not None
    ratios = {f"rows_{rows}_ratio": ratio for rows, ratio in form.cost.ratio.items()}
    size_ratio = form.cost.size / base.cost.size
    return {"loss": form.agreement.loss, "size_ratio": size_ratio, **ratios}
