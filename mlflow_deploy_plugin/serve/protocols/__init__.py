"""Convert bytes and headers to named arrays and back. Each protocol is a module.

`table.py` lists the `Protocol` of each module; `serve/inference/pipeline.py` uses it
for a request.
"""
