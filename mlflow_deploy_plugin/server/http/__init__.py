"""HTTP: `routes.py` answers a request without any framework, `app.py` is the Flask shell around it."""
