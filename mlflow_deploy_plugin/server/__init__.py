"""SERVE: requests in, answers out. Imports neither mlflow nor pandas."""
