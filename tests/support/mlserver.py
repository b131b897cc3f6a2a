"""Models in the files and folders of MLServer and KServe."""

import json

import joblib
import numpy as np
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROWS, LABELS = make_classification(300, 4, random_state=0)
QUESTION = ROWS[:5]


def classifier():
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS, LABELS)


def settings(folder, **document):
    """Write model-settings.json to a new folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model-settings.json").write_text(json.dumps(document))
    return folder


def save_joblib(folder, name="model.joblib"):
    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump(classifier(), folder / name)
    return classifier().predict(QUESTION)


def save_xgboost(folder, name="model.json"):
    import xgboost

    folder.mkdir(parents=True, exist_ok=True)
    model = xgboost.XGBClassifier(n_estimators=4).fit(ROWS, LABELS)
    model.save_model(folder / name)
    return model.predict(QUESTION)


def save_booster(folder, name="model.ubj"):
    import xgboost

    folder.mkdir(parents=True, exist_ok=True)
    model = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(ROWS, LABELS), 4)
    model.save_model(folder / name)
    return model.predict(xgboost.DMatrix(QUESTION))


def save_lightgbm(folder, name="model.txt"):
    import lightgbm

    folder.mkdir(parents=True, exist_ok=True)
    data = lightgbm.Dataset(ROWS, LABELS)
    model = lightgbm.train({"objective": "binary", "verbose": -1}, data, 4)
    model.save_model(str(folder / name))
    return model.predict(QUESTION)


def save_catboost(folder, name="model.cbm"):
    import catboost

    folder.mkdir(parents=True, exist_ok=True)
    model = catboost.CatBoostClassifier(iterations=4, verbose=0, allow_writing_files=False)
    model.fit(ROWS, LABELS).save_model(str(folder / name))
    return model.predict(QUESTION)


def v2_request(rows=QUESTION):
    rows = np.asarray(rows)
    data = rows.ravel().tolist()
    return {"inputs": [{"name": "x", "shape": list(rows.shape), "datatype": "FP64", "data": data}]}
