import mlflow
import numpy as np
import pandas as pd


class LateFlights(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        hours = np.asarray(model_input["hour"])
        words = (params or {}).get("words", 1)
        names = [" ".join(["late" if hour > 12 else "early"] * words) for hour in hours]
        answers = {"texts": names, "table": pd.DataFrame({"delay": hours * 1.5, "name": names})}
        return answers["table"]


mlflow.models.set_model(LateFlights())
