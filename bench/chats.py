"""Conversations of real text that any installation has: functions of the standard library and Python's help topics."""

import argparse
import collections
import decimal
import difflib
import inspect
import logging
import random
import statistics
import subprocess
import textwrap
import threading
from pydoc_data.topics import topics

MODULES = (argparse, collections, decimal, difflib, logging, statistics, subprocess, textwrap, threading)


def chats(seed: int = 0, answer_characters: int = 1500) -> list[list[dict[str, str]]]:
    """One question and one answer each, code and prose mixed by `seed`; about 230 of them."""
    pairs = [(f"Tell me about Python's {topic}.", text) for topic, text in sorted(topics.items())]
    for module in MODULES:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            pairs.append((f"Write the function `{name}`.", inspect.getsource(function)))
    random.Random(seed).shuffle(pairs)
    return [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer[:answer_characters]}]
        for question, answer in pairs
    ]
