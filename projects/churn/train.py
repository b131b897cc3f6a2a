"""Train a random forest for two classes on a CSV file, log it as checked ONNX and
register it.

    mlflow run projects/churn -e churn --env-manager local
    # or: python -m projects.churn.train
    mlflow run projects/churn -e churn --env-manager local -P data=customers.csv \\
        -P target=churned -P trees=200

Without `data`, the rows are synthetic (`generate`), so the results are only an example.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score, roc_curve
from sklearn.pipeline import Pipeline

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.tables import Recipe, TableOptions, train_on_table, two_answers
from projects.training import BLUE, GREY, option, run_command

ROWS = 5000


@dataclass(frozen=True)
class Training(TableOptions):
    """The options of a training."""

    registered_model: str = option("churn", "registered model of the version")
    trees: int = option(100, "number of trees")
    min_samples_leaf: int = option(10, "minimum number of rows in a leaf")


def generate(seed: int) -> pd.DataFrame:
    """Return synthetic customers. A quarter of them leave, mostly early, after support
    calls, on monthly contracts.
    """
    random = np.random.default_rng(seed)
    contract = random.choice(["monthly", "one year", "two years"], ROWS, p=[0.55, 0.25, 0.2])
    months = random.exponential(24, ROWS).clip(1, 72).round()
    calls = random.poisson(1.2, ROWS).astype(float)
    charge = random.normal(65, 25, ROWS).clip(15, 140).round(2)
    autopay = random.random(ROWS) < 0.5
    tendency = (
        -1.9
        + 1.3 * (contract == "monthly")
        - 0.05 * months
        + 0.5 * calls
        + 0.012 * charge
        - 0.6 * autopay
    )
    return pd.DataFrame(
        {
            "months": months,
            "monthly_charge": np.where(random.random(ROWS) < 0.05, np.nan, charge),
            "support_calls": calls,
            "contract": contract,
            "internet": random.choice(["fibre", "cable", "none"], ROWS),
            "autopay": autopay,
            "churned": random.random(ROWS) < 1 / (1 + np.exp(-tendency)),
        },
    )


def score(pipeline: Pipeline, features: pd.DataFrame, truth: pd.Series) -> dict[str, float]:
    """Return ROC AUC, average precision, log loss, accuracy, and the accuracy of the
    most frequent class.
    """
    probabilities = pipeline.predict_proba(features)
    positive = truth == pipeline.classes_[1]
    return {
        "roc_auc": float(roc_auc_score(positive, probabilities[:, 1])),
        "average_precision": float(average_precision_score(positive, probabilities[:, 1])),
        "log_loss": float(log_loss(truth, probabilities, labels=pipeline.classes_)),
        "accuracy": float((pipeline.predict(features) == truth).mean()),
        "accuracy_of_the_frequent": float(max(positive.mean(), 1 - positive.mean())),
    }


def draw(axes: Any, pipeline: Pipeline, features: pd.DataFrame, truth: pd.Series) -> None:
    """Draw the ROC curve, and the most important features
    by the reduction of impurity.
    """
    false, true, _ = roc_curve(
        truth == pipeline.classes_[1],
        pipeline.predict_proba(features)[:, 1],
    )
    axes[0].plot(false, true, color=BLUE)
    axes[0].plot([0, 1], [0, 1], color=GREY, linewidth=1)
    axes[0].set(xlabel="false positive rate", ylabel="true positive rate")
    importance = pd.Series(
        pipeline[-1].feature_importances_,
        index=pipeline[0].get_feature_names_out(),
    )
    largest = importance.sort_values().tail(12)
    axes[1].barh([name.partition("__")[2] for name in largest.index], largest, color=BLUE)
    axes[1].set(xlabel="importance")


def train(options: Training) -> Any:
    """Train, log and register a version; see `train_on_table`.

    Raises:
        InvalidConfig: also if `trees` or `min_samples_leaf` is less than 1.
    """
    for name in ("trees", "min_samples_leaf"):
        if getattr(options, name) < 1:
            raise InvalidConfig(
                f"{name} {getattr(options, name)}: a whole number from 1 is expected",
            )

    def forest() -> RandomForestClassifier:
        return RandomForestClassifier(
            options.trees,
            min_samples_leaf=options.min_samples_leaf,
            random_state=options.seed,
        )

    return train_on_table(options, Recipe(generate, forest, False, two_answers, score, draw))


if __name__ == "__main__":
    run_command(train, Training, __doc__ or "")
