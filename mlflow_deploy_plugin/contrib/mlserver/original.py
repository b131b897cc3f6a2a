"""The loader of an adopted joblib or pickle file, which MLflow calls: its model answers
like MLServer's runtime of scikit-learn.
"""

import warnings
from typing import Any

import numpy as np


class Original:
    """A pyfunc around a fitted model. Its answers are arrays by MLServer's names:
    `predict`, and `predict_proba` if the model has it; `transform` for a model that
    cannot predict.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        names = [name for name in ("predict", "predict_proba") if hasattr(model, name)]
        self._names = names or ["transform"]

    def predict(self, model_input: Any, params: Any = None) -> dict[str, np.ndarray]:
        """Return the answers [N, …] for a table or a matrix [N, columns]."""
        return {name: np.asarray(getattr(self._model, name)(model_input)) for name in self._names}


def _load_pyfunc(path: str) -> Original:
    import joblib  # It is installed with scikit-learn, and also reads plain pickles.

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Differing versions were reported when it was adopted.
        return Original(joblib.load(path))
