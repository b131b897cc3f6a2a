"""The side processes of a worker. In a server, only these processes import mlflow
and pandas.
"""
