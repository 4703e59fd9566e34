"""The chat template of a merged model: the one its config asks for, or the one that most of the models have."""

import json
from collections import Counter
from collections.abc import Sequence

from fusion_ray.errors import RecipeError
from fusion_ray.storage.filesystem import exists, join, read_bytes, write_bytes

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def find_chat_template(wanted: str, folders: Sequence[str]) -> str:
    """The text of a chat template that a merge config asks for.

    Args:
        wanted: `auto` for the one that most models have, `chatml`, or the Jinja text itself.
        folders: The models' folders.

    Raises:
        RecipeError: No model has one, or it is the name of a template that is not built in.
    """
    if wanted == "auto":
        found = [template.strip() for template in map(read_chat_template, folders) if template]
        if not found:
            raise RecipeError("chat_template: auto: none of the models has a chat template. Give its text.")
        return Counter(found).most_common(1)[0][0]
    if wanted == "chatml":
        return CHATML
    if "{" not in wanted:
        raise RecipeError(f"chat_template '{wanted}': expected auto, chatml or the Jinja text of a template.")
    return wanted


def read_chat_template(folder: str) -> str | None:
    """The chat template of a model folder, from its own file or from tokenizer_config.json."""
    if exists(join(folder, "chat_template.jinja")):
        return read_bytes(join(folder, "chat_template.jinja")).decode()
    if not exists(join(folder, "tokenizer_config.json")):
        return None
    template = json.loads(read_bytes(join(folder, "tokenizer_config.json"))).get("chat_template")
    if isinstance(template, list):  # Several by name.
        template = next((item["template"] for item in template if item.get("name") == "default"), None)
    return template


def set_chat_template(folder: str, template: str) -> None:
    """Make this the chat template of a folder's tokenizer, and the only one."""
    uri = join(folder, "tokenizer_config.json")
    if exists(uri):
        settings = json.loads(read_bytes(uri))
        settings.pop("chat_template", None)
        write_bytes(uri, (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode())
    write_bytes(join(folder, "chat_template.jinja"), template.encode())
