"""A client of a running endpoint that returns predictions and explanations, and sends
labels.

    with Client("http://localhost:8123") as client:
        late = client.predict(frame)
        client.feedback(late, frame["was_late"])

Frames and arrays are sent as Arrow, plain Python values as JSON. After a server has
refused Arrow, as MLflow's own server does, the client sends it only JSON. The client
imports neither mlflow nor pandas.
"""
