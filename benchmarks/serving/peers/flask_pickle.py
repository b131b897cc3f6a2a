"""The usual snippet: a pickled scikit-learn model behind Flask; run by gunicorn with
threads.
"""

import os
import pickle

import numpy as np
from flask import Flask, jsonify, request

app = Flask(__name__)
with open(os.environ["MODEL"], "rb") as file:
    model = pickle.load(file)


@app.get("/ping")
def ping():
    return jsonify(status="ok")


@app.post("/predict")
def predict():
    inputs = np.asarray(request.get_json()["inputs"], dtype=np.float64)
    return jsonify(predictions=model.predict(inputs).tolist())
