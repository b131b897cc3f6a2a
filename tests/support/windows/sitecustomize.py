"""Simulate Python on Windows in Python on Linux, for programs with this folder on
PYTHONPATH.

The modules of onnxserve import `os`, `signal`, `socket` and `sys` without the names
that Windows lacks (from typeshed's conditions on `sys.platform`), and stand-ins for
names of Windows. The simulation does not include the paths, the file system and the
console of Windows, nor the Windows builds of the libraries.
"""

import builtins
import fcntl
import os
import signal
import socket
import subprocess
import sys
from multiprocessing import connection
from types import SimpleNamespace

_ABSENT = (
    "chown fchown fork getegid geteuid getgid getloadavg getpgid getpgrp getsid getuid killpg "
    "mkfifo nice posix_fallocate pread pwrite register_at_fork sched_getaffinity "
    "sched_setaffinity setpgid setsid statvfs sysconf uname O_CLOEXEC O_DIRECTORY O_NOFOLLOW "
    "O_NONBLOCK WNOHANG SIGALRM SIGCHLD SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 SIG_SETMASK alarm "
    "pthread_sigmask setitimer AF_UNIX SO_REUSEPORT recv_fds send_fds"
)
_modules = dict.fromkeys(["fcntl", "grp", "gunicorn", "pwd", "resource", "termios", "uvloop"])
for _real in (os, signal, socket, sys):
    _names = {name: value for name, value in vars(_real).items() if name not in _ABSENT.split()}
    _modules[_real.__name__] = SimpleNamespace(**_names)
_modules["sys"].platform = "win32"  # type: ignore[union-attr]
_modules["os"].set_handle_inheritable = os.set_inheritable  # type: ignore[union-attr]
_modules["msvcrt"] = SimpleNamespace(
    LK_NBLCK=fcntl.LOCK_EX | fcntl.LOCK_NB, locking=lambda file, mode, _: fcntl.flock(file, mode)
)
connection.PipeConnection = connection.Connection  # type: ignore[attr-defined]
subprocess.STARTUPINFO = SimpleNamespace  # type: ignore[attr-defined]
_popen = subprocess.Popen.__init__
_import = builtins.__import__


def _start(self, *args, startupinfo=None, **options):
    if startupinfo:
        options["pass_fds"] = startupinfo.lpAttributeList["handle_list"]
    _popen(self, *args, **options)


def _import_on_windows(name, globals=None, *others, **options):
    package = (globals or {}).get("__package__") or ""
    if name not in _modules or not package.startswith("mlflow_deploy_plugin"):
        return _import(name, globals, *others, **options)
    if _modules[name] is None:
        raise ModuleNotFoundError(name=name)
    return _modules[name]


subprocess.Popen.__init__ = _start  # type: ignore[method-assign]
builtins.__import__ = _import_on_windows
