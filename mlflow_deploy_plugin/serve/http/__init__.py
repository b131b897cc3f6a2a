"""HTTP: `routes.py` answers requests without a framework; `app.py` (Flask) and
`workers/` read and write the bytes.
"""
