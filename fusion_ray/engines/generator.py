"""Continue prompts greedily with a Hugging Face model, for the report's samples; no server, no sampling."""

from collections.abc import Sequence

import numpy as np

from fusion_ray.engines.models import load_model, load_tokenizer


def generate_greedy(
    folder: str,
    prompts: Sequence[np.ndarray],
    *,
    max_tokens: int,
    end_ids: Sequence[int],
    trust_remote_code: bool = False,
) -> list[str]:
    """Continue every prompt with the most probable token, again and again.

    Args:
        folder: Local Hugging Face model folder.
        prompts: Token ids of the model's own tokenizer, each at least one.
        max_tokens: Tokens to add at most.
        end_ids: Tokens that end an answer.
        trust_remote_code: Run model code that lies in the folder.

    Returns:
        The new text of every prompt, without special tokens.

    Raises:
        EngineError: The folder holds no model that can be loaded.
    """
    import torch
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(folder, trust_remote_code)
    model = load_model(folder, trust_remote_code=trust_remote_code)
    ends = sorted(set(end_ids)) or None
    # A configuration of our own: a model's may ask for sampling, and these answers must not depend on chance.
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=ends, pad_token_id=ends[0] if ends else 0
    )
    texts = []
    for prompt in prompts:
        ids = torch.from_numpy(np.asarray(prompt, dtype=np.int64))[None].to(model.device)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        texts.append(str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)))
    return texts
