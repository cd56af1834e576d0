"""One integer seed -> named independent random streams, and counter-based noise for generators."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

# Threefry-2x32's rotation distances and parity constant (Salmon et al., SC'11, table 2, section 3).
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names`: equal inputs, equal seeds, on every machine."""
    text = "\0".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The NumPy stream called `names`; streams of different names are independent."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))


def threefry2x32(xp: Any, key: tuple[Any, Any], counter: tuple[Any, Any]) -> tuple[Any, Any]:
    """Threefry-2x32 with 20 rounds (Salmon et al., SC'11): a random function of (key, counter).

    Written with uint32 addition, shifts and bitwise operations alone, so that NumPy and a served
    graph compute the same words.

    Args:
      xp: NumPy, or a module with the same operators on its uint32 arrays.
      key: two uint32 arrays.
      counter: two uint32 arrays that broadcast with the key.
    """
    u32 = xp.uint32
    keys = (key[0], key[1], key[0] ^ key[1] ^ xp.asarray(_PARITY, dtype=u32))
    x0, x1 = counter[0] + keys[0], counter[1] + keys[1]
    for round_ in range(20):
        left = _ROTATIONS[round_ % 8]
        x0 = x0 + x1
        x1 = (x1 << xp.asarray(left, dtype=u32)) | (x1 >> xp.asarray(32 - left, dtype=u32))
        x1 = x1 ^ x0
        if round_ % 4 == 3:
            injection = round_ // 4 + 1
            x0 = x0 + keys[injection % 3]
            x1 = x1 + keys[(injection + 1) % 3] + xp.asarray(injection, dtype=u32)
    return x0, x1


def counter_words(xp: Any, seed: int, rows: Any, words: int) -> Any:
    """Random uint32 words [rows, words]; a row depends on (seed, its own number) and nothing else.

    Args:
      xp: NumPy or a compatible module.
      seed: the answer's seed; any Python integer of at most 64 bits.
      rows: uint32 row numbers [rows].
      words: how many words each row gets.
    """
    u32 = xp.uint32
    seed = int(seed) & 0xFFFFFFFFFFFFFFFF
    key = (
        xp.asarray(seed & 0xFFFFFFFF, dtype=u32),
        xp.asarray(seed >> 32, dtype=u32),
    )
    pairs = (words + 1) // 2
    columns = xp.asarray(np.arange(pairs, dtype=np.uint32))
    first, second = threefry2x32(xp, key, (rows[:, None], columns[None, :]))
    return xp.concatenate([first, second], axis=1)[:, :words]  # [rows, words]


def counter_uniform(seed: int, count: int, numbers: int) -> np.ndarray:
    """Uniform numbers between 0 and 1 of rows 0 .. count - 1, float64 [count, numbers]."""
    words = counter_words(np, seed, np.arange(count, dtype=np.uint32), numbers)
    return np.asarray((words.astype(np.float64) + 0.5) / 2.0**32)
