"""`fusion-ray chat`: talk to a model folder in the terminal, to see what came out of a run."""

from typing import Annotated

import typer

from fusion_ray.cli.terminal import out


def chat(
    model: Annotated[str, typer.Argument(help="Model folder, or the folder of a finished run.")],
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token each time.")] = 0.0,
) -> None:
    """Talk to a model in the terminal."""
    from transformers import GenerationConfig, TextStreamer

    from fusion_ray.models.folders import end_tokens, load_model, load_tokenizer
    from fusion_ray.storage.run_folder import find_merged

    folder = find_merged(model)
    tokenizer, network = load_tokenizer(folder), load_model(folder)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    ends = sorted(end_tokens(folder, tokenizer))
    settings = GenerationConfig(
        max_new_tokens=max_tokens, eos_token_id=ends or None, pad_token_id=(ends or [0])[0], **sampling
    )
    out.print(f"[bold]{folder}[/bold]: type a line; an empty one begins anew, Ctrl-D ends.")
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = out.input("[bold cyan]you[/bold cyan] ")
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
