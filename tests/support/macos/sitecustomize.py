"""Simulate Python on a Mac in Python on Linux, for programs with this folder on
PYTHONPATH.

The names that macOS lacks are from typeshed's conditions on `sys.platform`. The
simulation does not include the kernel, the file system, fork and the dynamic linker of
macOS. psutil, whose compiled part is for Linux, still sees /proc.
"""

# ruff: noqa: E402
import select

for name in [one for one in vars(select) if one.lower().startswith("epoll")] + [
    "POLLRDHUP",
    "POLLMSG",
]:
    delattr(select, name)  # This must precede the import of `selectors`, which `socket` imports.

import builtins
import contextlib
import ctypes
import io
import mmap
import os
import platform
import posix
import resource
import signal
import socket
import sys
import sysconfig
import time

_OS = (
    "copy_file_range eventfd eventfd_read eventfd_write fdatasync getrandom getresgid "
    "getresuid getxattr listxattr memfd_create pidfd_open pipe2 posix_fadvise posix_fallocate "
    "removexattr sched_getaffinity sched_getparam sched_getscheduler sched_rr_get_interval "
    "sched_setaffinity sched_setparam sched_setscheduler setns setresgid setresuid setxattr "
    "splice timerfd_create unshare O_DIRECT O_LARGEFILE O_NOATIME O_PATH O_RSYNC O_TMPFILE "
    "P_PIDFD"
)
_OLD_OS = "" if sys.version_info >= (3, 13) else " waitid waitid_result"
_MISSING = {
    os: _OS + _OLD_OS,
    posix: _OS + _OLD_OS,
    mmap: (
        "MAP_DENYWRITE MAP_EXECUTABLE MAP_POPULATE MAP_STACK MADV_DONTFORK MADV_HUGEPAGE "
        "MADV_REMOVE"
    ),
    resource: (
        "prlimit RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_OFILE RLIMIT_RTPRIO RLIMIT_SIGPENDING "
        "RUSAGE_THREAD"
    ),
    signal: (
        "SIGCLD SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT pidfd_send_signal sigtimedwait "
        "sigwaitinfo"
    ),
    socket: (
        "MSG_CMSG_CLOEXEC MSG_ERRQUEUE MSG_FASTOPEN MSG_MORE SOCK_CLOEXEC SOCK_NONBLOCK "
        "SO_BINDTODEVICE SO_DOMAIN SO_INCOMING_CPU SO_MARK SO_PASSCRED SO_PEERCRED SO_PRIORITY "
        "SO_PROTOCOL TCP_CONGESTION TCP_CORK TCP_DEFER_ACCEPT TCP_INFO TCP_KEEPIDLE TCP_LINGER2 "
        "TCP_QUICKACK TCP_USER_TIMEOUT"
    ),
    time: "CLOCK_BOOTTIME CLOCK_TAI",
}
_LIBC = (
    "prctl",
    "signalfd",
    "epoll_create1",
    "eventfd",
    "inotify_init",
    "mallopt",
    "malloc_trim",
    "memfd_create",
)
_HIDDEN = ("/proc", "/sys", "/dev/shm")


with contextlib.suppress(ImportError):  # A Python of another environment may not have psutil.
    import psutil  # noqa: F401 - psutil must be imported while the platform is still Linux, for which it was compiled.
sysconfig.get_config_vars()

for module, names in _MISSING.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)


def _hide(owner, name):
    """Make paths in `_HIDDEN` nonexistent for a file function, unless psutil calls the
    function.
    """
    real = getattr(owner, name)

    def hiding(path, *arguments, **options):
        text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if str(text).startswith(_HIDDEN) and not sys._getframe(1).f_globals["__name__"].startswith(
            "psutil"
        ):
            if name == "access":
                return False
            raise FileNotFoundError(2, "No such file or directory", text)
        return real(path, *arguments, **options)

    setattr(owner, name, hiding)


for name in ("access", "listdir", "lstat", "open", "readlink", "scandir", "stat"):
    _hide(os, name)
_hide(io, "open")
builtins.open = io.open

_symbol = ctypes.CDLL.__getattr__  # type: ignore[attr-defined]
_dlopen = ctypes._dlopen  # type: ignore[attr-defined]


def _macos_library(name, mode):
    """Load the Linux library for a macOS library name, as torch and the boosters
    request their own libraries.
    """
    return int(_dlopen(name.replace(".dylib", ".so") if isinstance(name, str) else name, mode))


def _macos_symbol(library, name):
    if name in _LIBC:
        raise AttributeError(f"dlsym(RTLD_DEFAULT, {name}): symbol not found")
    return _symbol(library, name)


ctypes.CDLL.__getattr__ = _macos_symbol  # type: ignore[method-assign]
ctypes._dlopen = _macos_library  # type: ignore[attr-defined]
_killpg = os.killpg


def _macos_killpg(leader, number):
    """Refuse a group of zombies, as killpg1 of XNU does."""
    import psutil

    states = [
        process.info["status"]
        for process in psutil.process_iter(["status"])
        if _group(process.pid) == leader
    ]
    if states and all(state == psutil.STATUS_ZOMBIE for state in states):
        raise PermissionError(1, "Operation not permitted")
    _killpg(leader, number)


def _group(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


os.killpg = posix.killpg = _macos_killpg
_UNAME = os.uname_result(
    ("Darwin", os.uname().nodename, "24.6.0", "Darwin Kernel Version 24.6.0", "arm64")
)
os.uname = posix.uname = lambda: _UNAME
platform.mac_ver = lambda *_, **__: ("15.6", ("", "", ""), "arm64")
sys.platform = "darwin"
