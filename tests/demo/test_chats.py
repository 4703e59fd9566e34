"""What the demo reads from a library, from packages and from dialogues, on small ones made for the test."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusion_ray.demo import chats, making
from fusion_ray.demo.chats import (
    Texts,
    _paragraphs,
    _prose,
    all_chats,
    code_chats,
    conversation_chats,
    documented,
    named_chat,
    package_folders,
    parsed_modules,
    reference_chats,
)
from fusion_ray.demo.making import _is_made, _versions, split_chats
from fusion_ray.demo.plans import TINY
from fusion_ray.errors import RecipeError

MODULE = '''
def add(a, b=1):
    """Add two numbers.

    More of it.
    """
    return a + b

def plain(x):
    return x

def only():
    """Says only this."""

class Box:
    """Holds things.

    Parameters
    ----------
    x : int
    """

    def open(self):
        """Open it."""
        return self
    size = 1

number = 5
'''


def library(folder: Path) -> Path:
    """A package of two modules, a test and a file that is no Python."""
    root = folder / "shelf"
    (root / "tests").mkdir(parents=True)
    for name, text in (("__init__", '"""All."""\n'), ("b", MODULE), ("a", "def one():\n    return 1\n")):
        (root / f"{name}.py").write_text(text)
    (root / "tests" / "test_b.py").write_text(MODULE)
    (root / "broken.py").write_text("def (")
    return root


def test_modules_come_by_name_without_tests_and_what_is_no_python(tmp_path: Path) -> None:
    root = library(tmp_path)
    assert [name for name, _ in parsed_modules(root, tmp_path, "**/*.py")] == ["shelf", "shelf.a", "shelf.b"]
    assert [name for name, _ in parsed_modules(root, root, "[b-z]*.py")] == ["b"]


def test_functions_classes_and_methods_can_have_documentation() -> None:
    assert [name for name, _ in documented(ast.parse(MODULE))] == ["add", "plain", "only", "Box", "Box.open"]


def test_code_is_asked_for_by_signature_and_the_first_line_of_its_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = library(tmp_path)
    monkeypatch.setattr(chats, "sysconfig", SimpleNamespace(get_paths=lambda: {"stdlib": str(root)}))
    found = list(code_chats(Texts(code="b.py")))
    assert [chat.turns for chat in found] == [
        ("Write the Python function add(a, b=1): Add two numbers.", "def add(a, b=1):\n    return a + b"),
        ("Write the Python function plain(x) of b.", "def plain(x):\n    return x"),
        ("Write the Python function only(): Says only this.", "def only():\n    pass"),
        ("Write the Python function open(self): Open it.", "def open(self):\n    return self"),
    ]
    assert [chat.id.rsplit("/", 1)[0] for chat in found][:2] == ["code/b.add", "code/b.plain"]


def test_reference_is_what_stands_before_the_first_heading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert package_folders("shelf") == [tmp_path / "shelf"]
    assert package_folders("no_such_package_of_ours") == [] and package_folders("this") == []
    found = list(reference_chats(Texts(packages=("shelf", "no_such_package_of_ours"))))
    assert [chat.turns for chat in found] == [
        ("What is shelf.b.add?", "Add two numbers.\nMore of it."),
        ("What is shelf.b.only?", "Says only this."),
        ("What is shelf.b.Box?", "Holds things."),
        ("What is shelf.b.Box.open?", "Open it."),
    ]


@pytest.mark.parametrize("stop", ["Parameters\n----", ">>> x", ".. note::", ":param x:"])
def test_prose_ends_where_something_else_begins(stop: str) -> None:
    assert _prose(["One.", "Two.", stop, "Three."]) == "One.\nTwo."
    assert _paragraphs("  A\n  b.\n\n\n\n  C.") == ["A b.", "C."]
    assert _paragraphs(None) == _paragraphs("") == []


def test_conversations_are_cut_to_pairs_of_turns_and_some_subjects_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data" / "english"
    folder.mkdir(parents=True)
    talk = {"talk": "[[a, b], [a, b, c], [a], [a, '', c, d], [ 1, 2, 3, 4, 5, 6], []]", "coding": "[[x, y]]"}
    for name, lines in talk.items():
        (folder / f"{name}.yml").write_text(f"conversations: {lines}\n")
    monkeypatch.setattr(chats, "package_folders", lambda _: [tmp_path, tmp_path / "other"])
    found = list(conversation_chats(Texts(languages=("english", "klingon"))))
    assert [chat.turns for chat in found] == [("a", "b"), ("a", "b"), ("1", "2", "3", "4")]
    assert found[0].id.startswith("conversation/english.talk/")
    assert [chat.turns for chat in conversation_chats(Texts(languages=("english",), turns=2))][-1] == ("1", "2")
    monkeypatch.setattr(chats, "package_folders", lambda _: [])
    with pytest.raises(RecipeError, match="chatterbot-corpus, which is not installed"):
        list(conversation_chats(Texts()))


def test_answers_are_as_long_as_asked_for_and_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(*answers: str) -> chats.Chat:
        return named_chat("conversation", "x", tuple(turn for answer in answers for turn in ("Q", answer)))

    said = [talk("123"), talk("1234"), talk("12345678"), talk("123456789"), talk("AB  cd"), talk("ab cd"),
            talk("ab", "cd"), talk("ääää"), talk("äääää")]  # fmt: skip
    monkeypatch.setattr(chats, "conversation_chats", lambda _: iter(said))
    monkeypatch.setattr(chats, "code_chats", lambda _: iter([named_chat("code", "y", ("P", "1234"))]))
    monkeypatch.setattr(chats, "reference_chats", lambda _: iter([named_chat("reference", "z", ("P", "other"))]))
    kept = all_chats(Texts(answer_bytes=(4, 8)))
    assert [chat.turns[1::2] for chat in kept] == [
        ("1234",), ("12345678",), ("AB  cd",), ("ääää",), ("other",),
    ]  # fmt: skip
    assert kept[0].messages() == [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "1234"}]


def test_a_chat_is_named_by_its_text_however_its_letters_are_composed() -> None:
    one, same, other = (named_chat("code", "n", ("q", text)) for text in ("\u00e4", "a\u0308", "b"))
    assert one == same and one.id != other.id and len(one.id.rsplit("/", 1)[1]) == 10


def test_of_each_domain_the_first_go_to_fusion_and_the_next_train_models() -> None:
    from dataclasses import replace

    talks = [named_chat(domain, str(n), ("q", str(n))) for domain in ("code", "law") for n in range(9)]
    plan = replace(TINY, fusion_chats=2, training_chats=3)
    training, fusion = split_chats(talks, plan, 0)
    assert [chat.domain for chat in fusion] == ["code"] * 2 + ["law"] * 2
    assert [chat.domain for chat in training] == ["code"] * 3 + ["law"] * 3
    assert not set(training) & set(fusion)
    assert split_chats(talks[::-1], plan, 0)[0][-3:] == training[:3], "their order decides nothing"


def test_what_is_made_has_its_mark_and_all_its_files(tmp_path: Path) -> None:
    mark, file = tmp_path / "demo.json", tmp_path / "file"
    assert not _is_made(mark, "x", file)
    mark.write_text('{"made_from": "x"}')
    assert not _is_made(mark, "x", file)
    file.write_text("")
    assert _is_made(mark, "x", file) and not _is_made(mark, "y", file)
    mark.unlink()
    assert not _is_made(mark, "x", file)
    found = _versions(("pytest", "no-such-package-of-ours"))
    assert found == {"pytest": pytest.__version__, "no-such-package-of-ours": "absent"}


def test_chats_are_told_of_while_they_are_made_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = [named_chat(domain, str(n), ("q", f"ä{n}")) for domain in ("code", "law") for n in range(30)]
    monkeypatch.setattr(making, "all_chats", lambda _: talks)
    told: list[tuple[str, float, float, str]] = []

    def make(seed: int = 0) -> None:
        told.clear()
        making._make_chats(tmp_path, TINY, seed, lambda p: told.append((p.what, p.done, p.total, p.detail)))

    make()
    assert told == [
        ("demo chats", 0, 1, "reading Python's library, documentation and dialogues"),
        ("demo chats", 1, 1, "20 to train models on, 40 to fuse on"),
    ]
    text = (tmp_path / "chats.jsonl").read_text(encoding="utf-8")
    assert text.count("\n") == 40 and "ä" in text
    assert (tmp_path / "training" / "chats.jsonl").read_text(encoding="utf-8").count("\n") == 20
    make()
    assert told == [("demo chats", 1, 1, "already there")]
    make(seed=1)
    assert len(told) == 2 and (tmp_path / "chats.jsonl").read_text(encoding="utf-8") != text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl", "training"]
