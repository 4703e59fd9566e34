"""Rows of fused sets laid out as batches: what is taught where, and at which weight."""

import torch
from toys.training import anchored_rows, settings

from fusion_ray.targets.packing import Batch
from fusion_ray.targets.rows import make_batch


def test_gold_has_no_part_in_what_is_held_whatever_lambda() -> None:
    some = anchored_rows()
    assert 0 < some.n_anchored < some.answers_N.sum()
    batch = Batch(64, ((0,),))
    for lambda_ in (0.0, 0.3, 1.0):
        target = make_batch(some, batch, settings(), lambda_=lambda_, pad_id=0).target
        chosen_T = some[0].chosen_T
        assert target.lambda_N[chosen_T == -2].eq(0).all()
        assert target.lambda_N[chosen_T != -2].eq(torch.tensor(lambda_)).all()
        assert target.probs_NK[chosen_T == -2].sum() > 0
