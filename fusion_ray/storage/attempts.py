"""What an engine was scoring when it died: a small file that outlives the process, beside the shard it is about.

A process that is killed by a row cannot report it. So it notes what it is about to score, and removes the note once the
shard is on disk. A process that finds a note knows that the one before it died there.
"""

import json
from dataclasses import asdict, dataclass, field

from fusion_ray.storage.filesystem import delete, exists, join, read_bytes, write_bytes

FOLDER = "attempts"
_TOGETHER = -1


@dataclass
class Attempts:
    """The attempts at one shard so far; open it with `open_attempts`.

    Attributes:
        uri: Where the note lies.
        deaths_together: How often the process died while all rows of the shard were being scored together.
        killers: Rows, by number in the shard, during which it died while they were scored alone; why, as far as known.
        now: The row that is being scored, -1 for all together, None for nothing.
        why: What the process could say before it left.
    """

    uri: str
    deaths_together: int = 0
    killers: dict[int, str] = field(default_factory=dict)
    now: int | None = None
    why: str = ""

    def begin(self, row: int = _TOGETHER) -> None:
        """Note that a row, or all rows together, are about to be scored."""
        self.now, self.why = row, ""
        self._write()

    def explain(self, why: str) -> None:
        """Note why the process is about to leave."""
        self.why = why
        self._write()

    def end(self) -> None:
        """Remove the note: the shard is on disk."""
        delete(self.uri)

    def _write(self) -> None:
        write_bytes(self.uri, json.dumps(asdict(self)).encode())


def open_attempts(folder: str, path: str) -> Attempts:
    """Look up what became of earlier attempts at a shard.

    Args:
        folder: The artifact's.
        path: The shard's in it.
    """
    uri = join(folder, FOLDER, f"{path}.json")
    if not exists(uri):
        return Attempts(uri)
    noted = json.loads(read_bytes(uri))
    killers = {int(row): why for row, why in noted["killers"].items()}
    found = Attempts(uri, noted["deaths_together"], killers)
    if noted["now"] == _TOGETHER:
        found.deaths_together += 1
    elif noted["now"] is not None:
        found.killers[noted["now"]] = noted["why"] or "the process ended without a word"
    return found


def forget_attempts(folder: str) -> None:
    """Remove all notes of an artifact, so that a new run does not count the deaths of an earlier one."""
    delete(join(folder, FOLDER))
