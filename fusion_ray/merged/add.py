"""`fusion-ray merge --add TARGET`: add one more target to a finished VaRM merge; only the new one is measured."""

import json

from fusion_ray.errors import CorruptArtifactError, MissingArtifactError, RecipeError
from fusion_ray.merged.execute import FileRecord, merge_to_folder
from fusion_ray.merged.folder import Card, config_dtype, copy_tokenizer, finish_folder
from fusion_ray.merged.from_yaml import find_folder
from fusion_ray.merged.plan import DTYPES, plan_merge
from fusion_ray.merged.variation import STATISTICS
from fusion_ray.progress import Tell, silent
from fusion_ray.storage.checkpoints import open_checkpoint
from fusion_ray.storage.filesystem import exists, join, read_bytes, write_bytes


def add_target(
    merged: str, name: str, target: str, out: str, *, file_bytes: int = 5 << 30, threads: int = 1, tell: Tell = silent
) -> list[FileRecord]:
    """Merge again with one more target, by the method and in the types of the first merge.

    Args:
        merged: Folder of the finished merge.
        name: What to call the new target.
        target: Its model folder.
        out: Folder of the new result.
        file_bytes: Upper bound of one output file.
        threads: How many tensors are worked on at once.
        tell: Receives progress reports.

    Raises:
        MissingArtifactError: `merged` kept no statistics: it is not a VaRM merge, or not finished.
        RecipeError: `out` holds a model, or the name is taken.
    """
    uri = join(merged, STATISTICS)
    if not exists(uri):
        raise MissingArtifactError(f"{uri}: no such file. Only finished VaRM merges can be added to; merge anew.")
    if exists(join(out, "config.json")):
        raise RecipeError(f"{out}: there is a model already. Give another folder, or delete it first.")
    try:
        first = json.loads(read_bytes(uri))
        folders, dtype, granularity = dict(first["folders"]), first["dtype"], first["granularity"]
        method = first.get("method", "varm")
    except (ValueError, KeyError) as error:
        raise CorruptArtifactError(f"{uri}: damaged ({error}). Merge anew.") from error
    if method != "varm":
        raise RecipeError(f"merge --add: {merged} was merged by '{method}'; only VaRM merges can be added to.")
    if name in folders:
        raise RecipeError(f"merge --add: a target named '{name}' is in {merged} already: {', '.join(folders)}.")
    (pivot_name, pivot_folder), *targets = folders.items()
    opened = {label: open_checkpoint(folder) for label, folder in [*targets, (name, find_folder(target))]}
    pivot = open_checkpoint(pivot_folder)
    plan = plan_merge(
        pivot,
        opened,
        method="varm",
        parameters={"granularity": granularity},
        dtype=dtype,
        base_name=pivot_name,
        file_bytes=file_bytes,
    )
    write_bytes(join(out, STATISTICS), read_bytes(uri))
    records = merge_to_folder(plan, out, tell, threads=threads)
    copy_tokenizer(pivot_folder, out)
    config = {"merged": {"method": {"kind": "varm", "granularity": granularity}, "dtype": dtype}}
    card = Card("merged", "varm", [pivot_folder, *(checkpoint.folder for checkpoint in opened.values())], config)
    finish_folder(out, pivot_folder, card, records, {} if dtype == "pivot" else config_dtype(DTYPES[dtype]))
    return records
