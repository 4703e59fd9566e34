"""The compiled loop of exact alignment: from the leaves of a group to distributions over pivot tokens.

Every group costs time and room in proportion to its length: at a pivot position only the leaves that still follow the
real path are looked at, and what lies ahead counts by running sums.
"""

from typing import NamedTuple

import numpy as np

from fusion_ray.fused.align.projector import Shares
from fusion_ray.fused.compiled import compiled


class Inputs(NamedTuple):
    """What the loop reads; G groups, S source positions, X positions with leaves of several tokens.

    In `tokens`, `pivot_end` stands for the end of a turn; a group's turn ends with `end_G`.
    """

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
    base_S: np.ndarray
    tokens: np.ndarray
    token_offsets: np.ndarray
    pivot_flat: np.ndarray
    pivot_offsets: np.ndarray
    source_offsets: np.ndarray
    pivot_end: int
    end_G: np.ndarray


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
        entry, base, log_mass: Its leaves in the order of the text: entry of the string table, how many of the group's
            pivot tokens come before it, and the natural log of the mass.
            While positions are projected, the leaves that begin with the tokens before a position move to the front.
        log_mass_from: Log of the mass of a leaf and all after it.
        unknown, unknown_from: Log mass of unknown bytes at each of its source positions, and there and after it.
        slot_V: Place of a pivot token in `found`, -1 where it has none.
        found, found_mass: Pivot tokens met at one position, and the log of their mass.
    """

    entry: np.ndarray
    base: np.ndarray
    log_mass: np.ndarray
    log_mass_from: np.ndarray
    unknown: np.ndarray
    unknown_from: np.ndarray
    slot_V: np.ndarray
    found: np.ndarray
    found_mass: np.ndarray


class _Tail(NamedTuple):
    """The bytes of one group: of its pivot tokens, where the first j of them stop, and before each source token.

    Past a source token of unknown bytes nothing is known, so `before` ends there.
    """

    text: np.ndarray
    stops: np.ndarray
    before: np.ndarray


def make_scratch(longest: int, top_k: int, vocabulary: int) -> Scratch:
    """Room for groups of up to `longest` source tokens with `top_k` entries each."""
    size = longest * top_k + 1
    return Scratch(
        np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size), np.empty(size + 1),
        np.empty(max(longest, 1)), np.empty(max(longest, 1) + 1),
        np.full(vocabulary, -1, np.int32), np.empty(size, np.int64), np.empty(size),
    )  # fmt: skip


@compiled
def project_groups(inputs: Inputs, shares: Shares, unigram: bool, scratch: Scratch, outputs: Outputs) -> None:
    """Fill the outputs at every pivot position of every group that is not skipped."""
    nothing = _lay_out(inputs, -1, scratch)
    for g in range(len(inputs.pivot_start)):
        if inputs.skip_G[g]:
            continue
        start, stop = inputs.pivot_start[g], inputs.pivot_stop[g]
        leaves, path = _gather_leaves(inputs, g, stop - start > 1, scratch)
        # Leaves reached so far, and how many of them follow the real path: all at once but in long groups.
        ahead = following = leaves
        scratch.log_mass_from[leaves] = -np.inf
        if leaves and scratch.base[leaves - 1] > 0:
            ahead = following = 0
            _sum_up(scratch.log_mass, leaves, scratch.log_mass_from)
        has_tail = unigram and stop - start > 1 and inputs.fold_G[g] == 0
        tail = _lay_out(inputs, g, scratch) if has_tail else nothing
        projected = 0.0
        below = 0.0  # log of the unknown mass that begins with the tokens before this position
        for j in range(stop - start):
            above = -np.inf
            if has_tail and j + 1 < stop - start:
                above = _unknown_mass(inputs.pivot_ids[start : start + j + 1], tail, shares, scratch)
            while ahead < leaves and scratch.base[ahead] <= j:
                _move(scratch, ahead, following)
                ahead, following = ahead + 1, following + 1
            following = _project_position(
                inputs, g, j, following, scratch.log_mass_from[ahead], path, below, above, scratch, outputs
            )
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
            scratch.base[count] = inputs.base_S[s]
            scratch.log_mass[count] = path + logprob
            count += 1
        if inside:  # the tail matters at later pivot positions only
            if not real_is_kept:
                known += np.exp(np.float64(inputs.real_logprobs_S[s]))
            scratch.unknown[s - start] = path + np.log(1.0 - known) if known < 1.0 else -np.inf
        path += np.float64(inputs.real_logprobs_S[s])
    return count, path


@compiled
def _move(scratch: Scratch, leaf: int, to: int) -> None:
    scratch.entry[to] = scratch.entry[leaf]
    scratch.base[to] = scratch.base[leaf]
    scratch.log_mass[to] = scratch.log_mass[leaf]


@compiled
def _sum_up(log_mass: np.ndarray, count: int, log_mass_from: np.ndarray) -> None:
    """Logs of the sums of each mass and all after it; nothing, -inf, comes after the last."""
    log_mass_from[count] = -np.inf
    for i in range(count - 1, -1, -1):
        log_mass_from[i] = np.logaddexp(log_mass[i], log_mass_from[i + 1])


@compiled
def _project_position(
    inputs: Inputs,
    g: int,
    j: int,
    following: int,
    ahead: float,
    path: float,
    below: float,
    above: float,
    scratch: Scratch,
    outputs: Outputs,
) -> int:
    """Project position j of a group: weigh every leaf that begins with the tokens before it.

    Args:
        following: How many such leaves there are beside those that begin with the token at j, too, by their base.
        ahead: Log mass of the latter.

    Returns:
        How many of the former go on with the real token at j.
    """
    start = inputs.pivot_start[g]
    real = inputs.pivot_ids[start + j]
    whole = 0.0 if j == 0 else _log_mass_of(following, ahead, path, below, scratch)
    count, kept = 0, 0
    real_logprob = (np.logaddexp(path, ahead) if ahead > -np.inf else path) - whole
    for leaf in range(following):
        at = inputs.token_offsets[scratch.entry[leaf]] + j - scratch.base[leaf]
        if at >= inputs.token_offsets[scratch.entry[leaf] + 1]:
            continue  # the leaf ends here: nothing is known of what follows it
        token = inputs.end_G[g] if inputs.tokens[at] == inputs.pivot_end else inputs.tokens[at]
        mass = scratch.log_mass[leaf] - whole
        if token == real:
            real_logprob = np.logaddexp(real_logprob, mass)
            _move(scratch, leaf, kept)
            kept += 1
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
    return kept


@compiled
def _log_mass_of(following: int, ahead: float, path: float, below: float, scratch: Scratch) -> float:
    """Log of the mass of everything that begins with the pivot tokens of the group before a position."""
    top = max(path, below, ahead)
    for leaf in range(following):
        top = max(top, scratch.log_mass[leaf])
    total = np.exp(path - top)
    for other in (below, ahead):
        if other > -np.inf:
            total += np.exp(other - top)
    for leaf in range(following):
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
def _lay_out(inputs: Inputs, g: int, scratch: Scratch) -> _Tail:
    """The bytes of a group (of none where g is -1), and the running sums of its unknown mass."""
    p, m = (inputs.pivot_start[g], inputs.pivot_stop[g] - inputs.pivot_start[g]) if g >= 0 else (0, 0)
    s, n = (inputs.source_start[g], inputs.source_stop[g] - inputs.source_start[g]) if g >= 0 else (0, 0)
    stops = np.zeros(m + 1, dtype=np.int64)
    for j in range(m):
        token = inputs.pivot_ids[p + j]
        stops[j + 1] = stops[j] + inputs.pivot_offsets[token + 1] - inputs.pivot_offsets[token]
    text = np.empty(stops[m], dtype=np.uint8)
    for j in range(m):
        first = inputs.pivot_offsets[inputs.pivot_ids[p + j]]
        text[stops[j] : stops[j + 1]] = inputs.pivot_flat[first : first + stops[j + 1] - stops[j]]
    before = np.zeros(n, dtype=np.int64)
    known = min(n, 1)
    while 0 < known < n:
        token = inputs.source_ids[s + known - 1]
        size = inputs.source_offsets[token + 1] - inputs.source_offsets[token]
        if size == 0:
            break
        before[known] = before[known - 1] + size
        known += 1
    _sum_up(scratch.unknown, known, scratch.unknown_from)
    return _Tail(text, stops, before[:known])


@compiled
def _unknown_mass(first_tokens: np.ndarray, tail: _Tail, shares: Shares, scratch: Scratch) -> float:
    """Log of the unknown mass that begins with the group's first pivot tokens, by the corpus share of its bytes.

    Unknown bytes that begin after those tokens count whole. Longer ahead than the longest source token none begins.
    """
    size = tail.stops[len(first_tokens)]
    beyond = max(1, _first_at(tail.before, size))
    nearest = max(1, _first_at(tail.before, size - shares.longest_bytes))
    from_start = len(first_tokens) <= shares.longest_tokens
    top = scratch.unknown_from[0 if from_start else nearest]  # no term is larger
    if top == -np.inf:
        return -np.inf
    total = np.exp(scratch.unknown_from[beyond] - top)
    if from_start and scratch.unknown[0] > -np.inf:
        share = _share(first_tokens, shares.token_flat, shares.token_offsets, shares.token_running)
        total += np.exp(scratch.unknown[0] - top) * share
    for i in range(nearest, beyond):
        if scratch.unknown[i] > -np.inf:
            rest = tail.text[tail.before[i] : size]
            share = _share(rest, shares.byte_flat, shares.byte_offsets, shares.byte_running)
            total += np.exp(scratch.unknown[i] - top) * share
    return top + np.log(total) if total > 0.0 else -np.inf


@compiled
def _first_at(values: np.ndarray, least: int) -> int:
    """The first of some rising values that is at least so much, or their number."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] >= least:
            high = middle
        else:
            low = middle + 1
    return low


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
