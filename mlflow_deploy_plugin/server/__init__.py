"""SERVE: the server that answers prediction requests. It imports neither mlflow nor pandas."""
