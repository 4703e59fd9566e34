"""Addresses of files and folders, here and elsewhere."""

from pathlib import Path

import pytest

from fusion_ray.errors import RecipeError
from fusion_ray.storage.filesystem import locate
from fusion_ray.storage.node_cache import fetch_folder


def test_a_local_folder_needs_no_copy(tmp_path: Path) -> None:
    assert fetch_folder(str(tmp_path)) == tmp_path


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(RecipeError, match="environment") as error:
        locate("s3://KEY:planted@bucket/runs")
    assert "planted" not in str(error.value)
