"""A saved model as a function of named arrays. Imports neither mlflow, pandas nor a
training framework.
"""
