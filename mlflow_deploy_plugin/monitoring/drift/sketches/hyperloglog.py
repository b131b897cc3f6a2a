"""The number of different values of a column, from a few hundred bytes that can be merged: HyperLogLog.

Flajolet, Fusy, Gandouet, Meunier: HyperLogLog, AofA 2007. 1,024 registers of one byte: a standard error of 1.04 / 32 =
3.3 %, and linear counting below 2,560 values (Whang, Vander-Zanden, Taylor: TODS 1990), which is nearly exact for few.
64-bit hashes need no correction for large counts. Two sketches merge by the larger of each pair of registers, exactly.
"""

from collections.abc import Sequence

import numpy as np
from pandas.util import hash_array

from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array

_BITS = 10
REGISTERS = 1 << _BITS
_ALPHA = 0.7213 / (1 + 1.079 / REGISTERS)


def hash_texts(texts: Sequence[str] | Array) -> Array:
    """Return [N] uint64, evenly spread: SipHash with pandas' fixed key, the same in every process."""
    hashes: Array = hash_array(np.asarray(texts, dtype=object), categorize=False)
    return hashes


def hash_numbers(values: Array) -> Array:
    """Return [N] uint64 of [N] float64, evenly spread; both zeros are one. splitmix64 (Steele, Lea, Flood: OOPSLA
    2014).
    """
    bits: Array = (np.asarray(values, dtype=np.float64) + 0.0).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashes: Array = bits ^ (bits >> np.uint64(31))
    return hashes


def count_registers(hashes: Array, groups: Array, count: int) -> Array:
    """Return [count, REGISTERS] uint8: a sketch of the values of each group.

    Args:
        hashes: [N] uint64.
        groups: [N] int64, the group of each, from 0 to count - 1.
    """
    registers = np.zeros(count * REGISTERS, np.uint8)
    buckets = (hashes >> np.uint64(64 - _BITS)).astype(np.int64)
    rest = (hashes & np.uint64((1 << (64 - _BITS)) - 1)) >> np.uint64(1)  # 53 bits: a float64 holds them exactly
    _, length = np.frexp(rest.astype(np.float64))
    np.maximum.at(registers, groups * REGISTERS + buckets, (64 - _BITS - length).astype(np.uint8))
    return registers.reshape(count, REGISTERS)


def estimate_distinct(registers: Array) -> float:
    """Return how many different values the registers [REGISTERS] stand for."""
    raw = _ALPHA * REGISTERS**2 / float(np.ldexp(1.0, -registers.astype(np.int64)).sum())
    empty = int(np.count_nonzero(registers == 0))
    if raw <= 2.5 * REGISTERS and empty:
        return REGISTERS * float(np.log(REGISTERS / empty))
    return raw
