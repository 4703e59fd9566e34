#!/bin/sh
# Make the environment that bench/merge.py compares with: mergekit and nothing of ours. Prints its python.
set -eu
home="${XDG_CACHE_HOME:-$HOME/.cache}/fusion_ray/mergekit-venv"
if [ ! -x "$home/bin/mergekit-yaml" ]; then
    links="$(pip config get global.find-links 2>/dev/null || true)"
    [ -z "$links" ] || export UV_FIND_LINKS="$links"
    uv venv --quiet --python 3.11 "$home"
    uv pip install --quiet --python "$home/bin/python" mergekit==0.1.5 torch==2.13.0
fi
echo "$home/bin/python"
