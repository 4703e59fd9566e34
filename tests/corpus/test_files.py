"""Reading chats from the files people have."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from fusion_ray.corpus.files import chat_files, chat_of, is_named_by_content, read_chats, read_rows
from fusion_ray.corpus.row_formats import Chat
from fusion_ray.errors import CorruptArtifactError, RecipeError
from fusion_ray.recipe import Columns

OPENAI = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "domain": "talk"}
SHAREGPT = {"id": "s1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
TEXT = {"text": "Once upon a time."}


def read(path: Path) -> list[Chat]:
    return list(read_chats(str(path)))


def test_all_three_shapes_become_messages(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (OPENAI, SHAREGPT, TEXT)) + "\n\n")
    chats = read(path)
    assert [chat.reason for chat in chats] == [None, None, None]
    assert chats[0].messages == chats[1].messages == OPENAI["messages"]
    assert chats[2].messages == [{"role": "text", "content": TEXT["text"]}]
    assert [chat.domain for chat in chats] == ["talk", "all", "all"]
    assert chats[1].id == "s1"


def test_parquet_and_arrow_read_like_jsonl(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([OPENAI])
    pq.write_table(table, tmp_path / "chats.parquet")
    with pa.ipc.new_stream(str(tmp_path / "chats.arrow"), table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "chats.jsonl").write_text(json.dumps(OPENAI))
    (first, second, third) = (read(tmp_path / f"chats.{end}") for end in ("parquet", "arrow", "jsonl"))
    assert first == second == third


def test_an_id_depends_on_the_content_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(TEXT) + "\n" + json.dumps(OPENAI))
    (tmp_path / "b.jsonl").write_text(json.dumps(OPENAI))
    assert read(tmp_path / "a.jsonl")[1].id == read(tmp_path / "b.jsonl")[0].id


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "no conversation in the row"),
        (json.dumps({"messages": [{"role": "wizard", "content": "x"}]}), "unknown role 'wizard'"),
        (json.dumps({"messages": [{"role": "assistant", "content": None}]}), "no text content"),
        (json.dumps({"messages": [{"role": "user", "content": "x"}]}), "no answer"),
        (json.dumps({"messages": [{"role": "assistant", "content": ""}]}), "no answer"),
        (json.dumps({"text": "\ud800"}), "surrogates"),
        (json.dumps({"messages": ["x"]}), "not a role and a content"),
    ],
)
def test_a_row_that_is_no_chat_keeps_its_place_with_the_reason(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(line + "\n" + json.dumps(OPENAI))
    bad, good = read(path)
    assert bad.messages is None
    assert bad.reason is not None
    assert reason in bad.reason
    assert good.reason is None


def test_contents_given_as_text_parts_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": [{"role": "assistant", "content": parts}]}))
    assert read(tmp_path / "c.jsonl")[0].messages == [{"role": "assistant", "content": "Hello"}]


def test_a_file_that_is_not_what_its_name_says_is_corrupt(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.arrow", "c.json"):
        (tmp_path / name).write_text("nothing of the kind")
        with pytest.raises(CorruptArtifactError, match=name):
            read(tmp_path / name)


def test_a_folder_gives_its_data_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    names = ("b.jsonl", "a.parquet", "readme.md", "dataset_info.json", "state.json", "part/state.json", "part/c.jsonl")
    for name in names:
        (tmp_path / name).write_text("")
    found = [str(Path(uri).relative_to(tmp_path)) for uri in chat_files(str(tmp_path))]
    assert found == ["a.parquet", "b.jsonl", "part/c.jsonl"]
    with pytest.raises(RecipeError, match="no such file"):
        chat_files(str(tmp_path / "nowhere.jsonl"))


def test_files_of_other_kinds_and_packings_read_like_jsonl(tmp_path: Path) -> None:
    flat = {"id": "7", "prompt": "Hi, you", "completion": 'Hello\n"there"'}
    lines = json.dumps(flat) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.replace("\n", "\r\n").encode())
    (tmp_path / "lines.json").write_text(lines * 2)
    (tmp_path / "one.json").write_text(json.dumps(flat))
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([flat]).encode())
    for name, text in (("c.csv", ","), ("t.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(flat), delimiter=text)
            writer.writeheader()
            writer.writerow(flat)
    for packed in ("gz", "zst", "bz2"):
        codec = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}[packed]
        with pa.output_stream(str(tmp_path / f"p.jsonl.{packed}"), compression=codec) as stream:
            stream.write(lines.encode())
    pa.feather.write_feather(pa.Table.from_pylist([flat]), str(tmp_path / "f.feather"))
    expected = read(tmp_path / "a.jsonl")
    assert expected[0].messages == [
        {"role": "user", "content": "Hi, you"}, {"role": "assistant", "content": 'Hello\n"there"'}
    ]  # fmt: skip
    for path in sorted(tmp_path.iterdir()):
        assert read(path)[:1] == expected, path.name


def test_what_is_no_chat_in_a_folder_is_left_out_and_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("a.jsonl", "LICENSE.txt", "README.txt", ".cache/b.jsonl", "deep/.hidden.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [Path(uri).name for uri in chat_files(str(tmp_path))] == ["a.jsonl", "notes.txt"]
    for split in ("train", "test"):
        (tmp_path / "saved" / split).mkdir(parents=True)
        (tmp_path / "saved" / split / "data.arrow").write_text("")
    (tmp_path / "saved" / "dataset_dict.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"splits test, train, which must not be mixed.*saved/test'"):
        chat_files(str(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[" * 20_000 + "]" * 20_000, "nested too deeply"),
        (json.dumps(OPENAI | {"id": "\ud800"}), "id or domain is not valid Unicode"),
        (json.dumps(OPENAI | {"domain": "\ud800"}), "id or domain is not valid Unicode"),
    ],
)
def test_hostile_rows_keep_their_place(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(line + "\n" + json.dumps(OPENAI))
    bad, good = read(tmp_path / "c.jsonl")
    assert bad.reason is not None and reason in bad.reason
    assert good.reason is None
    f"{bad.id}{bad.domain}".encode()


def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes('{"text": "na\xefve"}'.encode("latin-1"))
    with pytest.raises(CorruptArtifactError, match=r"latin\.jsonl: not UTF-8.*iconv"):
        read(tmp_path / "latin.jsonl")
    (tmp_path / "number.json").write_text("7")
    with pytest.raises(CorruptArtifactError, match=r"number\.json: expected an array of rows"):
        read(tmp_path / "number.json")
    table = pa.Table.from_pylist([OPENAI] * 500)
    pq.write_table(table, tmp_path / "cut.parquet")
    with pa.ipc.new_stream(str(tmp_path / "cut.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("cut.parquet", "cut.arrow"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(CorruptArtifactError, match=name):
            read(tmp_path / name)


def test_a_chat_says_which_fields_of_its_row_nobody_reads(tmp_path: Path) -> None:
    rows = [OPENAI | {"tools": ["f"], "license": None}, {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}, TEXT]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [chat.not_read for chat in read(tmp_path / "c.jsonl")] == [("tools",), ("rejected",), ()]


def test_a_file_is_found_by_its_bare_name_and_other_kinds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text(json.dumps(OPENAI) + '\n"x"\n' + json.dumps(OPENAI | {"k\ud800": 1}))
    first, second, third = read_chats("chats.jsonl")
    assert first.reason is None and "line 2: not a JSON object" in str(second.reason)
    "".join(third.not_read).encode()
    Path("chats.docx").write_text("")
    for path, said in (("chats.docx", "unknown kind"), ("", "is empty")):
        with pytest.raises(RecipeError, match=said):
            chat_files(path)


def test_a_row_without_an_id_gets_one_from_its_messages_or_from_all_that_it_holds() -> None:
    def identity(content: object) -> str:
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    good, other_domain, bad, worse = (
        chat_of(row) for row in (OPENAI, OPENAI | {"domain": "x"}, {"title": "a"}, {"title": "b"})
    )
    assert good.id == other_domain.id == identity(OPENAI["messages"])
    assert (bad.id, worse.id) == (identity({"title": "a"}), identity({"title": "b"}))
    named = chat_of({"id": "a", "key": 7, "topic": "x", **OPENAI}, Columns(id="key", domain="topic"))
    assert (named.id, named.domain, named.not_read) == ("7", "x", ("id", "domain"))
    assert [chat_of(OPENAI | {"id": given}).id for given in (0, "", None)] == ["0", good.id, good.id]


def test_what_kind_a_file_is_says_its_own_name_and_not_its_folder_s(tmp_path: Path) -> None:
    place = tmp_path / "from.parquet" / "x" / "chats.jsonl"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(TEXT))
    assert [chat.messages for chat in read(place)] == [[{"role": "text", "content": TEXT["text"]}]]


def test_cells_of_a_table_are_text_as_they_stand_over_any_number_of_lines(tmp_path: Path) -> None:
    long = "\n" * 1_200_000
    (tmp_path / "c.csv").write_text(f'"id",prompt,completion\n007,01,2.50\n8,true,"a{long}b"\n')
    first, second = read(tmp_path / "c.csv")
    assert (first.id, [message["content"] for message in first.messages or ()]) == ("007", ["01", "2.50"])
    assert (second.id, [message["content"] for message in second.messages or ()]) == ("8", ["true", f"a{long}b"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"text": "a"}', [{"text": "a"}]),
        ('\n {"text": "a"}\n\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
        ('[{"text": "a"}, 7]', [{"text": "a"}, "c.json: item 1 is no object"]),
        ('[\n{"text": "a"}\n]', [{"text": "a"}]),
        ('{"text": "a"}\n7', [{"text": "a"}, "c.json line 2: not a JSON object"]),
        ('[{"text": "a"}]\n[{"text": "b"}]', r"c\.json: not JSON \(Extra data"),
        ("[" * 20_000, r"c\.json: not JSON \(maximum recursion"),
        ('"x"\n', r"c\.json: expected an array of rows, or one row a line, found str\."),
        ("", r"c\.json: not JSON"),
    ],
)
def test_json_is_one_object_or_an_array_of_them_or_one_a_line(
    text: str, found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(text)
    if isinstance(found, list):
        assert list(read_rows("c.json")) == found
        return
    with pytest.raises(CorruptArtifactError, match=found):
        list(read_rows("c.json"))


def test_a_chat_without_an_id_of_its_own_is_named_by_its_content() -> None:
    rows = (OPENAI, OPENAI | {"id": ""}, OPENAI | {"id": "x"}, {"messages": []}, "no JSON")
    assert [is_named_by_content(chat_of(row)) for row in rows] == [True, True, False, False, False]
