"""A PMML file as an MLflow Python model, without onnxserve. MLflow saves this module as the model's code.

python pmml_model.py MODEL.pmml ROWS.pickle FIELDS.json   # writes the fields; the last line of stderr is an error

The class `Model` is the interface with which `exporter/exporting.py` checks an exported file.
"""

import json
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from jpmml_evaluator import Evaluator, make_evaluator

_NUMBERS = {"float": np.float32, "double": np.float64}


def evaluate(evaluator: Evaluator, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the target fields and output fields of each row. Raises ValueError with the first row that is refused."""
    rows = rows.astype(object).where(rows.notna(), None)  # PMML has missing values, but not NaN.
    answers, errors = evaluator.evaluateAll(rows.reset_index(drop=True), nan_as_missing=False, error_col=None)
    if errors is not None and errors.notna().any():
        row = int(errors.notna().to_numpy().argmax())
        raise ValueError(f"row {row}: {str(errors.iloc[row]).rpartition('Exception: ')[2]}")
    fields = [*evaluator.getTargetFields(), *evaluator.getOutputFields()]
    kinds = {field.name: _NUMBERS[field.dataType] for field in fields if field.dataType in _NUMBERS}
    names = [field.name for field in fields if field.name in answers]
    table: pd.DataFrame = answers[names].astype({name: kind for name, kind in kinds.items() if name in names})
    return table


class Model:
    """A PMML file for the check of an export."""

    def __init__(self, path: str, threads: int = 1) -> None:
        self._evaluator = make_evaluator(path)

    def outputs(self, rows: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return `targets` [N, T] and `probabilities` [N, C] for columns [N] by name, or for one tensor [N, F]."""
        if len(rows) == 1 and (tensor := next(iter(rows.values()))).ndim == 2:
            rows = {f"x{index + 1}": column for index, column in enumerate(tensor.T)}
        # LightGBM replaces the spaces in the names of its features.
        columns = {name.replace(" ", "_"): array for name, array in rows.items()} | dict(rows)
        fields = [field.name for field in self._evaluator.getInputFields()]
        answers = evaluate(self._evaluator, pd.DataFrame({field: columns[field] for field in fields}))
        targets = [field.name for field in self._evaluator.getTargetFields()]
        others = [name for name in answers if str(name).startswith("probability(")]
        return {"targets": answers[targets].to_numpy(dtype=object), "probabilities": answers[others].to_numpy(float)}


if __name__ == "__main__":
    evaluator, rows = make_evaluator(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes())
    try:
        document = {
            "model": str(evaluator.javaEvaluator.getSummary()),
            "inputs": {field.name: field.dataType for field in evaluator.getInputFields()},
            "outputs": {
                field.name: field.dataType for field in [*evaluator.getTargetFields(), *evaluator.getOutputFields()]
            },
        }
    except AttributeError:  # The reader returns null for an unknown type.
        sys.exit("a field has an unknown dataType or optype")
    if rows is not None:
        evaluate(evaluator, rows)
    Path(sys.argv[3]).write_text(json.dumps(document))
else:
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel

    class PmmlModel(PythonModel):  # type: ignore[misc]
        """The served form of a PMML file, with columns by the names of its input fields."""

        def load_context(self, context: Any) -> None:
            self._evaluator = make_evaluator(context.artifacts["pmml"])

        def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
            return evaluate(self._evaluator, model_input)

    set_model(PmmlModel())
