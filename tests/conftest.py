"""Settings of every test process."""

import os
from pathlib import Path

import hypothesis
import pytest

# Two cores are shared with Ray's workers, and nothing may be downloaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests start processes by the dozen: without cached bytecode each would compile torch and Transformers anew, for 15 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What a test hands to Ray's workers is found there as it is here.
_PATHS = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in _PATHS if path)

# The same examples on every run, so that a change passes or fails for what it changes; `make test-all` draws new ones.
# How long an example takes says something of the machine only.
_UNTIMED = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("repeatable", _UNTIMED, derandomize=True)
hypothesis.settings.register_profile("searching", _UNTIMED, print_blob=True)
hypothesis.settings.load_profile("repeatable")

# DeepSpeed under ZeRO-3 keeps two GB of address space for every engine that a process has had, and a process that has
# more of it than the machine has memory cannot be forked, as it is to start Ray. So what trains in this process comes
# last.
_TRAIN_HERE = {"test_adapter.py", "test_best_weights.py", "test_deepspeed.py", "test_trainer.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in the order of their files, but for those."""
    items.sort(key=lambda item: item.path.name in _TRAIN_HERE and item.path.parent.name == "integration")
