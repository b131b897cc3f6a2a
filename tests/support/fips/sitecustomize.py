"""Processes with this folder in PYTHONPATH have no MD5 and SHA-1 for security, as with
an OpenSSL whose provider refuses them. `hashlib.md5(…, usedforsecurity=False)` works.

FIPS_USES is a file that gets a line for each module that uses one of them.
"""

import hashlib
import hmac
import os
import sys

_WEAK = {"md5", "sha1"}
_TOOLS = {"hypothesis", "_pytest"}
_USES = os.environ.get("FIPS_USES")
_new = hashlib.new
_seen = set()


def _use(name, data, usedforsecurity):
    frame = sys._getframe(2)
    while frame.f_globals["__name__"] in ("hashlib", "hmac"):
        frame = frame.f_back  # type: ignore[assignment]
    module = frame.f_globals["__name__"]
    if module.partition(".")[0] in _TOOLS:
        return _new(name, data, usedforsecurity=False)
    line = f"{name} {'security' if usedforsecurity else 'other'} {module}\n"
    if _USES and line not in _seen:
        _seen.add(line)
        with open(_USES, "a") as uses:
            uses.write(line)
    if usedforsecurity:
        raise ValueError(f"{name} is refused for security")
    return _new(name, data, usedforsecurity=False)


def _new_digest(name, data=b"", *, usedforsecurity=True, **options):
    plain = str(name).lower().replace("-", "")
    if plain in _WEAK:
        return _use(plain, data, usedforsecurity)
    return _new(name, data, usedforsecurity=usedforsecurity, **options)


def _md5(data=b"", *, usedforsecurity=True, **_):
    return _use("md5", data, usedforsecurity)


def _sha1(data=b"", *, usedforsecurity=True, **_):
    return _use("sha1", data, usedforsecurity)


vars(hashlib).update(new=_new_digest, md5=_md5, sha1=_sha1)
vars(hmac)["_hashopenssl"] = None  # Otherwise hmac passes names to OpenSSL, not to hashlib.
