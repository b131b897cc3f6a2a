"""Locks between processes: held by one, gone with it."""

import subprocess
import sys
import threading
from pathlib import Path

from mlflow_deploy_plugin.statedir import is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from mlflow_deploy_plugin.statedir import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_seen_while_it_is_held_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"

    with locked(path):
        assert is_locked(path)

    assert not is_locked(path)
    assert not path.exists()


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert is_locked(path)

    holder.kill()
    holder.communicate()

    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)


def test_many_who_want_it_hold_it_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            with locked(path):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert max(most) == 1
    assert len(most) == 200
