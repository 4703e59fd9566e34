"""Task arithmetic: the base plus the weighted sum of the deltas (arXiv 2212.04089)."""

from fusion_ray.merged.methods.blocks import BlockedTensor, MergedTensor
from fusion_ray.merged.methods.deltas import merge_deltas
from fusion_ray.merged.methods.registry import Context, method
from fusion_ray.merged.methods.sparsify import keep_all
from fusion_ray.recipe.merge_methods import TaskArithmetic


@method(TaskArithmetic)
def merge_task_arithmetic(tensor: BlockedTensor, parameters: TaskArithmetic, context: Context) -> MergedTensor:
    """Add the weighted deltas to the base."""
    return merge_deltas(tensor, parameters, context, keep_all, elect=False)
