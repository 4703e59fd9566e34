"""Chats made from text that every installation has: Python's own library, documentation strings, dialogues.

Three domains that differ in vocabulary and form, so that a model trained on one is weak on the others. Nothing is
downloaded, imported or run: sources are read as text and parsed.
"""

import ast
import hashlib
import importlib.util
import sysconfig
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fusion_ray.errors import RecipeError

_SKIPPED = {"site-packages", "test", "tests", "idlelib", "lib2to3", "_vendor", "array_api_extra"}


@dataclass(frozen=True)
class Chat:
    """One conversation of the demo, user and assistant in turns.

    Attributes:
        id: Stable name, unique over all domains.
        domain: One of code, reference, conversation.
        turns: Texts, the user's first, always an even number.
    """

    id: str
    domain: str
    turns: tuple[str, ...]

    def messages(self) -> list[dict[str, str]]:
        """The chat in the shape of the recipe's corpus."""
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(self.turns)]


@dataclass(frozen=True)
class Texts:
    """Where the chats come from; a narrower choice is read faster.

    Attributes:
        code: Which files of the standard library give code, as a glob pattern.
        packages: Installed packages whose documentation gives reference prose.
        languages: Folders of `chatterbot-corpus` that give conversations.
        answer_bytes: Fewest and most UTF-8 bytes of all the answers of a chat together.
        turns: Longer conversations are cut to this many turns.
    """

    code: str = "**/*.py"
    packages: tuple[str, ...] = ("numpy", "networkx", "scipy")
    languages: tuple[str, ...] = (
        "chinese", "dutch", "english", "italian", "japanese",
        "korean", "persian", "portuguese", "spanish", "ukrainian",
    )  # fmt: skip
    answer_bytes: tuple[int, int] = (24, 320)
    turns: int = 4


def all_chats(texts: Texts) -> list[Chat]:
    """Every usable chat of the three domains, in a fixed order, no two with the same answers.

    Raises:
        RecipeError: The package `chatterbot-corpus` is not installed.
    """
    seen: set[str] = set()
    kept: list[Chat] = []
    fewest, most = texts.answer_bytes
    for chat in (*conversation_chats(texts), *code_chats(texts), *reference_chats(texts)):
        answers = "\n".join(chat.turns[1::2])
        key = " ".join(answers.lower().split())
        if key in seen or not fewest <= len(answers.encode()) <= most:
            continue
        seen.add(key)
        kept.append(chat)
    return kept


def code_chats(texts: Texts) -> Iterator[Chat]:
    """Functions of the standard library, asked for by signature and first line of documentation."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for module, tree in parsed_modules(library, library, texts.code):
        for name, node in documented(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            summary = _paragraphs(ast.get_docstring(node))[:1]
            if summary:
                node.body = node.body[1:] or [ast.Pass()]
            asked = f"Write the Python function {node.name}({ast.unparse(node.args)})"
            prompt = asked + (f": {summary[0]}" if summary else f" of {module}.")
            yield named_chat("code", f"{module}.{name}", (prompt[:160], ast.unparse(node)))


def reference_chats(texts: Texts) -> Iterator[Chat]:
    """What classes and functions of installed packages say about themselves."""
    for package in texts.packages:
        for root in package_folders(package):
            for module, tree in parsed_modules(root, root.parent, "**/*.py"):
                for name, node in documented(tree):
                    prose = _prose(_paragraphs(ast.get_docstring(node)))
                    if prose:
                        yield named_chat("reference", f"{module}.{name}", (f"What is {module}.{name}?", prose))


def conversation_chats(texts: Texts) -> Iterator[Chat]:
    """Small talk in several languages from the package `chatterbot-corpus`, without its programming questions."""
    import yaml

    folders = package_folders("chatterbot_corpus")
    if not folders:
        raise RecipeError(
            "The demo's conversations come from the package chatterbot-corpus, which is not installed. "
            "Install it with: pip install 'fusion-ray[demo]'."
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for language in texts.languages:
        for path in sorted((folders[0] / "data" / language).glob("*.yml")):
            if path.stem in {"coding", "computers"}:
                continue
            for lines in yaml.load(path.read_text(encoding="utf-8"), loader)["conversations"]:
                turns = tuple(str(line).strip() for line in lines)[: texts.turns]
                turns = turns[: len(turns) // 2 * 2]
                if turns and all(turns):
                    yield named_chat("conversation", f"{language}.{path.stem}", turns)


def named_chat(domain: str, name: str, turns: tuple[str, ...]) -> Chat:
    """A chat whose id is its name and a digest of its text."""
    turns = tuple(unicodedata.normalize("NFC", text) for text in turns)
    digest = hashlib.sha256("\x00".join(turns).encode()).hexdigest()[:10]
    return Chat(id=f"{domain}/{name}/{digest}", domain=domain, turns=turns)


def package_folders(package: str) -> list[Path]:
    """Where an installed package lies, without importing it; empty where it is not installed."""
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def parsed_modules(root: Path, above: Path, pattern: str) -> Iterator[tuple[str, ast.Module]]:
    """Python modules below a folder by their dotted names, in a fixed order, tests left out."""
    for path in sorted(root.glob(pattern)):
        inside = path.relative_to(above).with_suffix("").parts
        if _SKIPPED & set(inside):
            continue
        try:
            with warnings.catch_warnings():  # Old escapes in others' string literals are not our concern.
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # A template or a test of the parser: not a module, so not a text of the domain.
        yield ".".join(part for part in inside if part != "__init__"), tree


def documented(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """Functions, classes and methods, all that can have a docstring, by name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner


def _paragraphs(docstring: str | None) -> list[str]:
    if not docstring:
        return []
    return [" ".join(part.split()) for part in textwrap.dedent(docstring).split("\n\n") if part.strip()]


def _prose(paragraphs: Iterable[str]) -> str:
    """The paragraphs before the first heading of a numpy-style docstring."""
    kept: list[str] = []
    for paragraph in paragraphs:
        if "----" in paragraph or paragraph.startswith((">>>", "..", ":")):
            break
        kept.append(paragraph)
    return "\n".join(kept)
