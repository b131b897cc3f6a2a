"""gunicorn's workers: the fast one on an event loop (`fast_worker.py`), and the threaded one around Flask."""
