"""`fusion-ray chat`: talk to a model folder in the terminal, to see what came out of a run."""

from rich.console import Console

from fusion_ray.models.folders import end_tokens, load_model, load_tokenizer
from fusion_ray.storage.run_folder import find_merged


def chat(model: str, console: Console, *, max_tokens: int, temperature: float) -> None:
    """Answer lines of standard input until it ends; an empty line begins a new conversation.

    Args:
        model: Model folder, or the folder of a finished run.
        console: Where answers go, token by token.
        max_tokens: Longest answer.
        temperature: 0 takes the most probable token each time.

    Raises:
        EngineError: There is no model to load.
    """
    from transformers import GenerationConfig, TextStreamer

    folder = find_merged(model)
    tokenizer, network = load_tokenizer(folder), load_model(folder)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    ends = sorted(end_tokens(folder, tokenizer))
    settings = GenerationConfig(
        max_new_tokens=max_tokens, eos_token_id=ends or None, pad_token_id=(ends or [0])[0], **sampling
    )
    console.print(f"[bold]{folder}[/bold]: type a line; an empty one begins anew, Ctrl-D ends.")
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = console.input("[bold cyan]you[/bold cyan] ")
        except EOFError:
            return
        if not line.strip():
            messages = []
            continue
        messages.append({"role": "user", "content": line})
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        made = network.generate(
            prompt["input_ids"].to(network.device),
            attention_mask=prompt["attention_mask"].to(network.device),
            generation_config=settings,
            streamer=streamer,
        )
        answer = tokenizer.decode(made[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": str(answer)})
