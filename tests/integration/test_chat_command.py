"""`fusion-ray chat` in a process of its own, with a model that answers."""

import subprocess
import sys
from pathlib import Path

from toys.models import byte_level_tokenizer, save_toy


def test_chat_answers_every_line_until_the_input_ends(tmp_path: Path) -> None:
    pivot = save_toy(tmp_path / "pivot", "llama", byte_level_tokenizer())
    command = [sys.executable, "-m", "fusion_ray", "chat", pivot, "--max-tokens", "3"]
    done = subprocess.run(command, input="Hi\n\nAgain\n", capture_output=True, text=True, check=True)
    assert done.stdout.count("you ") == 4
    assert "Traceback" not in done.stderr
