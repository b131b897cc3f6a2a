"""RUN: a saved model as a function of named arrays. Imports neither mlflow, pandas nor any training framework."""
