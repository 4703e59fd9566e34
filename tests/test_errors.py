"""Errors travel between processes whole, and each kind has its exit code."""

import pickle

import pytest

from fusion_ray import errors


def error_classes() -> list[type[errors.FusionRayError]]:
    return [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FusionRayError)
    ]


@pytest.mark.parametrize("kind", error_classes())
def test_every_error_survives_pickling_and_has_an_exit_code(kind: type[errors.FusionRayError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what, where, what to do")))
    assert type(copy) is kind
    assert str(copy) == "what, where, what to do"
    assert kind.exit_code in range(1, 7)
    assert "__init__" not in vars(kind)


def test_exit_codes_tell_the_recipe_from_the_disk_the_data_the_engine_and_the_cluster() -> None:
    codes = {kind.__name__: kind.exit_code for kind in error_classes()}
    assert codes == {
        "FusionRayError": 1, "RecipeError": 2, "ArtifactError": 3, "MissingArtifactError": 3,
        "CorruptArtifactError": 3, "StaleArtifactError": 3, "MethodError": 4, "AlignmentError": 4,
        "NonFiniteError": 4, "MergeError": 4, "EngineError": 5, "DeadEngineError": 5, "ClusterError": 6,
    }  # fmt: skip
