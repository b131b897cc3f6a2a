"""Smaller and faster forms of a version: made, compared with the version, and registered if their loss is small."""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.errors import (
    ConversionError,
    DeadlineExceeded,
    InvalidConfig,
    OnnxserveError,
    ParityError,
    Refused,
)
from mlflow_deploy_plugin.evaluation import (
    LoadedOnnx,
    MetricName,
    NamedArrays,
    compare_with_base,
    downloaded_version,
    graph_digest,
    load_dataset,
    reference_rows,
    take_rows,
)
from mlflow_deploy_plugin.evaluation.adversarial import torch_original
from mlflow_deploy_plugin.evaluation.agreement import Agreement
from mlflow_deploy_plugin.evaluation.dataset import load_rows
from mlflow_deploy_plugin.gate import choose_policy
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.optimization import forms, saved_form
from mlflow_deploy_plugin.optimization.measure import SIZES, FormCost, load_onnx, measure_forms, try_out
from mlflow_deploy_plugin.processes import ProcessCrashed, Worker
from mlflow_deploy_plugin.registry import (
    PARITY_TAG,
    ResolvedModel,
    check_new_name,
    registry_client,
    registry_errors,
    resolve,
)
from mlflow_deploy_plugin.registry.runs import get_or_create_experiment, log_flavor, log_metrics
from mlflow_deploy_plugin.registry.tags import (
    DATA_DIGEST_TAG,
    OPTIMIZED_FROM_TAG,
    OPTIMIZED_WITH_TAG,
    PARENT_TAG,
    TRAINING_TAG,
)
from mlflow_deploy_plugin.runtime import OnnxModel
from mlflow_deploy_plugin.runtime.feeds import Array, Feeds, row_count, slice_feeds
from mlflow_deploy_plugin.statedir.files import temporary_folder

MIN_ROWS = 100
"""With fewer rows, a loss of one in a hundred cannot be measured."""
MAX_ROWS = 10_000
CALIBRATION_ROWS = 500
_PART = 100
_TRIAL_SECONDS = 300.0
_SEED = 7
_LINEAGE = (PARENT_TAG, TRAINING_TAG, DATA_DIGEST_TAG)


@dataclass(frozen=True)
class Recipe:
    """The changes that make a form: pruning first, then smaller numbers."""

    int8: forms.Int8 | None = None
    fp16: bool = False
    prune: float | None = None

    def __post_init__(self) -> None:
        """Raise InvalidConfig for an empty recipe, two kinds of numbers, or a share outside of 0 to 1."""
        if self.int8 not in (None, "dynamic", "static"):
            raise InvalidConfig(f"int8: {self.int8!r} is neither dynamic nor static")
        if self.int8 and self.fp16:
            raise InvalidConfig("int8 and fp16 exclude each other: a weight has 8 bits or 16")
        if self.prune is not None and not 0 < self.prune < 1:
            raise InvalidConfig(f"prune: {self.prune:g} is no share of the weights between 0 and 1")
        if not (self.int8 or self.fp16 or self.prune):
            raise InvalidConfig("name a form: int8 (dynamic or static), fp16 or prune; or auto, which tries them all")

    def __str__(self) -> str:
        parts = [f"prune {self.prune:g}" if self.prune else "", f"int8 {self.int8}" if self.int8 else ""]
        return ", ".join(filter(None, [*parts, "fp16" if self.fp16 else ""]))


ALL_RECIPES = (Recipe(int8="dynamic"), Recipe(int8="static"), Recipe(fp16=True), Recipe(prune=0.5))


@dataclass(frozen=True)
class MeasuredForm:
    """A form that was compared with its base; `agreement` is None for the base itself."""

    name: str
    cost: FormCost
    agreement: Agreement | None = None
    note: str = ""


@dataclass(frozen=True)
class Optimization:
    """The outcome.

    Attributes:
        forms: the base, then the forms, in the order of the recipes.
        impossible: the reason why a form cannot be made, by its name.
        chosen: the form that was registered; empty if none was, for the `reason`.
        is_refused: the forms that were asked for lose too much, or cannot be made.
        model, version: under which it is registered.
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
        """Raise ConversionError for a form that cannot be made, ParityError for a form that loses too much."""
        if self.is_refused:
            raise (ConversionError if self.impossible else ParityError)(self.reason)


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
) -> Optimization:
    """Make a smaller or faster form of a version, measure its loss, and register it as a version with its lineage.

    Args:
        model_uri: a version with an ONNX form, as models:/digits-cnn/1.
        int8: "dynamic" or "static" (see `forms`).
        fp16: 16-bit floats, with 32 bits where they overflow.
        prune: the share of the smallest weights of each layer that become zero.
        auto: try all forms, and take the fastest within the limit; nothing is registered if none is faster.
        rows: the rows of a request that `auto` decides by, one of 1, 8 and 1,000; default: all three.
        data: rows to calibrate and compare on, as a gate policy's dataset; default: the dataset of the model's gate
            policy, else the reference of the model. Half of them calibrate (at most 500) and tune, half measure.
        target: the column of the labels.
        metric: of labelled rows; default: accuracy, of numbers rmse.
        max_loss: the limit: of the metric in its unit, of rmse and mae as a share; without labels, of the share of
            labels that differ, or of the mean difference as a share of the spread of the answers.
        original: the torch module that the version was made from, or its URI in MLflow, which loads the model's own
            code. Pruning is then followed by training.
        epochs: passes of that training.
        register: name of the registered model; default: that of the base.

    Raises:
        ParityError: the form loses more than `max_loss`.
        ConversionError: the form cannot be made; the message says why.
        InvalidConfig: an argument is not valid, or there are too few rows.
        NotFound, RegistryUnavailable: see `resolve`.
    """
    if auto and (int8 or fp16 or prune is not None):
        raise InvalidConfig("auto tries all forms: leave int8, fp16 and prune out")
    recipes = ALL_RECIPES if auto else (Recipe(int8, fp16, prune),)
    done = try_forms(
        model_uri,
        recipes,
        rows=rows,
        data=data,
        target=target,
        metric=metric,
        max_loss=max_loss,
        original=original,
        epochs=epochs,
        register=register,
    )
    done.raise_if_refused()
    return done


def try_forms(
    model_uri: str,
    recipes: Sequence[Recipe],
    *,
    rows: int | None = None,
    data: str = "",
    target: str = "",
    metric: MetricName | None = None,
    max_loss: float = 0.01,
    original: object = "",
    epochs: int = 10,
    register: str | None = None,
    progress: ProgressCallback = lambda line: None,
) -> Optimization:
    """Make and measure the forms, and register the chosen form; a refusal is part of the result.

    Of several recipes, the fastest within the limit is chosen. Arguments and errors are as in `optimize`.
    """
    if rows is not None and rows not in SIZES:
        raise InvalidConfig(f"rows: {rows} is not one of {', '.join(map(str, SIZES))}, which are measured")
    if not max_loss >= 0:
        raise InvalidConfig(f"max_loss: {max_loss:g} is below 0")
    check_new_name(register or "")
    resolved = resolve(model_uri)
    is_registered = resolved.source == f"models:/{resolved.name}/{resolved.version}"
    name = register or (resolved.name if is_registered else "")
    if not name:
        raise InvalidConfig(f"{model_uri} is no registered version: name the model to register the form under")
    progress(f"fetching {resolved.source}")
    with downloaded_version(resolved) as folder, temporary_folder("onnxserve-optimize-") as drafts:
        base = load_onnx(folder, resolved)
        if base.artifact.optimization:
            first = base.artifact.optimization.get("base")
            raise InvalidConfig(f"{resolved.source} is an optimized form of {first} itself: optimize that")
        if is_registered and not data:
            own = choose_policy(resolved.name).policy.evaluation
            data, target, metric = own.dataset, target or own.target, metric or own.metric
        calibration, evaluation = _read_halves(base, data, target)
        if any(recipe.prune for recipe in recipes) and isinstance(original, str):
            named, original = original, torch_original(resolved, folder, original)
            if named and isinstance(original, Refused):
                raise InvalidConfig(original.reason)
        made: dict[str, _Draft] = {}
        impossible = {}
        with ExitStack() as ended:
            trial = Worker(stderr=subprocess.DEVNULL)
            ended.callback(trial.end)
            maker = _FormMaker(base, calibration, evaluation, metric, original, epochs, drafts, trial)
            for recipe in recipes:
                progress(f"making {recipe}")
                try:
                    made[str(recipe)] = maker.make(recipe)
                except ConversionError as error:
                    impossible[str(recipe)] = error.message
        progress(f"measuring {', '.join(made)} beside the base, in turns" if made else "measuring the base")
        of_base, *costs = measure_forms([folder, *(draft.folder for draft in made.values())], evaluation.rows)
        measured = {
            form: MeasuredForm(form, cost, draft.agreement, draft.note)
            for (form, draft), cost in zip(made.items(), costs, strict=True)
        }
        found = (MeasuredForm("base", of_base), *measured.values())
        done = choose(Optimization(resolved.source, found, impossible, max_loss), len(recipes) > 1, rows)
        if not done.chosen:
            return done
        progress(f"registering {done.chosen} as a version of {name}")
        version = _log_form(base, resolved, made[done.chosen], measured[done.chosen], of_base, name)
        return replace(done, model=name, version=version)


@dataclass(frozen=True, eq=False)
class _Half:
    """Half of the rows, and their labels if these are known."""

    rows: NamedArrays
    truth: Array | None


def _read_halves(base: LoadedOnnx, data: str, target: str) -> tuple[_Half, _Half]:
    """Return the rows to calibrate on, and those to measure the loss on; raise InvalidConfig if they are few."""
    truth: Array | None = None
    if target and not data:
        raise InvalidConfig("target: name the data that has it; the reference beside a model has no labels")
    if target:
        labelled = load_dataset(data, target, base.artifact, _SEED, 2 * MAX_ROWS)
        rows, truth = labelled.rows, labelled.truth
    else:
        found = load_rows(data, base.artifact, 2 * MAX_ROWS, _SEED) if data else None
        rows = found or reference_rows(base.artifact, 2 * MAX_ROWS, _SEED) or {}
    total = row_count(rows)
    if total < MIN_ROWS:
        where = data or "the reference beside the model"
        raise InvalidConfig(
            f"{where} has {total} rows, of which no loss can be told; give data with {MIN_ROWS} or more"
        )
    halves = np.split(np.random.default_rng(_SEED).permutation(total), [total // 2])
    first, rest = (_Half(take_rows(rows, half), None if truth is None else truth[half]) for half in halves)
    return first, rest


@dataclass(frozen=True)
class _Draft:
    graph: onnx.ModelProto
    folder: Path
    agreement: Agreement
    note: str


@dataclass(eq=False)
class _FormMaker:
    """Makes forms of a base, each in a folder of its own in `drafts`, and compares them with the base.

    `original` is the torch module, or the reason why there is none. A form runs first in the process `trial`, since
    ONNX Runtime may crash on a graph that its own tools have made.
    """

    base: LoadedOnnx
    calibration: _Half
    evaluation: _Half
    metric: MetricName | None
    original: object
    epochs: int
    drafts: Path
    trial: Worker

    @cached_property
    def answers(self) -> dict[str, Array]:
        return self.base.outputs(self.evaluation.rows)

    @cached_property
    def feeds(self) -> list[Feeds]:
        rows = take_rows(self.calibration.rows, slice(0, CALIBRATION_ROWS))
        feeds, count = self.base.feeds(rows), row_count(rows)
        return [slice_feeds(feeds, slice(start, start + _PART)) for start in range(0, count, _PART)]

    def make(self, recipe: Recipe) -> _Draft:
        """Make a form and compare it with the base; raise ConversionError if it cannot be made or loaded."""
        graph, note = onnx.load(str(self.base.artifact.onnx_file)), ""
        if recipe.prune:
            graph, note = self.prune(graph, recipe.prune)
        if recipe.fp16:
            graph = forms.half_precision(graph, self.feeds)
        if recipe.int8 == "dynamic":
            graph = forms.int8_dynamic(graph)
        if recipe.int8 == "static":
            return self.best_scales(graph, str(recipe), note)
        return self.draft(graph, str(recipe), note)

    def prune(self, graph: onnx.ModelProto, share: float) -> tuple[onnx.ModelProto, str]:
        """Return the pruned graph, tuned if there is an original, and a note of that."""
        if isinstance(self.original, Refused):
            return forms.pruned(graph, share), f"cannot be tuned, because {self.original.reason}"
        from mlflow_deploy_plugin.optimization.fine_tuning import pruned_and_tuned  # imports torch

        rows, truth = self.calibration.rows, self.calibration.truth
        tuned = pruned_and_tuned(self.original, self.base, share, rows, truth, self.epochs, _SEED)
        return tuned, f"tuned in {self.epochs} passes"

    def best_scales(self, graph: onnx.ModelProto, name: str, note: str) -> _Draft:
        """Keep the closer form of scales per channel, which ONNX Runtime refuses for some Gemms, and per tensor."""
        found: list[tuple[float, _Draft]] = []
        failures = []
        for per_channel, scales in ((True, "one scale a channel"), (False, "one scale a tensor")):
            try:
                quantized = forms.int8_static(graph, self.feeds, per_channel)
                draft = self.draft(quantized, f"{name}, {scales}", ", ".join(filter(None, [note, scales])))
            except ConversionError as error:
                failures.append(error)
                continue
            form = LoadedOnnx(OnnxModel.load(draft.folder))
            compared = compare_with_base(self.base, form, self.calibration.rows)
            found.append((compared.relative_difference, draft))
        if not found:
            raise failures[0]
        return min(found, key=lambda one: one[0])[1]

    def draft(self, graph: onnx.ModelProto, name: str, note: str) -> _Draft:
        folder, half = self.drafts / name, self.evaluation
        saved_form.save_model(folder, base=self.base.artifact.folder, graph=graph)
        try:
            self.trial.call(try_out, folder, seconds=_TRIAL_SECONDS)
        except (DeadlineExceeded, ProcessCrashed) as error:
            raise ConversionError(f"ONNX Runtime cannot run the form: {error.message}") from None
        except OnnxserveError as error:
            raise ConversionError(
                f"ONNX Runtime makes a graph that it cannot run ({forms.shown_operators(graph)}): its converters are "
                "made for neural nets. Serve the version as it is, or try its other forms (auto)"
            ) from error
        form = LoadedOnnx(OnnxModel.load(folder))
        agreement = compare_with_base(self.base, form, half.rows, half.truth, self.metric, self.answers)
        return _Draft(graph, folder, agreement, note)


def choose(done: Optimization, is_auto: bool, rows: int | None) -> Optimization:
    """Return the outcome with the chosen form: the fastest, or the only one, that is within the limit."""
    within = [form for form in done.forms[1:] if form.agreement and form.agreement.loss <= done.max_loss]
    if is_auto:
        if faster := [form for form in within if form.cost.is_faster(rows)]:
            return replace(done, chosen=min(faster, key=lambda form: form.cost.speed(rows)).name)
        of = f"requests of {rows:,} rows" if rows else "requests of 1, 8 and 1,000 rows together"
        return replace(done, reason=f"nothing was faster than {done.base} for {of}, within a loss of {done.max_loss:g}")
    if within:
        return replace(done, chosen=within[0].name)
    if done.impossible:
        ((name, why),) = done.impossible.items()
        reason = f"{done.base} cannot have the form {name}: {why}"
    else:
        (form,) = done.forms[1:]
        lost = form.agreement
        assert lost is not None
        limit = f"more than the limit of {done.max_loss:g}"
        reason = f"{form.name} loses {lost.loss:.4g} ({lost.loss_of}), {limit}: {lost}"
    return replace(done, is_refused=True, reason=reason)


def _log_form(
    base: LoadedOnnx, resolved: ResolvedModel, draft: _Draft, form: MeasuredForm, base_cost: FormCost, name: str
) -> str:
    """Log the form to its base's run and register it as a version. Raises RegistryUnavailable if MLflow is down."""
    client, agreement = registry_client(), draft.agreement
    size_ratio = form.cost.size / base_cost.size
    ratios = {f"rows_{rows}_ratio": ratio for rows, ratio in form.cost.ratio.items()}
    figures = {"loss": agreement.loss, "size_ratio": size_ratio, **ratios}
    record = {
        "base": resolved.source,
        "base_digest": graph_digest(base),
        "form": form.name,
        "note": form.note,
        "loss_of": agreement.loss_of,
        **figures,
    }
    parity = {
        "state": "warned" if base.artifact.parity_state != "no-original" else "no-original",
        "rows": agreement.rows,
        "problem": f"it is {resolved.source} as {form.name}: {agreement}",
    }
    with registry_errors(f"the form of {resolved.source}"):
        run_id, is_new = _run_of_base(resolved)
        tags = {PARITY_TAG: str(parity["state"]), OPTIMIZED_FROM_TAG: resolved.source, OPTIMIZED_WITH_TAG: form.name}
        if resolved.version.isdigit():
            of_base = client.get_model_version(resolved.name, resolved.version).tags
            tags |= {key: of_base[key] for key in _LINEAGE if key in of_base}
        info = log_flavor(
            saved_form,
            "model",
            run_id=run_id,
            registered_model_name=name,
            tags=tags,
            base=base.artifact.folder,
            graph=draft.graph,
            record=record,
            parity=parity,
        )
        log_metrics(client, run_id, info.model_id, [(f"onnxserve.optimize.{key}", figures[key]) for key in figures])
        if is_new:
            client.set_terminated(run_id, "FINISHED")
    return str(info.registered_model_version)


def _run_of_base(resolved: ResolvedModel) -> tuple[str, bool]:
    """Return the run that the base was logged by, or a new one if this MLflow does not have it."""
    client = registry_client()
    if run_id := resolved.aspects.get("run_id", ""):
        try:
            if client.get_run(run_id).info.lifecycle_stage == "active":
                return run_id, False
        except MlflowException:
            pass  # it was deleted, or is of another tracking server
    experiment = get_or_create_experiment(client, f"onnxserve/{resolved.name}")
    return str(client.create_run(experiment, run_name=f"optimize {resolved.name}").info.run_id), True
