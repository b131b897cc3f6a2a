"""The configuration of nginx that sends each model to its replicas."""

import re
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.parts import ProxySpec, ServerSpec

_WORD = re.compile(r"[\w.:/@~+\[\]-]*")
"""A word of nginx's configuration without quotes and variables."""


def _checked_word(value: object) -> object:
    """Return a value of the configuration. Raises InvalidConfig if it would be more
    than a word, because nginx has no quotes for a $.
    """
    if isinstance(value, str) and not _WORD.fullmatch(value):
        raise InvalidConfig(
            f"{value!r} cannot be written in the configuration of nginx: letters, digits and "
            "._:/@~+- are expected in addresses and paths of files"
        )
    return value


_TEMPLATES = Environment(
    finalize=_checked_word,
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)
_ALL = 10_000
"""All models, in the hundredths of a percent that nginx's split_clients accepts."""
_POINTS = 160
"""nginx's points of a server on the ring."""
_NEXT_POINTS = 20
"""The points that nginx tries before it ignores the ring."""
_TRIED_KEYS = 20_000

Addresses = Mapping[str, str]
"""`http`, and `grpc` if the server has it → HOST:PORT."""


def nginx_conf(
    proxy: ProxySpec,
    server: ServerSpec,
    listen: Addresses,
    replicas: Sequence[Addresses],
    is_balanced: bool = False,
) -> str:
    """Return the configuration of nginx. Raises InvalidConfig if an address or a path
    is not one word for nginx.

    Args:
        server: the server of each replica. nginx reads its certificate at the paths of
            the spec.
        listen: the addresses of nginx.
        replicas: the addresses of each replica.
        is_balanced: True if all callers have the address of a balancer. nginx does not
            limit the requests of an address then.
    """
    upstreams = {}
    for protocol in listen:
        addresses = [replica[protocol] for replica in replicas]
        upstreams[f"{protocol}_replicas"] = addresses, ring_keys(addresses)
    timeout = max(server.request_timeout_seconds, server.default_timeout_microseconds // 1_000_000)
    return _TEMPLATES.get_template("nginx.conf").render(
        n=len(replicas),
        proxy=proxy,
        server=server,
        listen={"grpc": None, **listen},
        upstreams=upstreams,
        shares=shares(len(replicas)),
        timeout=timeout,
        is_balanced=is_balanced,
    )


def shares(number: int) -> list[tuple[int, int]]:
    """Return ranges of the models as (replica, hundredths of a percent), equal in sum
    for each replica. From `number` to `number` + 1, no model moves between two of the
    earlier replicas.
    """
    ranges = [(0, _ALL)]
    for added in range(1, number):
        given = _ALL // (added * (added + 1))
        for replica in range(added):
            places = [place for place, (owner, _) in enumerate(ranges) if owner == replica]
            largest = max(places, key=lambda place: ranges[place][1])
            kept = ranges[largest][1] - given
            ranges[largest : largest + 1] = [(replica, kept), (added, given)]
    return ranges


def ring_keys(addresses: Sequence[str]) -> dict[tuple[int, int], str]:
    """Return a key on nginx's ring for each pair (first replica, second replica). It
    leads to the first, and to the second if the first is dead.
    """
    points = ring(addresses)
    keys: dict[tuple[int, int], str] = {}
    pairs = list(permutations(range(len(addresses)), 2))
    for number in range(_TRIED_KEYS):
        begin = bisect_left(points, (zlib.crc32(str(number).encode()), 0))
        following = [*points, *points][begin : begin + _NEXT_POINTS]
        pair = tuple(dict.fromkeys(replica for _, replica in following))[:2]
        if len(pair) == 2:
            keys.setdefault(pair, str(number))
        if len(keys) == len(pairs):
            break
    # The ring of many replicas may lack a pair, whose first replica then has another
    # second.
    of_first = {first: key for (first, _), key in keys.items()}
    return {pair: keys.get(pair, of_first[pair[0]]) for pair in pairs}


def ring(addresses: Sequence[str]) -> list[tuple[int, int]]:
    """Return the sorted points of nginx's `hash … consistent` as (point, number of its
    address). The ring is that of Cache::Memcached::Fast, by
    https://nginx.org/en/docs/http/ngx_http_upstream_module.html#hash
    """
    points: dict[int, int] = {}
    for number, address in enumerate(addresses):
        host, _, port = address.rpartition(":")
        base = zlib.crc32(f"{host}\0{port}".encode())
        point = 0
        for _ in range(_POINTS):
            point = zlib.crc32(point.to_bytes(4, "little"), base)
            points.setdefault(point, number)
    return sorted(points.items())
