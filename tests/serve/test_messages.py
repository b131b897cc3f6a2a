"""Identifiers never repeat, not even in a forked process."""

import os

from mlflow_deploy_plugin.serve.messages import new_id


def test_identifiers_never_repeat():
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(id_) == 32 and int(id_, 16) >= 0 for id_ in ids)


def test_forked_process_has_other_identifiers():
    new_id()  # Some ids are prepared, and would exist in both processes.
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 32).decode() != new_id()
    os.close(reading)
    os.close(writing)
