"""Fine-tune the pivot on one fused set: the loop over steps, its checkpoints, and the model folder at its end.

Runs alone in one process, or in every worker of a torch.distributed group. Which rows make which step depends on
seed, epoch and settings alone, and a step's loss is a mean over the answer tokens of all workers, so the number of
workers changes the speed and not the result.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from safetensors.torch import load_file, save_file

from fusion_ray.errors import NonFiniteError, RecipeError
from fusion_ray.recipe import Targets
from fusion_ray.targets.best_weights import BestWeights, is_best, is_out_of_patience
from fusion_ray.targets.deepspeed import Engine
from fusion_ray.targets.packing import Batch, Step, plan_epoch
from fusion_ray.targets.rows import TrainingBatch, TrainingRows, check_rows, empty_batch, make_batch
from fusion_ray.targets.schedule import learning_rate_share
from fusion_ray.targets.validation import Validation

_PAD_ID = 0  # Any id would do: padding is a document of its own, and nothing is learnt from it.
_PROGRESS = "progress.json"


@dataclass(frozen=True)
class StepReport:
    """One line of metrics.jsonl. Losses are nats per answer token, means over the whole step.

    Attributes:
        step: Updates done, this one included.
        total: Updates in all.
        loss: lambda gold + (1 - lambda) soft.
        gold: Cross-entropy of the gold tokens.
        soft: Divergence from the target distribution, over the positions that have one; 0 where none has.
        bits_per_byte: Of the validation rows after this update, where it was measured.
    """

    step: int
    total: int
    epoch: float
    loss: float
    gold: float
    soft: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    tokens_per_s: float
    bits_per_byte: float | None = None


Report = Callable[[StepReport], None]
Save = Callable[[Path, int], None]
WantsCheckpoint = Callable[[Callable[[bool], bool]], bool]


class Trainer:
    """Trains one target.

    Raises:
        EngineError: The pivot cannot be loaded, or its output head is not understood.
        RecipeError: Settings that DeepSpeed cannot train with.
    """

    def __init__(self, model_folder: str, settings: Targets, *, seed: int, trust_remote_code: bool = False) -> None:
        self.settings = settings
        self.seed = seed
        self.engine = Engine(model_folder, settings, seed=seed, trust_remote_code=trust_remote_code)
        self.rank = torch.distributed.get_rank()
        self.workers = torch.distributed.get_world_size()
        self.history: list[StepReport] = []
        self.best = BestWeights(self.engine) if settings.keep == "best" else None

    # --- training ---------------------------------------------------------------------------------------------

    def fit(
        self,
        train: TrainingRows,
        validation: TrainingRows | None = None,
        *,
        report: Report = lambda _: None,
        save: Save | None = None,
        wants_checkpoint: WantsCheckpoint = lambda _: False,
        resume_from: Path | None = None,
        part: tuple[int, int] = (1, 1),
    ) -> list[StepReport]:
        """Train to the end, from the start or from a checkpoint.

        Args:
            train: Rows to learn from.
            validation: Rows whose bits per byte are measured every `measure_every_steps`, and at the end; without that
                setting at the end of every epoch.
            report: Called after every update, in every worker.
            save: Called in every worker with a fresh folder that holds this worker's part of a checkpoint; the parts
                of all workers together are what `resume_from` must hold. The folder is gone afterwards.
            wants_checkpoint: Asked after every update, in every worker, whether to save out of turn; is given a
                function that says whether any worker says yes, and must answer alike in all of them.
            resume_from: A checkpoint.
            part: Do only such a part of the updates: (2, 5) is the second fifth, with the learning rates it has there.

        Returns:
            A report of every update done, those before the checkpoint included. The weights are those after the last
            one, or under `keep: best` those of the best measurement.

        Raises:
            NonFiniteError: The loss or the gradient became NaN or infinite; names the step and the rows.
            RecipeError: No answer token to train on, a row longer than a batch, a checkpoint that does not fit, or
                settings that judge on validation rows where there are none.
            CorruptArtifactError: The rows are for another vocabulary.
        """
        check_rows(train, self.engine.vocabulary, "the fused set's train split")
        judge = self._find_judge(validation)
        per_epoch = len(self._plan(train.lengths_N, 0))
        total = max(1, math.ceil(self.settings.epochs * per_epoch - 1e-9))
        begin, end = _cut(total, part)
        if resume_from:
            begin = self._restore(resume_from)
        for step, planned in self._steps(train.lengths_N, range(begin, end), per_epoch):
            if self._is_over():
                break
            line = self._run_step(train, planned, step, total, per_epoch)
            ends = step + 1 == end or (step + 1) % (self.settings.measure_every_steps or per_epoch) == 0
            if judge is not None and ends:
                line = replace(line, bits_per_byte=self.measure(judge))
            self.history.append(line)
            if self.best and line.bits_per_byte is not None and is_best(self._measured()):
                self.best.keep()
            report(line)
            in_turn = (step + 1) % self.settings.checkpoint_every_steps == 0
            if save is not None and step + 1 < end and (wants_checkpoint(self._anyone) or in_turn):
                self._save(save, step + 1)
        if self.best and self.kept_step < self.history[-1].step:
            self.best.put_back()
        return self.history

    @property
    def kept_step(self) -> int:
        """The update whose weights a finished run has."""
        measured = [line for line in self.history if line.bits_per_byte is not None]
        if self.best and measured:
            return min(measured, key=lambda line: (line.bits_per_byte, line.step)).step
        return self.history[-1].step

    def _anyone(self, yes: bool) -> bool:
        """Whether any worker says yes."""
        said = torch.tensor(float(yes), device=self.engine.device)
        torch.distributed.all_reduce(said)
        return bool(said)

    def _measured(self) -> list[float]:
        return [line.bits_per_byte for line in self.history if line.bits_per_byte is not None]

    def _is_over(self) -> bool:
        # Decided by the history alone, so that a run that goes on from a checkpoint decides the same.
        early_stop = self.settings.early_stop
        return early_stop is not None and is_out_of_patience(self._measured(), early_stop)

    def _find_judge(self, validation: TrainingRows | None) -> Validation | None:
        judge = None if validation is None else Validation(validation)
        if judge is None or not judge.bytes_N.any():
            for wish in self.settings.goes_by_validation:
                raise RecipeError(
                    f"{wish} judges on validation rows; expected some that are no longer than "
                    "targets.max_length. Set corpus.validation, or raise max_length."
                )
        return judge

    def _steps(self, lengths_N: np.ndarray, numbers: range, per_epoch: int) -> Iterator[tuple[int, Step]]:
        """The updates of these numbers, each epoch planned when it begins."""
        for epoch, within in groupby(numbers, key=lambda number: number // per_epoch):
            plan = self._plan(lengths_N, epoch)
            yield from ((number, plan[number % per_epoch]) for number in within)

    def _plan(self, lengths_N: np.ndarray, epoch: int) -> list[Step]:
        return plan_epoch(
            lengths_N,
            tokens_per_step=self.settings.tokens_per_step,
            tokens_per_batch=self.settings.tokens_per_batch,
            seed=self.seed,
            epoch=epoch,
        )

    def _run_step(self, rows: TrainingRows, step: Step, number: int, total: int, per_epoch: int) -> StepReport:
        started = time.perf_counter()
        torch.manual_seed(int(np.random.SeedSequence([self.seed, number, self.rank]).generate_state(1)[0]))
        answers = int(rows.answers_N[step.rows].sum())
        share = learning_rate_share(number, total, kind=self.settings.schedule, warmup=self.settings.warmup)
        if rows.n_anchored == rows.answers_N.sum():
            share = 0.0  # Nothing is to be learnt, and Adam would scale up what rounding leaves of the gradient.
        tally = _Tally(self.engine.device)
        # DeepSpeed averages gradients over the workers; the loss is a mean over the answers of all of them.
        denominator = answers / self.workers
        mine = self._my_batches(step.batches)
        lambda_ = self._lambda(number, total)
        for position, batch in enumerate(mine):
            last = position + 1 == len(mine)
            self.engine.before_batch(last=last)
            laid_out = self._lay_out(rows, batch, lambda_)
            loss, gold_N, soft_N = self.engine.core(laid_out, denominator)
            self.engine.accumulate(loss, last=last)
            tally.add(laid_out, gold_N, soft_N)
        sums = tally.reduce(rows, number + 1)
        norm = self.engine.update(share * self.settings.learning_rate)
        if not math.isfinite(norm):
            raise NonFiniteError(
                f"step {number + 1} of {total}: the gradient is {norm} although the loss is finite; rows "
                f"{_name_rows(rows, step.rows)}. The last checkpoint before it is kept. Lower targets.learning_rate, "
                "or use float32."
            )
        tokens = int(rows.lengths_N[step.rows].sum())
        return StepReport(
            step=number + 1,
            total=total,
            epoch=round((number + 1) / per_epoch, 6),
            loss=sums.loss / answers,
            gold=sums.gold / answers,
            soft=sums.soft / max(sums.taught, 1.0),
            learning_rate=share * self.settings.learning_rate,
            gradient_norm=norm,
            tokens=tokens,
            tokens_per_s=round(tokens / (time.perf_counter() - started), 1),
        )

    def _my_batches(self, batches: tuple[Batch, ...]) -> list[Batch | None]:
        """This worker's batches; all workers get equally many, because they exchange gradients batch by batch."""
        rounds = math.ceil(len(batches) / self.workers)
        padded: list[Batch | None] = [*batches, *([None] * (rounds * self.workers - len(batches)))]
        return padded[self.rank :: self.workers]

    def _lambda(self, number: int, total: int) -> float:
        """The weight of gold in update `number`: constant, or on a straight line to `lambda_end`."""
        start, end = self.settings.resolved_lambda, self.settings.lambda_end
        return start if end is None else start + (end - start) * number / max(1, total - 1)

    def _lay_out(self, rows: TrainingRows, batch: Batch | None, lambda_: float) -> TrainingBatch:
        if batch is None:
            made = empty_batch(_PAD_ID)
        else:
            made = make_batch(rows, batch, self.settings, lambda_=lambda_, pad_id=_PAD_ID)
        return made.to(self.engine.device)

    @torch.no_grad()
    def measure(self, judge: Validation) -> float | None:
        """Bits per byte of the validation rows; the model is left in training mode."""
        self.engine.core.eval()
        mine = [batch for step in self._plan(judge.lengths_N, 0) for batch in self._my_batches(step.batches)]
        nll_nats_N = judge.sum_nll(self.engine.core, (self._lay_out(judge.rows, batch, 1.0) for batch in mine))
        self.engine.core.train()
        everywhere_N = torch.from_numpy(nll_nats_N).to(self.engine.device)
        torch.distributed.all_reduce(everywhere_N)
        return judge.summarise(everywhere_N.cpu().numpy())

    # --- checkpoints ------------------------------------------------------------------------------------------

    def _save(self, save: Save, step: int) -> None:
        with tempfile.TemporaryDirectory(prefix="fusion_ray_checkpoint_") as name:
            folder = Path(name)
            state = {key: tensor.contiguous() for key, tensor in self.engine.state().items()}
            save_file(state, folder / f"worker-{self.rank}.safetensors")
            if self.best:
                self.best.save(folder)
            if self.rank == 0:
                history = [asdict(line) for line in self.history]
                progress = {"step": step, "workers": self.workers, "history": history}
                (folder / _PROGRESS).write_text(json.dumps(progress))
            save(folder, step)

    def _restore(self, folder: Path) -> int:
        progress = json.loads((folder / _PROGRESS).read_text())
        path = folder / f"worker-{self.rank}.safetensors"
        self.engine.load_state(load_file(path) if path.exists() and progress["workers"] == self.workers else {})
        self.history = read_history(folder)
        if self.best:
            self.best.restore(folder)
        return int(progress["step"])


def _cut(total: int, part: tuple[int, int]) -> tuple[int, int]:
    number, parts = part
    if total < parts:
        raise RecipeError(
            f"targets.rounds is {parts}, and training has {total} updates; expected one or more in each round. Lower "
            "rounds, or raise targets.epochs."
        )
    return total * (number - 1) // parts, total * number // parts


def read_history(checkpoint: Path) -> list[StepReport]:
    """The updates that a checkpoint has behind it."""
    progress = json.loads((checkpoint / _PROGRESS).read_text())
    return [StepReport(**line) for line in progress["history"]]


@dataclass(frozen=True)
class _Sums:
    """Sums over the answer tokens of all workers."""

    loss: float
    gold: float
    soft: float
    taught: float


class _Tally:
    """Adds up losses over batches and workers, and remembers the rows where one is NaN or infinite."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)
        self.bad_rows: set[int] = set()

    def add(self, batch: TrainingBatch, gold_N: torch.Tensor, soft_N: torch.Tensor) -> None:
        lambda_N = batch.target.lambda_N
        taught_N = lambda_N < 1.0
        soft_N = torch.where(taught_N, soft_N, 0.0)
        loss_N = lambda_N * gold_N + (1.0 - lambda_N) * soft_N
        bad_N = ~torch.isfinite(loss_N)
        parts = [loss_N, gold_N, soft_N, taught_N, bad_N]
        self.sums += torch.stack([part.sum(dtype=torch.float64) for part in parts])
        if bad_N.any():
            self.bad_rows |= set(batch.row_N[bad_N.cpu().numpy()].tolist())

    def reduce(self, rows: TrainingRows, step: int) -> _Sums:
        torch.distributed.all_reduce(self.sums)
        loss, gold, soft, taught, bad = self.sums.tolist()
        if bad or not math.isfinite(loss):
            everywhere: list[set[int]] = [set()] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everywhere, self.bad_rows)
            named = _name_rows(rows, sorted(set().union(*everywhere)))
            raise NonFiniteError(
                f"step {step}: the loss is NaN or infinite in rows {named}; "
                "expected finite numbers. The weights before this step are kept in the last checkpoint. Look at these "
                "rows, lower targets.learning_rate, or use float32."
            )
        return _Sums(loss, gold, soft, taught)


def _name_rows(rows: TrainingRows, numbers: list[int], at_most: int = 8) -> str:
    named = ", ".join(rows.id_of(number) for number in numbers[:at_most])
    return named + (f" and {len(numbers) - at_most} more" if len(numbers) > at_most else "")
