"""State files are written completely or not at all, even on a full disk."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.statedir.files import (
    SERVER_LOCK,
    FileCache,
    claim_state_dir,
    is_locked,
    locked,
    read_or_make_secret,
    read_workers,
    temporary_folder,
    write_atomically,
)
from tests.support.disk import files_of_at_most
from tests.support.refusals import mentions


def test_failed_write_keeps_old_file(tmp_path):
    write_atomically(tmp_path / "state.json", b"old")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_atomically(tmp_path / "state.json", b"x" * 200)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").read_bytes() == b"old"


def test_durable_file_is_on_the_disk_with_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda open_: synced.append(os.fstat(open_).st_ino))
    write_atomically(tmp_path / "file", b"content", is_durable=True)
    assert synced == [(tmp_path / "file").stat().st_ino, tmp_path.stat().st_ino]


def test_state_folder_is_private(tmp_path):
    with claim_state_dir(tmp_path / "home" / "server"):
        assert (tmp_path / "home" / "server").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("refuse", "why"),
    [
        (
            lambda folder: (folder / "no" / "key.pem").read_bytes(),
            "{folder}/no/key.pem: No such file or directory",
        ),
        (lambda folder: socket.create_connection(("127.0.0.1", 1)), "Connection refused"),
    ],
    ids=["a file", "a socket"],
)
def test_system_error_names_state_folder(tmp_path, refuse, why):
    with pytest.raises(InvalidConfig) as refused, claim_state_dir(tmp_path / "server"):
        refuse(tmp_path)
    expected = why.format(folder=tmp_path)
    assert mentions(refused.value.message, f"{tmp_path}/server", expected)


def test_file_as_state_folder_is_refused(tmp_path):
    (tmp_path / "server").touch()
    with pytest.raises(InvalidConfig) as refused, claim_state_dir(tmp_path / "server"):
        pass
    assert mentions(refused.value.message, f"{tmp_path}/server", "File exists")


def test_lock_check_does_not_prevent_start(tmp_path, monkeypatch):
    lock = os.open(tmp_path / SERVER_LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_SH)  # `is_locked` holds such a lock briefly.
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(lock))
    with claim_state_dir(tmp_path):
        assert is_locked(tmp_path / SERVER_LOCK)


def test_workers_are_read_while_folder_is_recreated(
    tmp_path,
):
    """The folder may be removed between the check and the read, which made one of 3,000
    reads fail.
    """
    has_read = threading.Event()

    def remake():
        while not has_read.is_set():
            shutil.rmtree(tmp_path / "workers", ignore_errors=True)
            (tmp_path / "workers").mkdir()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(remake)
        try:
            assert not any(read_workers(tmp_path) for _ in range(15_000))
        finally:
            has_read.set()


def write(cache, digest, content="x", age=0.0):
    path = cache.path(digest)
    with cache.writing(path) as temporary:
        temporary.write_text(content)
    if path.exists():
        os.utime(path, (time.time() - age,) * 2)
    return path


def names(cache):
    return sorted(path.name for path in cache.folder.iterdir())


def test_write_error_leaves_no_file(tmp_path):
    cache = FileCache(tmp_path, ".bin")
    with suppress(ZeroDivisionError), cache.writing(cache.path("aa")) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert names(cache) == []


def test_unwritable_cache_is_ignored(tmp_path):
    (tmp_path / "file").write_text("")
    assert not write(FileCache(tmp_path / "file" / "folder", ".bin"), "aa").exists()


def test_oldest_files_are_evicted(tmp_path):
    by_number = FileCache(tmp_path / "number", ".bin", max_files=2)
    for age, digest in enumerate(["dd", "cc", "bb", "aa"]):
        write(by_number, digest, age=40 - age * 10)
    assert names(by_number) == ["aa.bin", "bb.bin"]

    by_size = FileCache(tmp_path / "size", ".bin", max_bytes=10)
    write(by_size, "aa", "x" * 6, age=20)
    write(by_size, "bb", "x" * 6, age=10)
    assert names(by_size) == ["bb.bin"]
    assert write(
        by_size, "cc", "x" * 99
    ).exists()  # The newest file is kept regardless of its size.


def test_partial_file_is_removed_after_an_hour(tmp_path):
    cache = FileCache(tmp_path, ".bin")
    for name, age in ((".old.bin", 4000), (".new.bin", 10)):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write(cache, "aa")
    assert names(cache) == [".new.bin", "aa.bin"]


HOLD = """
import sys, time
from pathlib import Path
from mlflow_deploy_plugin.core.statedir.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_is_visible_and_leaves_no_file(tmp_path):
    path = tmp_path / "deep" / "lock"

    with locked(path):
        assert is_locked(path)

    assert not is_locked(path)
    assert not path.exists()


def test_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    assert is_locked(path)

    holder.kill()
    holder.communicate()

    assert not is_locked(path)
    with locked(path):
        assert is_locked(path)


def test_lock_has_one_holder(tmp_path):
    path = tmp_path / "lock"
    inside = []
    most = []

    def work(number):
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


LEFT = """
import os, signal, tempfile
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
with temporary_folder("ours-") as folder:
    (folder / "file").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_abandoned_temporary_folder_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    subprocess.run(
        [sys.executable, "-c", LEFT], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False
    )
    (tmp_path / "theirs-1").mkdir()
    (left,) = (path for path in tmp_path.glob("ours-*") if path.is_dir())

    with temporary_folder("ours-") as first:
        assert not left.exists()
        (first / "file").touch()
        with temporary_folder("ours-") as second:
            assert sorted(os.listdir(tmp_path)) == sorted(
                [first.name, f"{first.name}.lock", second.name, f"{second.name}.lock", "theirs-1"]
            )
            assert os.listdir(first) == ["file"]

    assert os.listdir(tmp_path) == ["theirs-1"]


def test_link_in_temporary_folder_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "ours-1.lock").symlink_to(tmp_path / "made")  # Any user may create links in /tmp.

    with temporary_folder("ours-"):
        assert not (tmp_path / "made").exists()


def test_secret_is_created_once_and_private(tmp_path):
    path = tmp_path / "key"
    start = threading.Barrier(8)

    def make(number):
        start.wait()
        return read_or_make_secret(path, b"secret %d" % number)

    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(make, range(8)))

    assert made == {path.read_bytes()}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["key"]


def test_waiting_for_lock_times_out(tmp_path):
    with (
        locked(tmp_path / "lock"),
        pytest.raises(BlockingIOError),
        locked(tmp_path / "lock", seconds=0.2),
    ):
        pass
