"""Create smaller or faster forms of a version, compare them with the version, and
register a form with a small loss.
"""

import subprocess
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from onnx import ModelProto

from mlflow_deploy_plugin.core.errors import (
    ConversionError,
    DeadlineExceeded,
    InvalidConfig,
    OnnxserveError,
    ParityError,
    Refused,
)
from mlflow_deploy_plugin.core.logs import ProgressCallback
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
from mlflow_deploy_plugin.wrap.evaluation.adversarial import torch_original
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
    SIZES,
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
_MISSED_SHARE = 0.05
"""The difference between the share of zeros and the requested share above which a note
gives the share of zeros.
"""
_LINEAGE = (tags.PARENT_TAG, tags.TRAINING_TAG, tags.DATA_DIGEST_TAG)


@dataclass(frozen=True)
class Recipe:
    """The changes that create a form. Pruning precedes the conversion to 8 or 16
    bits.
    """

    int8: forms.Int8 | None = None
    fp16: bool = False
    prune: float | None = None

    def __post_init__(self) -> None:
        """Raise InvalidConfig for an empty recipe, for both int8 and fp16, or for a
        share outside 0 to 1.
        """
        if self.int8 not in (None, "dynamic", "static"):
            raise InvalidConfig(f"int8: {self.int8!r} is neither dynamic nor static")
        if self.int8 and self.fp16:
            raise InvalidConfig(
                "int8 and fp16 cannot be combined: a weight has either 8 or 16 bits",
            )
        if self.prune is not None and not 0 < self.prune < 1:
            raise InvalidConfig(f"prune: {self.prune:g} is not a share between 0 and 1")
        if not (self.int8 or self.fp16 or self.prune):
            raise InvalidConfig(
                "set a form: int8 (dynamic or static), fp16 or prune; or auto, which tries all "
                "forms",
            )

    def __str__(self) -> str:
        parts = []
        if self.prune:
            parts.append(f"prune {self.prune:g}")
        if self.int8:
            parts.append(f"int8 {self.int8}")
        if self.fp16:
            parts.append("fp16")
        return ", ".join(parts)


ALL_RECIPES: tuple[Recipe, ...] = (
    Recipe(int8="dynamic"),
    Recipe(int8="static"),
    Recipe(fp16=True),
    Recipe(prune=0.5),
)


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
        forms: the base and the forms, in the order of the recipes.
        impossible: the reasons why forms cannot be created, by form name.
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
    prune: float | None = None,
    auto: bool = False,
    rows: int | None = None,
    data: str = "",
    target: str = "",
    metric: MetricName | None = None,
    max_loss: float = 0.01,
    original: object = "",
    epochs: int = 10,
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
        prune: the share of weights per layer that are set to zero, beginning with the
            smallest.
        auto: try all forms, and register the fastest form within the limit if it is
            faster than the base.
        rows: the request size by which `auto` decides: 1, 8 or 1,000 rows; default: all
            three.
        data: rows for calibration and comparison, in the form of a gate policy's
            dataset; default: the dataset of the model's gate policy, otherwise the
            model's reference. One half is for calibration (at most 500 rows) and
            tuning, the other half is for measurement.
        target: the label column.
        metric: the metric for labelled rows; default: accuracy, or rmse for numbers.
        max_loss: the maximum loss. With labels, it is in the unit of the metric, or
            relative for rmse and mae. Without labels, it is the share of labels that
            differ, or the mean difference relative to the predictions' spread.
        original: the torch module that the version was converted from, or its URI in
            MLflow (its code is loaded). If it is set, the pruned module is trained.
        epochs: the number of training epochs.
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
    recipes = _requested_recipes(int8, fp16, prune, auto)
    _check_limits(rows, max_loss)
    check_new_name(register or "")
    resolved = resolve(model_uri)
    name = register or _registered_name(model_uri, resolved)
    progress(f"fetching {resolved.source}")
    with downloaded_version(resolved) as folder, temporary_folder("onnxserve-optimize-") as drafts:
        base = load_onnx(folder, resolved)
        _check_not_optimized(base, resolved)
        source = _Source(data, target, metric, original).with_policy(resolved)
        halves = _read_halves(base, source)
        if any(recipe.prune for recipe in recipes):
            source = source.with_module(resolved, folder)
        maker = _FormMaker(base, halves, source, epochs, drafts)
        created = maker.make_all(recipes, progress)
        measured = Optimization(
            base=resolved.source,
            forms=_measure(folder, created, halves.evaluation, progress),
            impossible=created.impossible,
            max_loss=max_loss,
        )
        done = choose(measured, auto, rows)
        if raises:
            done.raise_if_refused()
        if not done.chosen:
            return done
        progress(f"registering {done.chosen} as a version of {name}")
        version = _log_form(base, resolved, created.drafts[done.chosen], done, name)
        return replace(done, model=name, version=version)


def _requested_recipes(
    int8: forms.Int8 | None,
    fp16: bool,
    prune: float | None,
    auto: bool,
) -> tuple[Recipe, ...]:
    """Return all recipes for `auto`, otherwise the requested recipe. Raises
    InvalidConfig if both are requested, or if the recipe is invalid.
    """
    if not auto:
        return (Recipe(int8, fp16, prune),)
    if int8 or fp16 or prune is not None:
        raise InvalidConfig("auto tries all forms: do not set int8, fp16 or prune")
    return ALL_RECIPES


def _check_limits(rows: int | None, max_loss: float) -> None:
    """Raise InvalidConfig for a request size that is not measured, or for a negative
    limit.
    """
    if rows is not None and rows not in SIZES:
        sizes = ", ".join(map(str, SIZES))
        raise InvalidConfig(f"rows: {rows} is not one of the measured sizes {sizes}")
    if not max_loss >= 0:
        raise InvalidConfig(f"max_loss: {max_loss:g} is below 0")


def _is_registered(resolved: ResolvedModel) -> bool:
    return resolved.source == f"models:/{resolved.name}/{resolved.version}"


def _registered_name(model_uri: str, resolved: ResolvedModel) -> str:
    """Return the name of the registered model. Raises InvalidConfig if there is
    none.
    """
    if not _is_registered(resolved) or not resolved.name:
        raise InvalidConfig(
            f"{model_uri} is not a registered version: set the name of the form (register)",
        )
    return resolved.name


def _check_not_optimized(base: LoadedOnnx, resolved: ResolvedModel) -> None:
    """Raise InvalidConfig if the version is a form of another version."""
    if base.artifact.optimization:
        first = base.artifact.optimization.get("base")
        raise InvalidConfig(
            f"{resolved.source} is already an optimized form of {first}: optimize {first} instead",
        )


@dataclass(frozen=True, eq=False)
class _Source:
    """The rows that compare the forms, and the original that pruning trains.

    Attributes:
        data: the rows, in the form of a gate policy's dataset; "" for the reference.
        target: the label column, or "".
        metric: the metric for labelled rows; None for the default.
        original: the torch module, its URI, or the reason why it cannot be loaded.
    """

    data: str
    target: str
    metric: MetricName | None
    original: object

    def with_policy(self, resolved: ResolvedModel) -> "_Source":
        """Return the source with the settings of the model's gate policy, if no data is
        set.
        """
        if self.data or not _is_registered(resolved):
            return self
        settings = choose_policy(resolved.name).policy.evaluation
        return replace(
            self,
            data=settings.dataset,
            target=self.target or settings.target,
            metric=self.metric or settings.metric,
        )

    def with_module(self, resolved: ResolvedModel, folder: Path) -> "_Source":
        """Return the source with the torch module instead of its URI. Raises
        InvalidConfig if a requested module cannot be loaded.
        """
        if not isinstance(self.original, str):
            return self
        module = torch_original(resolved, folder, self.original)
        if self.original and isinstance(module, Refused):
            raise InvalidConfig(module.reason)
        return replace(self, original=module)


class _Half(NamedTuple):
    """Half of the rows, and their labels if they are known."""

    rows: NamedArrays
    truth: Array | None

    def take(self, positions: Array) -> "_Half":
        labels = None if self.truth is None else self.truth[positions]
        return _Half(take_rows(self.rows, positions), labels)


class _Halves(NamedTuple):
    """The rows for calibration and tuning, and the rows for measurement."""

    calibration: _Half
    evaluation: _Half


def _read_halves(base: LoadedOnnx, source: _Source) -> _Halves:
    """Return the rows for calibration and for measurement. Raises InvalidConfig if
    there are too few rows.
    """
    whole = _read_rows(base, source)
    total = row_count(whole.rows)
    if total < MIN_ROWS:
        where = source.data or "the model's reference"
        raise InvalidConfig(
            f"{where} has {total} rows, which are too few to measure a loss; use data with at "
            f"least {MIN_ROWS}",
        )
    order = np.random.default_rng(_SEED).permutation(total)
    half = total // 2
    return _Halves(
        whole.take(order[:half]),
        whole.take(order[half:]),
    )


def _read_rows(base: LoadedOnnx, source: _Source) -> _Half:
    """Return all rows of the source, with labels if a target is set. Raises
    InvalidConfig for a target without data.
    """
    if source.target and not source.data:
        raise InvalidConfig(
            "target: set data that contains the label column; a model's reference has no labels",
        )
    if source.target:
        labelled = load_dataset(source.data, source.target, base.artifact, _SEED, 2 * MAX_ROWS)
        return _Half(labelled.rows, labelled.truth)
    loaded = None
    if source.data:
        loaded = load_rows(source.data, base.artifact, 2 * MAX_ROWS, _SEED)
    rows = loaded or reference_rows(base.artifact, 2 * MAX_ROWS, _SEED) or {}
    return _Half(rows, None)


def _measure(
    folder: Path,
    created: "_CreatedForms",
    evaluation: _Half,
    progress: ProgressCallback,
) -> tuple[MeasuredForm, ...]:
    """Return the base in `folder` and the created forms, with their cost on the rows
    `evaluation`. The base is first.
    """
    names = ", ".join(created.drafts)
    if names:
        progress(f"measuring {names} and the base")
    else:
        progress("measuring the base")
    folders = [folder, *(draft.folder for draft in created.drafts.values())]
    base_cost, *costs = measure_forms(folders, evaluation.rows)
    measured = [MeasuredForm("base", base_cost)]
    for (name, draft), cost in zip(created.drafts.items(), costs, strict=True):
        measured.append(MeasuredForm(name, cost, draft.agreement, draft.note))
    return tuple(measured)


class _Draft(NamedTuple):
    """A created form, its folder, and its comparison with the base."""

    graph: ModelProto
    folder: Path
    agreement: FormAgreement
    note: str


class _CreatedForms(NamedTuple):
    """The created forms, and the reasons why other forms cannot be created, both by
    name.
    """

    drafts: Mapping[str, _Draft]
    impossible: Mapping[str, str]


@dataclass(eq=False)
class _FormMaker:
    """A factory that creates forms of a base in subfolders of `drafts`, and compares
    them with the base.

    Each form is first run in the process `trial`, because ONNX Runtime may crash on a
    graph from its converters.
    """

    base: LoadedOnnx
    halves: _Halves
    source: _Source
    epochs: int
    drafts: Path
    trial: Worker = field(default_factory=partial(Worker, stderr=subprocess.DEVNULL))

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

    def make_all(self, recipes: Iterable[Recipe], progress: ProgressCallback) -> _CreatedForms:
        """Create a form per recipe, and compare each form with the base."""
        created = {}
        impossible = {}
        with ExitStack() as ended:
            ended.callback(self.trial.end)
            for recipe in recipes:
                progress(f"creating {recipe}")
                try:
                    created[str(recipe)] = self.make(recipe)
                except ConversionError as error:
                    impossible[str(recipe)] = error.message
        return _CreatedForms(created, impossible)

    def make(self, recipe: Recipe) -> _Draft:
        """Create a form, and compare it with the base. Raises ConversionError if a form
        cannot be created or loaded.
        """
        graph = onnx.load(str(self.base.artifact.onnx_file))
        note = ""
        if recipe.prune:
            graph, note = self.prune(graph, recipe.prune)
            note += _missed_share_note(graph, recipe.prune)
        if recipe.fp16:
            graph = forms.half_precision(graph, self.feeds)
        if recipe.int8 == "dynamic":
            graph = forms.int8_dynamic(graph)
        if recipe.int8 == "static":
            return self.best_scales(graph, str(recipe), note)
        return self.draft(graph, str(recipe), note)

    def prune(self, graph: ModelProto, share: float) -> tuple[ModelProto, str]:
        """Return the pruned graph and a note. If the original is known, the original is
        pruned and trained.
        """
        original = self.source.original
        if isinstance(original, Refused):
            return forms.pruned(graph, share), f"not tuned, because {original.reason}"
        from mlflow_deploy_plugin.wrap.optimization.fine_tuning import pruned_and_tuned

        tuned = pruned_and_tuned(
            original,
            self.base,
            share,
            *self.halves.calibration,
            self.epochs,
            _SEED,
        )
        return tuned, f"tuned for {self.epochs} epochs"

    def best_scales(self, graph: ModelProto, name: str, note: str) -> _Draft:
        """Return the int8 form with the smaller loss: scales per channel (which fail
        for some Gemms) or per tensor. Raises ConversionError if both fail.
        """
        candidates = []
        failures = []
        for is_per_channel, scales in (
            (True, "one scale per channel"),
            (False, "one scale per tensor"),
        ):
            full_note = f"{note}, {scales}" if note else scales
            try:
                quantized = forms.int8_static(graph, self.feeds, is_per_channel)
                candidates.append(self.draft(quantized, f"{name}, {scales}", full_note))
            except ConversionError as error:
                failures.append(error)
        if not candidates:
            raise failures[0]
        return min(candidates, key=self.calibration_difference)

    def calibration_difference(self, draft: _Draft) -> float:
        """Return the mean difference of a form from its base on the calibration rows,
        relative to the spread of the predictions.
        """
        form = LoadedOnnx(OnnxModel.load(draft.folder))
        compared = compare_with_base(self.base, form, self.halves.calibration.rows)
        return compared.relative_difference

    def draft(self, graph: ModelProto, name: str, note: str) -> _Draft:
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
                "or try its other forms (auto)",
            ) from error
        form = LoadedOnnx(OnnxModel.load(folder))
        agreement = compare_with_base(
            self.base,
            form,
            *self.halves.evaluation,
            self.source.metric,
            self.answers,
        )
        return _Draft(graph, folder, agreement, note)


def _missed_share_note(graph: ModelProto, share: float) -> str:
    """Return a note if a pruned graph has much fewer zeros than the requested share;
    otherwise empty.
    """
    zeros = forms.share_of_zeros(graph)
    if zeros >= share - _MISSED_SHARE:
        return ""
    return (
        f"; only {zeros:.1%} of all weights are zero, because embeddings and tables are not pruned"
    )


def choose(done: Optimization, is_auto: bool, rows: int | None) -> Optimization:
    """Return the outcome with the chosen form, or with the reason if none is chosen.

    Args:
        done: the outcome with the measured forms.
        is_auto: True to choose the fastest form within the limit, if it is faster than
            the base. Otherwise the only form is chosen if it is within the limit.
        rows: the request size that decides; None for all sizes combined.
    """
    within = [
        form for form in done.forms[1:] if form.agreement and form.agreement.loss <= done.max_loss
    ]
    if is_auto:
        return _choose_fastest(done, within, rows)
    if within:
        return replace(done, chosen=within[0].name)
    return replace(done, is_refused=True, reason=_refusal(done))


def _choose_fastest(
    done: Optimization,
    within: list[MeasuredForm],
    rows: int | None,
) -> Optimization:
    """Return the outcome with the fastest form `within` the limit, or with the reason
    if none is faster than the base.

    Args:
        done: the outcome with the measured forms.
        within: the forms within the limit.
        rows: the request size that decides; None for all sizes combined.
    """
    faster = [form for form in within if form.cost.is_faster(rows)]
    if faster:
        fastest = min(faster, key=lambda form: form.cost.speed(rows))
        return replace(done, chosen=fastest.name)
    requests = "requests of 1, 8 and 1,000 rows combined"
    if rows:
        requests = f"requests of {rows:,} rows"
    return replace(
        done,
        reason=f"no form within a loss of {done.max_loss:g} was faster than {done.base} "
        f"for {requests}",
    )


def _refusal(done: Optimization) -> str:
    """Return the reason why the only requested form is refused."""
    if done.impossible:
        ((name, failure),) = done.impossible.items()
        return f"the form {name} of {done.base} cannot be created: {failure}"
    (form,) = done.forms[1:]
    agreement = form.agreement
    assert agreement is not None
    limit = f"more than the limit of {done.max_loss:g}"
    return f"{form.name} loses {agreement.loss:.4g} ({agreement.loss_of}), {limit}: {agreement}"


def _log_form(
    base: LoadedOnnx,
    resolved: ResolvedModel,
    draft: _Draft,
    done: Optimization,
    name: str,
) -> str:
    """Log the selected form to the run of its base, and return the new version. Raises
    RegistryUnavailable if this fails.

    Args:
        base: the loaded base.
        resolved: the version of the base.
        draft: the selected form.
        done: the outcome with the measured forms.
        name: the registered model of the new version.
    """
    client = registry_client()
    agreement = draft.agreement
    figures = _logged_figures(done, agreement)
    record = {
        "base": resolved.source,
        "base_digest": graph_digest(base),
        "form": done.chosen,
        "note": draft.note,
        "loss_of": agreement.loss_of,
        **figures,
    }
    state = "warned" if base.artifact.parity_state != "no-original" else "no-original"
    parity = {
        "state": state,
        "rows": agreement.rows,
        "problem": f"this is a form of {resolved.source}, {done.chosen}: {agreement}",
    }
    with registry_errors(f"the form of {resolved.source}"):
        form_run = _run_of_base(client, resolved)
        form_tags = {
            tags.OPTIMIZED_FROM_TAG: resolved.source,
            tags.OPTIMIZED_WITH_TAG: done.chosen,
            PARITY_TAG: state,
        }
        info = log_flavor(
            saved_form,
            "model",
            run_id=form_run.run_id,
            registered_model_name=name,
            tags=_lineage_tags(client, resolved) | form_tags,
            base=base.artifact.folder,
            graph=draft.graph,
            record=record,
            parity=parity,
        )
        metrics = [(f"onnxserve.optimize.{key}", value) for key, value in figures.items()]
        log_metrics(client, form_run.run_id, info.model_id, metrics)
        if form_run.is_new:
            client.set_terminated(form_run.run_id, "FINISHED")
    return str(info.registered_model_version)


def _logged_figures(done: Optimization, agreement: FormAgreement) -> dict[str, float]:
    """Return the loss of the selected form, and its size and duration relative to the
    base.
    """
    base = done.forms[0]
    [form] = [form for form in done.forms if form.name == done.chosen]
    size_ratio = form.cost.size / base.cost.size
    ratios = {f"rows_{rows}_ratio": ratio for rows, ratio in form.cost.ratio.items()}
    return {"loss": agreement.loss, "size_ratio": size_ratio, **ratios}


def _lineage_tags(client: MlflowClient, resolved: ResolvedModel) -> dict[str, str]:
    """Return the tags of the base that its forms inherit."""
    if not resolved.version.isdigit():
        return {}
    base_tags = client.get_model_version(resolved.name, resolved.version).tags
    return {key: base_tags[key] for key in _LINEAGE if key in base_tags}


class _FormRun(NamedTuple):
    """The run that a form is logged to. `is_new` is True if the run was created for the
    form, and must be ended.
    """

    run_id: str
    is_new: bool


def _run_of_base(client: MlflowClient, resolved: ResolvedModel) -> _FormRun:
    """Return the run of the base, or a new run if the run does not exist on this MLflow
    server.
    """
    run_id = resolved.aspects.get("run_id", "")
    if run_id:
        with suppress(MlflowException):  # The run may be deleted, or on another server.
            if client.get_run(run_id).info.lifecycle_stage == "active":
                return _FormRun(run_id, is_new=False)
    experiment = get_or_create_experiment(client, f"onnxserve/{resolved.name}")
    run = client.create_run(experiment, run_name=f"optimize {resolved.name}")
    return _FormRun(str(run.info.run_id), is_new=True)
