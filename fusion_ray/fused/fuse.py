"""Fuse one shard: align every source to the pivot's tokens, choose, and lay the result out as columns; no Ray here."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fusion_ray.chat.answer_tokens import AnswerTokens, offsets_of
from fusion_ray.distributions.mince import has_score, pick_mince
from fusion_ray.distributions.score import Scored, read_scored
from fusion_ray.errors import StaleArtifactError
from fusion_ray.fused.align.exact import Projection, project
from fusion_ray.fused.align.projector import Projector, build_projector, known_ends
from fusion_ray.fused.align_published.dtw import count_pairs, project_dtw
from fusion_ray.fused.align_published.vocabulary_map import MapKind, PairCounts, VocabularyMap, build_map
from fusion_ray.fused.choose import average_topks, joint_groups, pick_mince_groups, take, weigh_avgce
from fusion_ray.fused.trust import believe, count_ratios
from fusion_ray.models.folders import load_tokenizer
from fusion_ray.recipe import AvgCE, BytesAlign, Fused, MinCE
from fusion_ray.storage.rejections import list_rejected
from fusion_ray.storage.topk import GOLD, NO_TEACHER, TopK

FUSED_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("domain", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("turn_starts", pa.list_(pa.int32())),
        ("turn_lengths", pa.list_(pa.int32())),
        ("chosen", pa.list_(pa.int8())),
        ("real_logprobs", pa.list_(pa.float32())),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_logprobs", pa.list_(pa.float32())),
        ("bits_per_byte", pa.list_(pa.float32())),
        ("reason", pa.string()),
    ]
)


class FusedShard(NamedTuple):
    """A fused shard, and what was counted while making it."""

    table: pa.Table
    facts: dict[str, Any]


class Statistics(NamedTuple):
    """What is counted of a source over the whole corpus.

    Attributes:
        counts_U: How often each source token occurs: shares out the tails inside groups (`bytes`).
        pairs: How often tokens of the two models were aligned (`ms`).
        trust: How often it is right where it was chosen (`trust: fitted`).
    """

    counts_U: np.ndarray | None = None
    pairs: PairCounts | None = None
    trust: float = 1.0


class _Compared(NamedTuple):
    """The usable rows of a shard, as the pivot and every source see them.

    Attributes:
        reasons: Why a row of the shard cannot be used, None where it can.
        usable: The rows that models can be compared on.
        pivot: The pivot's distributions at their answers.
        projections: Those of each source, over the pivot's tokens.
        scores_MN: What each model gives each usable row, the pivot's first.
    """

    reasons: list[str | None]
    usable: np.ndarray
    pivot: Scored
    projections: dict[str, Projection]
    scores_MN: np.ndarray


class Tables(NamedTuple):
    """What alignment knows of a pair of tokenizers; the map is for the published methods only."""

    projector: Projector
    vocabulary_map: VocabularyMap | None


class Fuser:
    """Fuses shards of one pivot and its sources; holds the tables of their tokenizers."""

    def __init__(
        self,
        settings: Fused,
        folders: Mapping[str, str],
        statistics: Mapping[str, Statistics] | None = None,
        *,
        drawn: bool = False,
    ) -> None:
        """Load the tokenizers.

        Args:
            settings: The recipe's fused section.
            folders: Model folder by name, the pivot first.
            statistics: By source.
            drawn: Distributions are draws (`store: sampled`), which must not be cut.
        """
        self.settings = settings
        self.drawn = drawn
        self.pivot, *self.sources = folders
        self.tokenizers = {name: load_tokenizer(folder) for name, folder in folders.items()}
        self.statistics = statistics or {}
        self.tables: dict[tuple[str, int | None, tuple[int, ...]], Tables] = {}

    def fuse(self, chats: pa.Table, scored: Mapping[str, pa.Table]) -> FusedShard:
        """Fuse one shard; a row that cannot be used keeps its place with a reason.

        Args:
            chats: The corpus shard.
            scored: The same shard's distributions by model; a source that is left out does not teach.

        Raises:
            StaleArtifactError: The shards do not hold the same rows.
        """
        return self._fuse(chats, scored, {name: self.trust_in(name) for name in self.sources})

    def _fuse(self, chats: pa.Table, scored: Mapping[str, pa.Table], trust: Mapping[str, float]) -> FusedShard:
        reasons, usable, pivot, projections, scores_MN = compared = self._compare(chats, scored)
        fused, chosen_T = self._choose(compared, trust)
        numbered = self._number(list(projections), chosen_T, scores_MN)
        rows = _emit(scored[self.pivot].take(usable), pivot, fused, *numbered)
        table = _place(chats, reasons, usable, rows)
        return FusedShard(table, self._facts(table, projections, trust))

    def fuse_answers(self, chats: pa.Table, scored: Mapping[str, pa.Table]) -> FusedShard:
        """Fuse one shard of what a source answered; see `fuse`. A row that it does not teach has a reason.

        The answer is its author's and not the corpus's. Where the author does not teach it, there is nothing to learn
        from it; and only the author can be right about it, so it is trusted wholly.

        Args:
            chats: The shard of its answers.
            scored: The same shard's distributions by the pivot and the source.
        """
        table, facts = self._fuse(chats, scored, dict.fromkeys(self.sources, 1.0))
        rows = table.to_pylist()
        for number, row in enumerate(rows):
            if row["reason"] is None and max(row["chosen"]) <= 0:
                rows[number] = {name: row[name] for name in ("id", "domain")} | {"reason": "the pivot fits it better"}
        return FusedShard(pa.Table.from_pylist(rows, schema=FUSED_SCHEMA), facts | {"rejected": []})

    def count_ratios(self, chats: pa.Table, scored: Mapping[str, pa.Table]) -> dict[str, np.ndarray]:
        """Compare each source with the pivot where it is chosen, for `trust: fitted`; counts add up over shards."""
        compared = self._compare(chats, scored)
        covered_MT, topks = self._candidates(compared)
        chosen_T = self._pick(compared, covered_MT, topks)
        real_MT = np.stack([topk.real_logprobs_T for topk in topks])
        found = {}
        for number, name in enumerate(compared.projections, start=1):
            taught_T = (chosen_T == number) & covered_MT[number]
            found[name] = count_ratios(real_MT[0, taught_T], real_MT[number, taught_T])
        return found

    def count_pairs(self, chats: pa.Table, scored: Mapping[str, pa.Table]) -> dict[str, PairCounts]:
        """Count which tokens of the pivot and of each source are aligned in a shard, for `ms`; counts add up."""
        usable = np.flatnonzero([reason is None for reason in _join_reasons(chats, scored)])
        models = {name: read_scored(table.take(usable)) for name, table in scored.items()}
        counts = {}
        for name in self.sources:
            ours, theirs = models[self.pivot].answers, models[name].answers
            tables = self._tables(name, ours, theirs, "em")
            assert tables.vocabulary_map
            counts[name] = count_pairs(ours, theirs, tables.vocabulary_map, tables.projector)
        return counts

    def align(self, name: str, pivot: Scored, source: Scored) -> Projection:
        """The source's distributions over the pivot's tokens, as the recipe aligns them."""
        align = self.settings.align
        tables = self.tables_of(name, pivot, source)
        top_k = self._width(pivot.topk, source.topk)
        if isinstance(align, BytesAlign):
            return project(
                pivot.answers, source.answers, source.topk, tables.projector, top_k=top_k, inner_tail=align.inner_tail
            )  # fmt: skip
        assert tables.vocabulary_map
        return project_dtw(
            pivot.answers, source.answers, source.topk, tables.projector, tables.vocabulary_map, top_k=top_k
        )

    def _width(self, *topks: TopK) -> int:
        """Entries kept at a position: as many as the model with the most has, for cut draws would be biased."""
        return self.settings.top_k or max(topk.ids_TK.shape[1] for topk in topks)

    def tables_of(self, name: str, pivot: Scored, source: Scored) -> Tables:
        """What alignment knows of the pivot's and this source's tokenizers, for turns that end as these do."""
        align = self.settings.align
        kind = None if isinstance(align, BytesAlign) else align.kind
        return self._tables(name, pivot.answers, source.answers, kind)

    def _tables(self, name: str, pivot: AnswerTokens, source: AnswerTokens, kind: MapKind | None) -> Tables:
        pair = (self.tokenizers[self.pivot], self.tokenizers[name])
        pivot_end = next(iter(known_ends(pair[0], pivot)), None)
        source_ends = known_ends(pair[1], source)
        key = (name, pivot_end, tuple(source_ends))
        if key not in self.tables:
            known = self.statistics.get(name, Statistics())
            projector = build_projector(*pair, pivot_end=pivot_end, source_ends=source_ends, counts_U=known.counts_U)
            mapped = None
            if kind:
                mapped = build_map(*pair, kind, pivot_end=pivot_end, source_ends=source_ends, counts=known.pairs)
            self.tables[key] = Tables(projector, mapped)
        return self.tables[key]

    def _compare(self, chats: pa.Table, scored: Mapping[str, pa.Table]) -> _Compared:
        reasons = _join_reasons(chats, scored)
        usable = np.flatnonzero([reason is None for reason in reasons])
        models = {name: read_scored(table.take(usable)) for name, table in scored.items()}
        pivot = models[self.pivot]
        projections = {name: self.align(name, pivot, models[name]) for name in self.sources if name in models}
        for name, projection in projections.items():
            for turn, problem in projection.problems.items():
                row = int(np.searchsorted(pivot.answers.row_offsets, turn, side="right")) - 1
                reasons[usable[row]] = f"{name}: {problem}"
        scores_MN = self._score(pivot, models, projections, len(usable))
        for row in np.flatnonzero(~has_score(scores_MN)):
            reasons[usable[row]] = reasons[usable[row]] or "no model scored it"
        return _Compared(reasons, usable, pivot, projections, scores_MN)

    def _score(
        self, pivot: Scored, models: Mapping[str, Scored], projections: Mapping[str, Projection], n_rows: int
    ) -> np.ndarray:
        """What each model gives each row, over the bytes that all of them cover: bits per byte, or nats per token."""
        joint_T = np.logical_and.reduce([projection.covered_T for projection in projections.values()])
        bytes_N = np.bincount(pivot.row_T[joint_T], pivot.bytes_T[joint_T], n_rows)
        nll_N = np.bincount(pivot.row_T[joint_T], -pivot.topk.real_logprobs_T[joint_T].astype(np.float64), n_rows)
        tokens_N = np.bincount(pivot.row_T[joint_T], minlength=n_rows)
        scores = [self._per_unit(nll_N, bytes_N, tokens_N)]
        for name, projection in projections.items():
            whole_G = np.ones(len(projection.groups), dtype=bool)
            whole_G[projection.group_T[~joint_T & projection.covered_T]] = False
            whole_G &= np.bincount(projection.group_T[projection.covered_T], minlength=len(whole_G)) > 0
            row_G = pivot.row_T[projection.groups.pivot_start]
            nll_N = np.bincount(row_G[whole_G], projection.source_nll_G[whole_G], n_rows)
            tokens_N = np.bincount(models[name].row_T, minlength=n_rows)
            scores.append(self._per_unit(nll_N, bytes_N, tokens_N))
        return np.array(scores, dtype=np.float32)

    def _per_unit(self, nll_N: np.ndarray, bytes_N: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
        per_token = self.settings.choose.unit == "token"
        units_N = tokens_N if per_token else bytes_N * np.log(2.0)
        return np.divide(nll_N, units_N, out=np.full(len(nll_N), np.inf), where=units_N > 0)

    def _candidates(self, compared: _Compared) -> tuple[np.ndarray, list[TopK]]:
        """The distributions of all models at every position, and whether they have one; the pivot is row 0."""
        projections = compared.projections.values()
        every = [compared.pivot.topk, *(projection.topk for projection in projections)]
        covered_MT = np.array([np.ones(len(every[0]), dtype=bool), *(p.covered_T for p in projections)])
        return covered_MT, [_fit(topk, self._width(*every)) for topk in every]

    def _pick(self, compared: _Compared, covered_MT: np.ndarray, topks: list[TopK]) -> np.ndarray:
        """The model of each position by MinCE."""
        assert isinstance(self.settings.choose, MinCE)
        if self.settings.choose.level == "token":
            real_MT = np.where(covered_MT, np.stack([topk.real_logprobs_T for topk in topks]), np.nan)
            groups_T = joint_groups(np.array([p.group_T for p in compared.projections.values()]))
            return pick_mince_groups(real_MT, groups_T)
        return pick_mince(_any_score(compared.scores_MN))[compared.pivot.row_T]

    def _choose(self, compared: _Compared, trust: Mapping[str, float]) -> tuple[TopK, np.ndarray]:
        """The distribution that teaches each position, and its model: NO_TEACHER where none does."""
        choose = self.settings.choose
        covered_MT, topks = self._candidates(compared)
        if isinstance(choose, AvgCE):
            weights_MN = weigh_avgce(_any_score(compared.scores_MN), choose.tau)
            row_T = compared.pivot.row_T
            return self._mix(weights_MN[:, row_T], topks), weights_MN.argmax(axis=0)[row_T].astype(np.int8)
        chosen_T = self._pick(compared, covered_MT, topks)
        covered_T = covered_MT[chosen_T, np.arange(len(chosen_T))]
        teacher_T = np.where(covered_T, chosen_T, 0)
        trust_T = np.array([1.0, *(trust[name] for name in compared.projections)])[teacher_T]
        fused = self._believe(take(teacher_T, topks), trust_T, topks[0], compared.pivot.answers.ids_T)
        gold_T = ~covered_T | ((chosen_T == 0) & (self.settings.pivot_wins == "gold"))
        return fused, np.where(gold_T, NO_TEACHER, chosen_T).astype(np.int8)

    def _believe(self, taken: TopK, trust_T: np.ndarray, pivot: TopK, ids_T: np.ndarray) -> TopK:
        """Believe the chosen distributions as far as they are trusted; the rest is taught as where the pivot wins."""
        if (trust_T == 1.0).all():
            return taken
        believed_T = believe(pivot.real_logprobs_T, taken.real_logprobs_T, trust_T)
        rest = pivot if self.settings.pivot_wins == "distil" else _one_hot(ids_T)
        return self._mix(np.stack([1.0 - believed_T, believed_T]), [rest, taken])

    def _mix(self, weights_MT: np.ndarray, topks: list[TopK]) -> TopK:
        """Average distributions; of draws all entries are kept."""
        widths = [topk.ids_TK.shape[1] for topk in topks]
        return average_topks(weights_MT, topks, sum(widths) if self.drawn else max(widths))

    def trust_in(self, name: str) -> float:
        """How often this source is right where it is chosen; 1 where nothing is known."""
        choose = self.settings.choose
        if not isinstance(choose, MinCE):
            return 1.0
        return self.statistics.get(name, Statistics()).trust if choose.trust == "fitted" else choose.trust

    def _number(
        self, taught_by: list[str], chosen_T: np.ndarray, scores_MN: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Renumber choices and scores of the pivot and some sources to those of all models; NaN is no score."""
        places_M = np.array([0, *(1 + self.sources.index(name) for name in taught_by)], dtype=np.int8)
        all_MN = np.full((1 + len(self.sources), scores_MN.shape[1]), np.nan, dtype=np.float32)
        all_MN[places_M] = scores_MN
        return np.where(chosen_T == NO_TEACHER, chosen_T, places_M[chosen_T]), all_MN

    def _facts(
        self, table: pa.Table, projections: Mapping[str, Projection], trust: Mapping[str, float]
    ) -> dict[str, Any]:
        alignment = {
            name: {**projection.counts, "violation_nats": projection.violation_nats, "trust": trust[name]}
            for name, projection in projections.items()
        }
        names = {NO_TEACHER: GOLD} | dict(enumerate([self.pivot, *self.sources]))
        positions: dict[str, Counter[str]] = {}
        for domain, chosen, reason in zip(*(table[c].to_pylist() for c in ("domain", "chosen", "reason")), strict=True):
            if reason is None:
                positions.setdefault(domain, Counter()).update(names[model] for model in chosen)
        return {
            "rejected": list_rejected(table["id"].to_pylist(), table["reason"].to_pylist()),
            "alignment": alignment,
            "chosen": {domain: dict(counts) for domain, counts in positions.items()},
        }


def _join_reasons(chats: pa.Table, scored: Mapping[str, pa.Table]) -> list[str | None]:
    """Why a row cannot be used, by any of the models."""
    reasons: list[str | None] = chats["reason"].to_pylist()
    for name, table in scored.items():
        if not table["id"].equals(chats["id"]):
            raise StaleArtifactError(
                f"the distributions of '{name}' hold other rows than the corpus shard (first id "
                f"{table['id'][0] if len(table) else 'none'}). Run the distributions stage again."
            )
        own = table["reason"].to_pylist()
        reasons = [before or (f"{name}: {now}" if now else None) for before, now in zip(reasons, own, strict=True)]
    return reasons


def _one_hot(ids_T: np.ndarray) -> TopK:
    nothing_T = np.zeros(len(ids_T), dtype=np.float32)
    return TopK(ids_T.astype(np.int32)[:, None], nothing_T[:, None], nothing_T)


def _any_score(scores_MN: np.ndarray) -> np.ndarray:
    """Scores that can be compared in every row; those of rows that no model has scored do not matter."""
    return np.where(has_score(scores_MN), scores_MN, 0.0)


def _fit(topk: TopK, top_k: int) -> TopK:
    """The same distributions with exactly `top_k` columns."""
    missing = max(0, top_k - topk.ids_TK.shape[1])
    ids_TK = np.pad(topk.ids_TK[:, :top_k], ((0, 0), (0, missing)), constant_values=-1)
    logprobs_TK = np.pad(topk.logprobs_TK[:, :top_k], ((0, 0), (0, missing)), constant_values=-np.inf)
    return TopK(ids_TK, logprobs_TK, topk.real_logprobs_T)


def _emit(
    table: pa.Table, pivot: Scored, fused: TopK, chosen_T: np.ndarray, scores_MN: np.ndarray
) -> list[dict[str, Any]]:
    """The usable rows as mappings."""
    cuts = offsets_of(np.bincount(pivot.row_T, minlength=len(table)))
    columns = table.select(["input_ids", "turn_starts", "turn_lengths"]).to_pylist()
    rows = []
    for number, (row, start, stop) in enumerate(zip(columns, cuts[:-1], cuts[1:], strict=True)):
        rows.append(
            row
            | {
                "chosen": chosen_T[start:stop],
                "real_logprobs": fused.real_logprobs_T[start:stop],
                "topk_ids": fused.ids_TK[start:stop].reshape(-1),
                "topk_logprobs": fused.logprobs_TK[start:stop].reshape(-1),
                "bits_per_byte": scores_MN[:, number],
            }
        )
    return rows


def _place(chats: pa.Table, reasons: list[str | None], usable: np.ndarray, rows: list[dict[str, Any]]) -> pa.Table:
    """All rows of the shard in order, the unusable ones empty."""
    placed: list[dict[str, Any]] = [
        {"id": identity, "domain": domain, "reason": reason}
        for identity, domain, reason in zip(chats["id"].to_pylist(), chats["domain"].to_pylist(), reasons, strict=True)
    ]
    for number, row in zip(usable, rows, strict=True):
        if reasons[number] is None:
            placed[number] |= row
    return pa.Table.from_pylist(placed, schema=FUSED_SCHEMA)
