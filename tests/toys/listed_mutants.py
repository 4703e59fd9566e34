"""Mutants of `make mutants` that are written down: mistakes that mislead users, and changes that nobody can see."""

from typing import NamedTuple


class Listed(NamedTuple):
    """A mistake that must be found: the text of a file that it changes, and the tests that should fail."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


LISTED = (
    # --- units ------------------------------------------------------------------------------------------------------
    Listed("targets/validation.py", " / math.log(2.0)", "", ("targets",)),
    Listed("fused/fuse.py", "bytes_N * np.log(2.0)", "bytes_N", ("fused",)),
    Listed("distributions/mince.py", "n_bytes_N * np.log(2.0)", "n_bytes_N", ("distributions",)),
    Listed(
        "report/statistics/rates.py",
        "bits_MN = scores.nll_MN / np.log(2.0)\n    rates",
        "bits_MN = scores.nll_MN\n    rates",
        ("report",),
    ),
    Listed("report/statistics/bootstrap.py", "2.0 * (fewer + 1)", "1.0 * (fewer + 1)", ("report",)),
    Listed(
        "planning/fit.py",
        "parameters * state + activations + head) / _GIB",
        "parameters * state + activations + head) / 1e9",
        ("planning",),
    ),
    Listed("planning/costs.py", "self.wall_s * self.gpus / 3600", "self.wall_s * self.gpus / 60", ("planning",)),
    Listed("cli/plan.py", "{gpu_hours * price:,.2f}", "{gpu_hours / price:,.2f}", ("cli",)),
    # --- the wrong rows ---------------------------------------------------------------------------------------------
    Listed("report/stage.py", 'SPLIT = "heldout"', 'SPLIT = "train"', ("integration/test_report.py",)),
    Listed("corpus/split.py", "split:{seed}:{identity}", "split:{identity}", ("corpus",)),
    Listed("fused/stage.py", '("train", "validation")', '("train", "heldout")', ("integration/test_answers.py",)),
    Listed("report/statistics/common_bytes.py", "end_T <= last]", "end_T < last]", ("report",)),
    Listed("targets/rows.py", "+ row.answer_T - 1 for", "+ row.answer_T for", ("targets",)),
    Listed(
        "distributions/score.py",
        "np.arange(s, s + n) for s, n",
        "np.arange(s + 1, s + n + 1) for s, n",
        ("distributions",),
    ),
    Listed(
        "models/transformers.py",
        "b * batch.length + positions[row] - 1",
        "b * batch.length + positions[row]",
        ("models",),
    ),
    Listed("targets/control_arms.py", "np.roll(order, 1)", "np.roll(order, 0)", ("targets",)),
    # --- what decides whether something is made anew ----------------------------------------------------------------
    Listed(
        "storage/artifacts.py",
        '            | {f"model {label}": model.fingerprint for label, model in self.models.items()}\n',
        "",
        ("storage",),
    ),
    Listed(
        "storage/artifacts.py",
        '            | {f"input {made}": made.fingerprint for made in self.inputs}\n',
        "",
        ("storage",),
    ),
    # The learning rate, marked as if it said only where and how fast.
    Listed(
        "recipe/targets.py",
        "learning_rate: float = Field(5e-6, gt=0)",
        "learning_rate: Annotated[float, PLACEMENT] = Field(5e-6, gt=0)",
        ("recipe", "pipeline", "property/test_recipes.py"),
    ),
    Listed("pipeline/graph.py", 'corpus.deciding() | {"seed": self.recipe.seed}', "corpus.deciding()", ("pipeline",)),
    Listed("pipeline/status.py", "artifact.why_stale(read_manifest(artifact.folder))", "[]", ("pipeline",)),
    # --- checks that are skipped ------------------------------------------------------------------------------------
    Listed("storage/shards.py", "if digest != record.sha256:", "if False:", ("storage",)),
    Listed("storage/shards.py", 'if footer.get("fingerprint") != fingerprint:', "if False:", ("storage",)),
    Listed("recipe/section.py", "if key not in cls.model_fields:", "if False:", ("recipe",)),
    Listed(
        "fused/fuse.py",
        "(chosen_T == 0) & (self.settings.pivot_wins",
        "(chosen_T != 0) & (self.settings.pivot_wins",
        ("fused",),
    ),
    Listed("errors.py", "    exit_code = 2", "    exit_code = 3", ("cli",)),
    Listed(
        "models/server.py",
        "for attempt in range(self._retries + 1):",
        "for attempt in range(self._retries):",
        ("integration/test_openai.py",),
    ),
    Listed(
        "on_ray/shard_loop.py",
        "for path, record in found.items() if record}",
        "for path, record in found.items() if record and False}",
        ("on_ray",),
    ),
    # --- ties, tails, ends and weights ------------------------------------------------------------------------------
    Listed(
        "distributions/mince.py",
        "return np.argmin(finite_or_worst(bits_per_byte_MN), axis=0)",
        "return len(bits_per_byte_MN) - 1 - np.argmin(finite_or_worst(bits_per_byte_MN)[::-1], axis=0)",
        ("distributions", "fused"),
    ),
    Listed(
        "targets/soft_target.py",
        "(1.0 - logprobs_NK.double().exp().sum(dim=1)).clamp(min=0.0)",
        "(0.0 * logprobs_NK.double().exp().sum(dim=1))",
        ("targets",),
    ),
    Listed(
        "chat/rendering.py",
        "return Turn(first, boundaries, end is not None, n_bytes,",
        "return Turn(first, boundaries[: stop - first], False, n_bytes,",
        ("chat",),
    ),
    Listed(
        "merged/methods/varm.py",
        "combine(tensor, [0.0, *weights]).blocks",
        "combine(tensor, [0.0, *(weight / len(weights) for weight in weights)]).blocks",
        ("merged",),
    ),
    Listed(
        "merged/methods/linear.py", "    if parameters.normalize:\n", "    if not parameters.normalize:\n", ("merged",)
    ),
    Listed("merged/methods/rescaled_sum.py", "np.sqrt(wanted / whole)", "wanted / whole", ("merged",)),
    Listed(
        "models/head.py",
        "torch.softmax(logits_NV, dim=-1)[:, :n_tokens].double()",
        "torch.softmax(logits_NV, dim=-1).double()",
        ("models",),
    ),
    # --- seeds and draws --------------------------------------------------------------------------------------------
    Listed("answers/write.py", 'f"answers:{seed}:{self.id}"', 'f"answers:{self.id}"', ("answers",)),
    Listed("answers/write.py", "text.strip() if ended", "text.strip() if True", ("answers",)),
    Listed("demo/making.py", 'f"demo:{seed}:{chat.id}"', 'f"demo:{chat.id}"', ("demo",)),
    Listed("report/numbers.py", 'f"{name}:{seed}"', 'f"{name}"', ("report",)),
    Listed("targets/packing.py", "default_rng([seed, epoch])", "default_rng([seed, 0])", ("targets",)),
    Listed("report/statistics/verdict.py", "difference.high >= 0:", "difference.value >= 0:", ("report",)),
)


class Change(NamedTuple):
    """A change that nobody can see: what is left of it in its line, and what stands there before and after."""

    file: str
    left: str
    before: str
    after: str


# With the reason for each.
EQUIVALENT = {
    Change(
        "distributions/mince.py", 'n_bytes_N = pc.fill_null(table["n_bytes"], ', "0", "1"
    ): "only rejected rows have no bytes, and those are left out by their reason",
    Change(
        "distributions/score.py",
        "return table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(dtype, copy=",
        "False",
        "True",
    ): "whether the numbers are copied",
    Change(
        "storage/planes.py", "numbers, rows = np.zeros(", "0", "1"
    ): "the first column, which there always is, puts others in their place",
    Change(
        "on_ray/metrics.py", 'self.last = deque([_Finished(self.started, "", ', "0", "-1"
    ): "of the first entry only the time is read",
    Change(
        "on_ray/metrics.py", 'self.last = deque([_Finished(self.started, "", 0, ', "0", "-1"
    ): "of the first entry only the time is read",
    **{
        Change("on_ray/metrics.py", left, "0", "1"): "of the first entry only the time is read"
        for left in (
            'self.last = deque([_Finished(self.started, "", ',
            'self.last = deque([_Finished(self.started, "", 0, ',
        )
    },
    Change(
        "report/statistics/common_bytes.py", "return CommonScore(np.array(nll), answers[", "0", "-1"
    ): "all answers have the same number of bytes here",
    Change(
        "report/statistics/common_bytes.py",
        "return CommonScore(np.array(nll), answers[0].n_bytes) if answers[",
        "0",
        "-1",
    ): "all answers have the same number of bytes here",
    Change("cli/show.py", "for model in columns[", "0", "-1"): "every benchmark was run for the same models",
    Change(
        "cli/terminal.py",
        "if ",
        'finished and self.told.get(progress.what) == float("inf")',
        "self.told.get(progress.what) == float('inf')",
    ): "of what was told as finished nothing unfinished gets as far as this line",
    Change("cli/plan.py", 'return "?" if ', "gpu_hours is None or price is None", "gpu_hours is None"): (
        "without a price nobody asks for one; the type checker cannot know"
    ),
    Change(
        "cli/chat.py",
        "max_new_tokens=max_tokens, eos_token_id=ends or None, pad_token_id=(ends or [0])[",
        "0",
        "-1",
    ): "a single conversation is never padded",
    **{
        Change("report/judge_prompts.py", left, "0", "-1"): "there is one question here, and one answer of each"
        for left in (
            'parts = [("QUESTION", questions[',
            'parts = [("QUESTION", questions[0]), ("ANSWER OF A", answers_a[',
            'parts = [("QUESTION", questions[0]), ("ANSWER OF A", answers_a[0]), ("ANSWER OF B", answers_b[',
            'return [("QUESTION", questions[',
            'return [("QUESTION", questions[0]), (label, answers[',
        )
    },
    Change(
        "storage/planes.py", "counts_V = np.bincount((ids_TK + 1).reshape(-1), minlength=", "1", "2"
    ): "an id of no count is no id",
    Change(
        "storage/planes.py", "counts_V = np.bincount((ids_TK + 1).reshape(-1), minlength=", "1", "0"
    ): "without ids nothing is left of the counts either way",
    Change(
        "storage/planes.py", "code_of_V = np.zeros(len(counts_V) + ", "1", "2"
    ): "the id -1 looks up the last place, which is 0 either way",
    Change(
        "storage/checkpoint_writer.py", 'return StoredTensor(self.name, self.dtype, self.shape, "", ', "0", "1"
    ): "its bytes do not depend on where it begins",
    Change(
        "storage/checkpoint_writer.py", 'return StoredTensor(self.name, self.dtype, self.shape, "", ', "0", "-1"
    ): "its bytes do not depend on where it begins",
    Change(
        "chat/vocabulary.py", "size = max(pieces, default=-", "1", "2"
    ): "without tokens there are none in a smaller range either",
    Change(
        "distributions/inspect_chats.py",
        "if ",
        "isinstance(chats, Mapping) or not isinstance(chats, str | Sequence)",
        "not isinstance(chats, str | Sequence)",
    ): "a mapping is no sequence",
    Change(
        "distributions/inspect_chats.py",
        "if ",
        "identity is not None and chat_of(given, columns).id == identity",
        "chat_of(given, columns).id == identity",
    ): "no chat has None for its id",
    Change(
        "targets/control_arms.py", "taken_ids[row] = np.reshape(ids[other], (-", "1", "2"
    ): "numpy takes any negative size for the one that is left",
    Change(
        "targets/control_arms.py", "taken_logprobs[row] = np.reshape(logprobs[other], (-", "1", "2"
    ): "numpy takes any negative size for the one that is left",
}
