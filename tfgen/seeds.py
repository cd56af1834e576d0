"""One integer seed -> named independent random streams, and counter-based noise for generators."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

# Threefry-2x32's rotation distances and parity constant (Salmon et al., SC'11, table 2, section 3).
_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
Key = tuple[Any, Any]  # of counter-based noise: two uint32 arrays


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream called `names`: equal inputs, equal seeds, on every machine."""
    text = "\0".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The NumPy stream called `names`; streams of different names are independent."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))


def key_of(seed: int) -> Key:
    """The key of counter-based noise that a seed stands for, as uint32 arrays [1].

    Args:
      seed: any integer; of larger ones than 64 bits the low 64 count.
    """
    low = int(seed) & 0xFFFFFFFFFFFFFFFF
    return np.array([low & 0xFFFFFFFF], np.uint32), np.array([low >> 32], np.uint32)


def fork(xp: Any, key: Key, *names: str | int) -> Key:
    """The key of the stream called `names`, what `derive` is to seeds; a graph can compute it.

    Args:
      xp: NumPy or `nets.tensors`.
      key: two uint32 arrays of one shape.
      names: of the stream.
    """
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    words = (xp.asarray(np.frombuffer(digest[i : i + 4], "<u4")) for i in (0, 4))
    return threefry2x32(xp, key, (next(words), next(words)))


def forked(seed: int, *names: str | int) -> int:
    """The seed whose key is the fork of this seed's."""
    low, high = fork(np, key_of(seed), *names)
    return int(low[0]) | int(high[0]) << 32


def threefry2x32(xp: Any, key: Key, counter: tuple[Any, Any]) -> Key:
    """Threefry-2x32 with 20 rounds (Salmon et al., SC'11): a random function of (key, counter).

    Written with uint32 addition, shifts and bitwise operations alone, so that NumPy and a served
    graph compute the same words.

    Args:
      xp: NumPy or `nets.tensors`.
      key: two uint32 arrays.
      counter: two uint32 arrays that broadcast with the key.
    """
    u32 = xp.uint32
    keys = (key[0], key[1], key[0] ^ key[1] ^ xp.asarray(_PARITY, dtype=u32))
    x0, x1 = counter[0] + keys[0], counter[1] + keys[1]
    for round_ in range(20):
        left = _ROTATIONS[round_ % 8]
        x0 = x0 + x1
        turned = xp.left_shift(x1, xp.asarray(left, dtype=u32))
        x1 = turned | xp.right_shift(x1, xp.asarray(32 - left, dtype=u32))
        x1 = x1 ^ x0
        if round_ % 4 == 3:
            injection = round_ // 4 + 1
            x0 = x0 + keys[injection % 3]
            x1 = x1 + keys[(injection + 1) % 3] + xp.asarray(injection, dtype=u32)
    return x0, x1


def counter_words(xp: Any, key: Key, rows: int, words: int) -> Any:
    """Random uint32 words [keys, rows, words]; each depends on its key and its own place alone.

    Args:
      xp: NumPy or `nets.tensors`.
      key: two uint32 arrays [keys].
      rows: how many rows each key gets.
      words: how many words a row gets.
    """
    pairs = (words + 1) // 2
    numbers = (np.arange(n, dtype=np.uint32) for n in (rows, pairs))
    row, column = (xp.asarray(n) for n in numbers)
    counter = (row[None, :, None], column[None, None, :])
    keys = (key[0][:, None, None], key[1][:, None, None])
    return xp.concatenate(threefry2x32(xp, keys, counter), axis=2)[:, :, :words]


def counter_uniform(xp: Any, key: Key, rows: int, numbers: int) -> Any:
    """Uniform numbers between 0 and 1 of rows 0 .. rows - 1, float64 [keys, rows, numbers]."""
    words = counter_words(xp, key, rows, numbers)
    return (xp.astype(words, xp.float64) + 0.5) / 2.0**32
