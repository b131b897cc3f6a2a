"""SERVE: the server that answers prediction requests. The server imports neither mlflow
nor pandas.
"""
