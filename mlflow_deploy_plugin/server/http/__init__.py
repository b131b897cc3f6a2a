"""HTTP: `routes.py` answers a request without a framework; `app.py` (Flask) and `workers/` add the bytes."""
