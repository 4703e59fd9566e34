"""The compiled loop of exact alignment: from the leaves of a group to distributions over pivot tokens."""

from typing import NamedTuple

import numpy as np

from fusion_ray.fused.align.projector import Shares
from fusion_ray.fused.compiled import compiled


class Inputs(NamedTuple):
    """What the loop reads; G groups, S source positions, X positions with leaves of several tokens."""

    pivot_start: np.ndarray
    pivot_stop: np.ndarray
    source_start: np.ndarray
    source_stop: np.ndarray
    fold_G: np.ndarray
    skip_G: np.ndarray
    pivot_ids: np.ndarray
    source_ids: np.ndarray
    ids_SK: np.ndarray
    logprobs_SK: np.ndarray
    real_logprobs_S: np.ndarray
    extra_S: np.ndarray
    entries_XK: np.ndarray
    tokens: np.ndarray
    token_offsets: np.ndarray
    pivot_flat: np.ndarray
    pivot_offsets: np.ndarray
    source_offsets: np.ndarray


class Outputs(NamedTuple):
    """What the loop fills; `violation_G` is in nats."""

    ids_TK: np.ndarray
    logprobs_TK: np.ndarray
    real_logprobs_T: np.ndarray
    source_nll_G: np.ndarray
    violation_G: np.ndarray


class Scratch(NamedTuple):
    """Room for one group.

    Attributes:
        entry, log_mass, matched: Its leaves: entry of the string table, natural log of the mass, and how many pivot
            tokens they begin with.
        unknown: Log mass of unknown bytes at each of its source positions.
        slot_V: Place of a pivot token in `found`, -1 where it has none.
        found, found_mass: Pivot tokens met at one position, and the log of their mass.
    """

    entry: np.ndarray
    log_mass: np.ndarray
    matched: np.ndarray
    unknown: np.ndarray
    slot_V: np.ndarray
    found: np.ndarray
    found_mass: np.ndarray


def make_scratch(longest: int, top_k: int, vocabulary: int) -> Scratch:
    """Room for groups of up to `longest` source tokens with `top_k` entries each."""
    size = longest * top_k + 1
    return Scratch(
        np.empty(size, np.int64), np.empty(size), np.empty(size, np.int64), np.empty(max(longest, 1)),
        np.full(vocabulary, -1, np.int32), np.empty(size, np.int64), np.empty(size),
    )  # fmt: skip


@compiled
def project_groups(inputs: Inputs, shares: Shares, unigram: bool, scratch: Scratch, outputs: Outputs) -> None:
    """Fill the outputs at every pivot position of every group that is not skipped."""
    for g in range(len(inputs.pivot_start)):
        if inputs.skip_G[g]:
            continue
        start, stop = inputs.pivot_start[g], inputs.pivot_stop[g]
        leaves, path = _gather_leaves(inputs, g, stop - start > 1, scratch)
        projected = 0.0
        below = 0.0  # log of the unknown mass that begins with the tokens before this position
        for j in range(stop - start):
            above = -np.inf
            if unigram and j + 1 < stop - start and inputs.fold_G[g] == 0:
                above = _unknown_mass(inputs, g, j + 1, shares, scratch)
            _project_position(inputs, start, j, leaves, path, below, above, scratch, outputs)
            projected += np.float64(outputs.real_logprobs_T[start + j])
            below = above
        outputs.source_nll_G[g] = -path
        outputs.violation_G[g] = max(0.0, path - projected)


@compiled
def _gather_leaves(inputs: Inputs, g: int, inside: bool, scratch: Scratch) -> tuple[int, float]:
    """Collect the leaves beside the real path; returns their number and the log mass of the real path."""
    count = 0
    path = 0.0
    start = inputs.source_start[g]
    for s in range(start, inputs.source_stop[g]):
        real = inputs.source_ids[s]
        row = inputs.extra_S[s]
        known, real_is_kept = 0.0, False
        for k in range(inputs.ids_SK.shape[1]):
            token = inputs.ids_SK[s, k]
            logprob = np.float64(inputs.logprobs_SK[s, k])
            if token < 0 or logprob == -np.inf:
                continue
            if token == real:
                real_is_kept = True
                known += np.exp(logprob)
                continue
            entry = np.int64(token) if row < 0 else inputs.entries_XK[row, k]
            if entry < 0 or inputs.token_offsets[entry] == inputs.token_offsets[entry + 1]:
                continue
            if inside:
                known += np.exp(logprob)
            scratch.entry[count] = entry
            scratch.log_mass[count] = path + logprob
            scratch.matched[count] = 0
            count += 1
        if inside:  # the tail matters at later pivot positions only
            if not real_is_kept:
                known += np.exp(np.float64(inputs.real_logprobs_S[s]))
            scratch.unknown[s - start] = path + np.log(1.0 - known) if known < 1.0 else -np.inf
        path += np.float64(inputs.real_logprobs_S[s])
    return count, path


@compiled
def _project_position(
    inputs: Inputs,
    start: int,
    j: int,
    leaves: int,
    path: float,
    below: float,
    above: float,
    scratch: Scratch,
    outputs: Outputs,
) -> None:
    """Project position j of a group: weigh every leaf that begins with the tokens before it."""
    real = inputs.pivot_ids[start + j]
    whole = 0.0 if j == 0 else _log_mass_of(j, leaves, path, below, scratch)
    count = 0
    real_logprob = path - whole
    for leaf in range(leaves):
        if scratch.matched[leaf] != j:
            continue
        first = inputs.token_offsets[scratch.entry[leaf]]
        if first + j >= inputs.token_offsets[scratch.entry[leaf] + 1]:
            continue  # the leaf ends here: nothing is known of what follows it
        token = inputs.tokens[first + j]
        mass = scratch.log_mass[leaf] - whole
        if token == real:
            real_logprob = np.logaddexp(real_logprob, mass)
            scratch.matched[leaf] = j + 1
        elif scratch.slot_V[token] < 0:
            scratch.slot_V[token] = count
            scratch.found[count] = token
            scratch.found_mass[count] = mass
            count += 1
        else:
            slot = scratch.slot_V[token]
            scratch.found_mass[slot] = np.logaddexp(scratch.found_mass[slot], mass)
    if above > -np.inf:
        real_logprob = np.logaddexp(real_logprob, above - whole)
    real_logprob = min(real_logprob, 0.0)
    outputs.real_logprobs_T[start + j] = real_logprob
    for i in range(count):
        scratch.slot_V[scratch.found[i]] = -1
    scratch.found[count] = real
    scratch.found_mass[count] = real_logprob
    _keep_largest(scratch, count + 1, outputs.ids_TK[start + j], outputs.logprobs_TK[start + j])


@compiled
def _log_mass_of(j: int, leaves: int, path: float, below: float, scratch: Scratch) -> float:
    """Log of the mass of everything that begins with the first j pivot tokens of the group."""
    top = max(path, below)
    for leaf in range(leaves):
        if scratch.matched[leaf] == j:
            top = max(top, scratch.log_mass[leaf])
    total = np.exp(path - top)
    if below > -np.inf:
        total += np.exp(below - top)
    for leaf in range(leaves):
        if scratch.matched[leaf] == j:
            total += np.exp(scratch.log_mass[leaf] - top)
    return top + np.log(total)


@compiled
def _keep_largest(scratch: Scratch, count: int, ids: np.ndarray, logprobs: np.ndarray) -> None:
    """Write the largest entries in order, equal ones by id."""
    kept = 0
    for i in range(count):
        token, mass = scratch.found[i], np.float32(scratch.found_mass[i])
        if mass == -np.inf:
            continue
        at = kept
        while at > 0 and (logprobs[at - 1] < mass or (logprobs[at - 1] == mass and ids[at - 1] > token)):
            at -= 1
        if at == len(ids):
            continue
        kept = min(kept + 1, len(ids))
        for later in range(kept - 1, at, -1):
            ids[later], logprobs[later] = ids[later - 1], logprobs[later - 1]
        ids[at], logprobs[at] = token, mass
    for k in range(kept, len(ids)):
        ids[k], logprobs[k] = -1, -np.inf


@compiled
def _unknown_mass(inputs: Inputs, g: int, j: int, shares: Shares, scratch: Scratch) -> float:
    """Log of the unknown mass that begins with the group's first j pivot tokens, by the corpus share of its bytes."""
    p, s = inputs.pivot_start[g], inputs.source_start[g]
    text = _bytes_of(inputs.pivot_ids, p, j, inputs.pivot_flat, inputs.pivot_offsets)
    total = 0.0
    prefix = 0
    for i in range(inputs.source_stop[g] - s):
        log_mass = scratch.unknown[i]
        if log_mass > -np.inf:
            if i == 0:
                share = _share(
                    inputs.pivot_ids[p : p + j], shares.token_flat, shares.token_offsets, shares.token_running
                )
            elif prefix >= len(text):
                share = 1.0
            else:
                share = _share(text[prefix:], shares.byte_flat, shares.byte_offsets, shares.byte_running)
            total += np.exp(log_mass) * share
        real = inputs.source_ids[s + i]
        if inputs.source_offsets[real + 1] == inputs.source_offsets[real]:
            break  # a token of unknown bytes: nothing is known of what follows it
        prefix += inputs.source_offsets[real + 1] - inputs.source_offsets[real]
    return np.log(total) if total > 0.0 else -np.inf


@compiled
def _bytes_of(ids: np.ndarray, start: int, count: int, flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    size = 0
    for t in range(start, start + count):
        size += offsets[ids[t] + 1] - offsets[ids[t]]
    text = np.empty(size, dtype=np.uint8)
    size = 0
    for t in range(start, start + count):
        for i in range(offsets[ids[t]], offsets[ids[t] + 1]):
            text[size] = flat[i]
            size += 1
    return text


@compiled
def _share(prefix: np.ndarray, flat: np.ndarray, offsets: np.ndarray, running: np.ndarray) -> float:
    """Share of the rows that begin with `prefix`, rows being in lexicographic order."""
    return running[_first_row(prefix, flat, offsets, 1)] - running[_first_row(prefix, flat, offsets, 0)]


@compiled
def _first_row(prefix: np.ndarray, flat: np.ndarray, offsets: np.ndarray, beyond: int) -> int:
    """The first row that begins with `prefix` or comes after it; with beyond = 1, the first after all of those."""
    low, high = 0, len(offsets) - 1
    while low < high:
        middle = (low + high) // 2
        if _order(flat[offsets[middle] : offsets[middle + 1]], prefix) >= beyond:
            high = middle
        else:
            low = middle + 1
    return low


@compiled
def _order(row: np.ndarray, prefix: np.ndarray) -> int:
    """-1, 0, 1 where a row comes before, begins with, comes after a prefix."""
    for i in range(len(prefix)):
        if i >= len(row) or row[i] < prefix[i]:
            return -1
        if row[i] > prefix[i]:
            return 1
    return 0
