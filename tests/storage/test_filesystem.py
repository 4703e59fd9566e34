"""Addresses of files and folders, here and elsewhere."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from pyarrow import fs

from fusion_ray.errors import ArtifactError, MissingArtifactError, RecipeError
from fusion_ray.storage import filesystem
from fusion_ray.storage.filesystem import join, list_files, locate, naming_a_full_disk, write_bytes
from fusion_ray.storage.node_cache import _root, fetch_folder


def test_a_local_folder_needs_no_copy(tmp_path: Path) -> None:
    assert fetch_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("address", ["s3://KEY:planted@bucket/runs", "s3://KEY:planted@bucket"])
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(RecipeError, match="environment") as error:
        locate(address)
    assert "planted" not in str(error.value)


def test_an_at_sign_in_a_path_is_no_credential(tmp_path: Path) -> None:
    assert locate(f"file://{tmp_path}/a@b").path == f"{tmp_path}/a@b"
    assert locate(f"{tmp_path}/a@b").is_local


@pytest.mark.parametrize(
    ("endpoint", "uri", "added"),
    [
        ("", "s3://b/x", ""),
        ("http://localhost:9000/", "s3://b/x", "?endpoint_override=localhost%3A9000&scheme=http"),
        ("localhost:9000", "s3://b/x", "?endpoint_override=localhost%3A9000&scheme=https"),
        ("http://localhost:9000", "gs://b/x", ""),
        ("http://localhost:9000", "s3://b/x?region=eu", ""),
    ],
)
def test_a_store_of_one_s_own_is_named_in_the_environment(
    endpoint: str, uri: str, added: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert filesystem._endpoint(uri) == added


def test_an_address_is_opened_at_the_store_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = locate("s3://bucket/x")
    expected = fs.S3FileSystem(endpoint_override="localhost:9", scheme="http")
    assert (place.path, place.is_local, place.filesystem.equals(expected)) == ("bucket/x", False, True)


def test_names_are_joined_and_addresses_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert join("s3://b/x//", "a..b", "c/d") == "s3://b/x/a..b/c/d"
    assert join("x") == "x"
    for name in ("/a", "..", "a/.."):
        with pytest.raises(RecipeError, match="leave this folder"):
            join("x", "fine", name)
    assert filesystem.absolute("x") == f"{tmp_path}/x" and filesystem.absolute("s3://b") == "s3://b"
    assert filesystem.local_path("file:///x") == Path("/x") and filesystem.local_path("x") == tmp_path / "x"


def test_files_are_listed_in_order_and_folders_are_no_files(tmp_path: Path) -> None:
    for name in ("b", "a", "deep/c"):
        write_bytes(f"{tmp_path}/{name}", b"x")
    assert (list_files(str(tmp_path)), list_files(f"{tmp_path}/", True)) == (["a", "b"], ["a", "b", "deep/c"])
    assert list_files(f"{tmp_path}/nowhere") == []
    assert filesystem.exists(f"{tmp_path}/deep") and not filesystem.exists(f"{tmp_path}/c")
    filesystem.copy_folder(str(tmp_path), f"{tmp_path}/copy/of", ["a"])
    filesystem.copy_folder(str(tmp_path), f"{tmp_path}/copy/of", ["b"])
    assert list_files(f"{tmp_path}/copy", True) == ["of/a", "of/b"]
    filesystem.delete(f"{tmp_path}/a")
    filesystem.delete(f"{tmp_path}/copy")
    filesystem.delete(f"{tmp_path}/nowhere")
    assert list_files(str(tmp_path), True) == ["b", "deep/c"]


def test_files_are_hashed_by_content_and_stamped_by_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"text")
    os.utime(path, ns=(5, 5))
    assert filesystem.sha256_of_file(str(path)) == hashlib.sha256(b"text").hexdigest()
    assert filesystem.stamp(str(path)) == hashlib.sha256(b"4:5").hexdigest()
    for ask in (filesystem.sha256_of_file, filesystem.stamp, filesystem.read_bytes):
        with pytest.raises(MissingArtifactError, match=r"nowhere: no such file\."):
            ask(f"{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, ArtifactError),
        (errno.EDQUOT, ArtifactError),
        (errno.EFBIG, ArtifactError),
        (errno.EACCES, OSError),
    ],
)
def test_only_a_full_disk_is_called_one(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind) as found, naming_a_full_disk("there"):
        raise OSError(number, os.strerror(number))
    assert ("there: the disk is full" in str(found.value)) == (kind is ArtifactError)


@pytest.mark.parametrize(
    ("given", "cache", "expected"),
    [("/a", "/b", "/a/folders"), ("", "/b", "/b/fusion_ray/folders"), (None, "/b", "/b/fusion_ray/folders")],
)
def test_what_a_node_fetches_lies_where_the_environment_says(
    given: str | None, cache: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.delenv("FUSION_RAY_CACHE", raising=False)
    if given is not None:
        monkeypatch.setenv("FUSION_RAY_CACHE", given)
    assert _root() == Path(expected)
