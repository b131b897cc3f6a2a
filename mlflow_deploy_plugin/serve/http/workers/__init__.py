"""gunicorn's workers: the fast worker on an event loop (`fast_worker.py`), and the
threaded worker with Flask.
"""
