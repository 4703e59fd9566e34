"""A growing table of byte strings and the pivot tokens of each, which compiled loops look up."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from fusion_ray.fused.compiled import compiled

_AT_A_TIME = 1 << 14  # strings that are tokenised together


class StringTable:
    """Entry e is a byte string with its tokens.

    The first entries are fixed when the table is made and are reached by number only; strings looked up later are
    added, and forgotten again when there are too many. Equal strings share an entry: they are compared byte by byte.
    """

    _count: int
    _keys: np.ndarray
    _key_offsets: np.ndarray
    _slots: np.ndarray

    def __init__(self, fixed: Sequence[Sequence[int]], max_strings: int = 1 << 21) -> None:
        self._fixed = len(fixed)
        self._max_strings = max_strings
        self.offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in fixed], dtype=np.int64)])
        self.tokens = np.array([token for tokens in fixed for token in tokens], dtype=np.int32)
        self._fixed_tokens = len(self.tokens)
        self._empty()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def tokens_of(self, entry: int) -> np.ndarray:
        """Pivot tokens of an entry, int32; empty where the pivot cannot write it."""
        return self.tokens[self.offsets[entry] : self.offsets[entry + 1]]

    def look_up(
        self, arena: np.ndarray, offsets: np.ndarray, encode: Callable[[list[bytes]], list[list[int]]]
    ) -> np.ndarray:
        """Find or add strings, given one after the other.

        Args:
            arena: Bytes of all strings, uint8.
            offsets: String q is `arena[offsets[q]:offsets[q + 1]]`, int64.
            encode: Gives the tokens of strings that are new.

        Returns:
            Entry of each string, int64.
        """
        wanted = len(offsets) - 1
        if self._count + wanted > self._max_strings:
            self.offsets = self.offsets[: self._fixed + 1]
            self.tokens = self.tokens[: self._fixed_tokens]
            self._empty()
        self._reserve(wanted, int(offsets[-1]))
        before = self._count
        entries, self._count = _find_or_add(arena, offsets, self._slots, self._keys, self._key_offsets, before)
        if self._count > before:
            self._append(before, encode)
        return entries + self._fixed

    def _append(self, before: int, encode: Callable[[list[bytes]], list[list[int]]]) -> None:
        """Add the tokens of all strings after the first `before` ones; some at a time, for lists of ids are large."""
        lengths, tokens = [], [self.tokens]
        for first in range(before, self._count, _AT_A_TIME):
            cuts = self._key_offsets[first : min(first + _AT_A_TIME, self._count) + 1].tolist()
            raw = self._keys[cuts[0] : cuts[-1]].tobytes()
            found = encode([raw[a - cuts[0] : b - cuts[0]] for a, b in pairwise(cuts)])
            lengths += [len(ids) for ids in found]
            tokens.append(np.array([i for ids in found for i in ids], dtype=np.int32))
        self.offsets = np.concatenate([self.offsets, len(self.tokens) + np.cumsum(lengths, dtype=np.int64)])
        self.tokens = np.concatenate(tokens)

    def _empty(self) -> None:
        self._count = 0
        self._keys = np.zeros(1 << 16, dtype=np.uint8)
        self._key_offsets = np.zeros(1 << 12, dtype=np.int64)
        self._slots = np.full(1 << 13, -1, dtype=np.int64)

    def _reserve(self, strings: int, n_bytes: int) -> None:
        used = int(self._key_offsets[self._count])
        self._keys = _grown(self._keys, used + n_bytes, used)
        self._key_offsets = _grown(self._key_offsets, self._count + strings + 1, self._count + 1)
        if 2 * (self._count + strings) > len(self._slots):
            self._slots = np.full(_power_of_two(2 * (self._count + strings)), -1, dtype=np.int64)
            _place_again(self._slots, self._keys, self._key_offsets, self._count)


def _grown(array: np.ndarray, wanted: int, used: int) -> np.ndarray:
    if wanted <= len(array):
        return array
    larger = np.zeros(_power_of_two(wanted), dtype=array.dtype)
    larger[:used] = array[:used]
    return larger


def _power_of_two(at_least: int) -> int:
    return 1 << max(1, at_least - 1).bit_length()


@compiled
def _find_or_add(
    arena: np.ndarray, offsets: np.ndarray, slots: np.ndarray, keys: np.ndarray, key_offsets: np.ndarray, count: int
) -> tuple[np.ndarray, int]:
    entries = np.empty(len(offsets) - 1, dtype=np.int64)
    for q in range(len(entries)):
        string = arena[offsets[q] : offsets[q + 1]]
        slot = _slot(string, slots, keys, key_offsets)
        if slots[slot] < 0:
            start = key_offsets[count]
            keys[start : start + len(string)] = string
            key_offsets[count + 1] = start + len(string)
            slots[slot] = count
            count += 1
        entries[q] = slots[slot]
    return entries, count


@compiled
def _place_again(slots: np.ndarray, keys: np.ndarray, key_offsets: np.ndarray, count: int) -> None:
    for entry in range(count):
        string = keys[key_offsets[entry] : key_offsets[entry + 1]]
        slots[_slot(string, slots, keys, key_offsets)] = entry


@compiled
def _slot(string: np.ndarray, slots: np.ndarray, keys: np.ndarray, key_offsets: np.ndarray) -> np.int64:
    """The slot that holds this string, or the empty one where it belongs (FNV-1a, linear probing)."""
    code = np.uint64(0xCBF29CE484222325)
    for byte in string:
        code = (code ^ np.uint64(byte)) * np.uint64(0x100000001B3)
    code ^= code >> np.uint64(32)
    mask = len(slots) - 1
    slot = np.int64(code & np.uint64(mask))
    while slots[slot] >= 0:
        entry = slots[slot]
        start, stop = key_offsets[entry], key_offsets[entry + 1]
        if stop - start == len(string):
            same = True
            for i in range(len(string)):
                if keys[start + i] != string[i]:
                    same = False
                    break
            if same:
                return slot
        slot = (slot + 1) & mask
    return slot
