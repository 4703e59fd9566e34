"""Every error a user can meet, and the exit code that the command line gives it.

    FusionRayError                  1
      RecipeError                   2   the recipe, a setting, or what they point at
      ArtifactError                 3   something on disk
        MissingArtifactError            it is not there
        CorruptArtifactError            it is there, and its bytes are wrong
        StaleArtifactError              it was made from other inputs
      MethodError                   4   the data cannot be computed with
        AlignmentError                  two tokenizations do not cover one text
        NonFiniteError                  NaN or infinity where a number must be
        MergeError                      checkpoints that cannot be merged
      EngineError                   5   a model engine refused its input
        DeadEngineError                 it died: its process is of no more use
      ClusterError                  6   Ray cannot give what was asked for

A message says what is wrong, where, what was expected and what to do. No class here has an `__init__` of its
own: an error must survive pickling on its way from a worker to the driver.
"""


class FusionRayError(Exception):
    """The base of every error that this package raises on purpose."""

    exit_code = 1


class RecipeError(FusionRayError):
    """The recipe, or a model or corpus it names, cannot be used as written."""

    exit_code = 2


class ArtifactError(FusionRayError):
    """Something on disk is missing, damaged or out of date."""

    exit_code = 3


class MissingArtifactError(ArtifactError):
    """A file or folder that must exist does not."""


class CorruptArtifactError(ArtifactError):
    """A file's bytes are not the ones its manifest or format promises."""


class StaleArtifactError(ArtifactError):
    """An artifact was made from other inputs than the ones beside it now."""


class MethodError(FusionRayError):
    """Inputs that the method cannot compute with; never turned into a number."""

    exit_code = 4


class AlignmentError(MethodError):
    """Two tokenizations do not cover the same bytes."""


class NonFiniteError(MethodError):
    """NaN or infinity where a finite number is needed."""


class MergeError(MethodError):
    """Checkpoints that cannot be merged with each other as asked."""


class EngineError(FusionRayError):
    """A model engine (vLLM, Transformers, DeepSpeed) refused its input or died."""

    exit_code = 5


class DeadEngineError(EngineError):
    """A model engine died, and its process must be left: it scores nothing any more, or nothing to be trusted."""


class ClusterError(FusionRayError):
    """The Ray cluster cannot give what was asked for, or was lost."""

    exit_code = 6
