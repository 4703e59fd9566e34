"""Job scripts: JSON lines, exit codes, and signals that end them at once, threads or not."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUSY = """
import threading, time
from fusion_ray.stopping import stop_on_signals
stop_on_signals(lambda name: print("stopped by", name))
threading.Thread(target=time.sleep, args=(60,)).start()
print("ready", flush=True)
time.sleep(60)
"""


def run_job(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "jobs/fuse.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("until", ["corpus", "report"])
def test_a_recipe_that_is_not_there_ends_with_exit_code_2_and_one_json_line(until: str) -> None:
    done = run_job("no/such/recipe.yaml", "--until", until)
    assert done.returncode == 2
    (line,) = [json.loads(text) for text in done.stdout.splitlines()]
    assert (line["event"], line["error"], line["exit_code"]) == ("failed", "RecipeError", 2)
    assert line["run"] == "no/such/recipe.yaml"
    assert "cannot be read" in line["message"]


def test_missing_models_are_named_after_the_job_said_what_it_is(tmp_path: Path) -> None:
    done = run_job("jobs/recipes/tiny.yaml", "--set", f"runs={tmp_path}", "--set", "pivot.model=./no/model")
    started, failed = (json.loads(text) for text in done.stdout.splitlines())
    assert done.returncode == 2
    assert (started["event"], started["run"], started["until"]) == ("started", "tiny", "report")
    assert "./no/model" in failed["message"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_at_once_whatever_its_threads_do(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    said, _ = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert said == f"stopped by {number.name}\n"
