"""The model in training: documents do not see each other, and its head gives the model's own nll."""

import numpy as np
import pytest
import torch
from toys.fused import toy_fused
from toys.models import ARCHITECTURES, toy_config
from transformers import AutoModelForCausalLM

from fusion_ray.errors import CorruptArtifactError, EngineError, RecipeError
from fusion_ray.recipe import Targets
from fusion_ray.targets.packing import Batch
from fusion_ray.targets.rows import TrainingRows, check_rows, make_batch
from fusion_ray.targets.student import Student

VOCABULARY = 300
SETTINGS = Targets(dtype="float32", max_length=64)


def student_of(architecture: str, **changes: object) -> Student:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(toy_config(architecture, VOCABULARY, **changes))
    return Student(model.eval(), SETTINGS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_give_the_same_nll_as_each_row_alone(architecture: str) -> None:
    student = student_of(architecture)
    rows = TrainingRows([toy_fused(8, longest=50)], max_length=64)
    packed = make_batch(rows, Batch(128, ((0, 1), (2, 4))), SETTINGS, lambda_=0.5, pad_id=0)
    with torch.no_grad():
        together_N = student(packed, 1.0)[1]
        for row in (0, 1, 2, 4):
            alone = make_batch(rows, Batch(int(rows.lengths_N[row]), ((row,),)), SETTINGS, lambda_=0.5, pad_id=0)
            alone_N = student(alone, 1.0)[1]
            torch.testing.assert_close(together_N[packed.row_N == row], alone_N, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_changing_one_document_leaves_its_neighbours_alone(architecture: str) -> None:
    student = student_of(architecture)
    rows = TrainingRows([toy_fused(8, longest=50)], max_length=64)
    batch = make_batch(rows, Batch(128, ((0, 1),)), SETTINGS, lambda_=0.5, pad_id=0)
    with torch.no_grad():
        before_N = student(batch, 1.0)[1]
        batch.input_ids_BW[0, : rows.lengths_N[0]] = 7
        after_N = student(batch, 1.0)[1]
    assert torch.equal(before_N[batch.row_N == 1], after_N[batch.row_N == 1])
    assert not torch.equal(before_N[batch.row_N == 0], after_N[batch.row_N == 0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_repeats_the_model_s_own_logits(architecture: str) -> None:
    student_of(architecture).check()


def test_an_unknown_change_of_the_logits_is_refused() -> None:
    student = student_of("llama")
    student.after_head = student.after_head._replace(scale=0.5)
    with pytest.raises(EngineError, match="in a way not known"):
        student.check()


def test_rows_are_cut_and_counted() -> None:
    rows = TrainingRows([toy_fused(8, longest=60), toy_fused(4, seed=1)], max_length=20)
    assert len(rows) == 12
    assert rows.n_unusable == 2
    assert rows.lengths_N[3] == 0
    assert rows.lengths_N.max() == 20
    assert rows.n_cut == int((TrainingRows([toy_fused(8), toy_fused(4, seed=1)], max_length=99).lengths_N > 20).sum())
    row = rows[0]
    assert row.answer_T.max() < 20
    assert len(row.chosen_T) == len(row.answer_T) == len(row.ids_TK) == rows.answers_N[0]


def test_targets_stand_at_their_own_answer_tokens() -> None:
    rows = TrainingRows([toy_fused(8)], max_length=64)
    batch = make_batch(rows, Batch(64, ((1,), (2,))), SETTINGS, lambda_=0.5, pad_id=0)
    flat_ids = batch.input_ids_BW.flatten()
    assert torch.equal(flat_ids[batch.before_N + 1], batch.target.gold_N)
    # The toy's most probable token is always the one that came.
    assert torch.equal(batch.target.ids_NK[:, 0], batch.target.gold_N)
    chosen_N = np.concatenate([rows[1].chosen_T, rows[2].chosen_T])
    assert ((batch.target.lambda_N == 1).numpy() == (chosen_N == -1)).all()


def test_answer_bytes_are_known_only_for_whole_rows() -> None:
    rows = TrainingRows([toy_fused(8)], max_length=99)
    assert rows.answer_bytes(0) == 3 * rows.answers_N[0]
    assert rows.answer_bytes(3) == 0, "unusable"
    assert TrainingRows([toy_fused(8)], max_length=12).answer_bytes(0) == 0, "cut"


def test_token_ids_of_another_vocabulary_are_refused() -> None:
    rows = TrainingRows([toy_fused(8, vocabulary=300)], max_length=64)
    with pytest.raises(CorruptArtifactError, match="vocabulary has 100"):
        check_rows(rows, 100, "fused/math")


def test_rows_without_answers_are_refused() -> None:
    rows = TrainingRows([toy_fused(8)], max_length=4)
    with pytest.raises(RecipeError, match="answer token"):
        check_rows(rows, 300, "fused/math")
