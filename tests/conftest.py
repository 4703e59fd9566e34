"""Settings of every test process."""

import os
from pathlib import Path

# Two cores are shared with Ray's workers, and nothing may be downloaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests start processes by the dozen: without cached bytecode each would compile torch and Transformers anew, for 15 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What a test hands to Ray's workers is found there as it is here.
_PATHS = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
os.environ["PYTHONPATH"] = os.pathsep.join(path for path in _PATHS if path)
