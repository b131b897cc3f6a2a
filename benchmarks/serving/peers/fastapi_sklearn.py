"""FastAPI as documented: a pydantic body, and a plain function that runs in the thread
pool.
"""

import os
import pickle

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()
with open(os.environ["MODEL"], "rb") as file:
    model = pickle.load(file)


class Question(BaseModel):
    inputs: list[list[float]]


@app.get("/ping")
def ping():
    return {"status": "ok"}


@app.post("/predict")
def predict(question: Question):
    return {"predictions": model.predict(np.asarray(question.inputs)).tolist()}
