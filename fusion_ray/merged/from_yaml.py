"""`fusion-ray merge CONFIG OUT`: carry out mergekit's YAML as it is, without Ray and without a recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusion_ray.errors import RecipeError
from fusion_ray.merged.chat_templates import find_chat_template, set_chat_template
from fusion_ray.merged.execute import WORK, FileRecord, merge_to_folder
from fusion_ray.merged.folder import Card, copy_tokenizer, finish_folder
from fusion_ray.merged.joint_vocabulary import build_vocabulary
from fusion_ray.merged.mergekit_config import MergekitConfig, read_config
from fusion_ray.merged.mergekit_plan import plan_config
from fusion_ray.progress import Tell, silent
from fusion_ray.storage.checkpoints import open_checkpoint
from fusion_ray.storage.filesystem import exists, join
from fusion_ray.storage.model_files import find_model

INTERMEDIATE = "intermediate"


def merge_from_yaml(
    config: str | Path,
    out: str,
    *,
    file_bytes: int = 5 << 30,
    block_bytes: int = 1 << 20,
    seed: int = 0,
    threads: int = 1,
    tell: Tell = silent,
) -> list[FileRecord]:
    """Carry out a mergekit config. Several documents run in order; a later one names an earlier one's result.

    Args:
        config: The YAML file.
        out: Folder of the result. Documents with a `name` go to `out/intermediate/name`, unless they are the last.
        file_bytes: Upper bound of one output file.
        block_bytes: Bound on the float32 block of all models that is held at once.
        seed: Seeds the random methods.
        threads: How many tensors are worked on at once; the bytes written do not depend on it.
        tell: Receives progress reports.

    Returns:
        What writing the weights of the last document gave.

    Raises:
        RecipeError: The config is wrong, asks for what is not supported, or `out` holds another model.
        MergeError: The models cannot be merged as it says.
    """
    documents = read_config(config)
    named: dict[str, str] = {}
    records: list[FileRecord] = []
    for number, document in enumerate(_in_order(documents), start=1):
        last = number == len(documents)
        folder = out if last else join(out, INTERMEDIATE, document.name or f"document{number}")
        bounds = {"file_bytes": file_bytes, "block_bytes": block_bytes, "seed": seed}
        records = _merge_document(document, folder, named, bounds, threads, tell)
        if document.name:
            named[document.name] = folder
    return records


def _in_order(documents: Sequence[MergekitConfig]) -> list[MergekitConfig]:
    """The documents in an order in which each comes after those it names; the one without a name comes last."""
    names = [document.name for document in documents]
    if names.count(None) > 1:
        raise RecipeError("merge config: only one document may go without a 'name'. Name the others.")
    for name in names:
        if name is not None and names.count(name) > 1:
            raise RecipeError(f"merge config: two documents are named '{name}'.")
    waiting = sorted(documents, key=lambda document: document.name is None)
    ordered: list[MergekitConfig] = []
    while waiting:
        done = {document.name for document in ordered}
        open_names = {name for name in names if name} - done
        ready = [document for document in waiting if not open_names & set(document.model_names())]
        if not ready:
            raise RecipeError(f"merge config: the documents {sorted(open_names)} need each other in a circle.")
        ordered.append(ready[0])
        waiting.remove(ready[0])
    return ordered


def _merge_document(
    config: MergekitConfig, out: str, named: Mapping[str, str], bounds: Mapping[str, int], threads: int, tell: Tell
) -> list[FileRecord]:
    folders = {name: named.get(name) or find_folder(name) for name in config.model_names()}
    if exists(join(out, "config.json")) and not exists(join(out, WORK)):
        raise RecipeError(f"{out}: there is a model already. Give another folder, or delete it first.")
    checkpoints = {name: open_checkpoint(folder) for name, folder in folders.items()}
    vocabulary = None
    if config.tokenizer or config.tokenizer_source:
        vocabulary = build_vocabulary(config, checkpoints, join(out, WORK))
    draft = plan_config(config, checkpoints, embeddings=vocabulary.tensors if vocabulary else {}, **bounds)
    records = merge_to_folder(draft.plan, out, tell, threads=threads)
    card = Card(
        name=config.name or Path(out).name,
        method=config.merge_method,
        base_models=config.model_names(),
        config=config.model_dump(mode="json", exclude_defaults=True),
    )
    changes = dict(draft.changes)
    if vocabulary:
        changes |= vocabulary.config_changes
        vocabulary.save_tokenizer(out)
    else:
        copy_tokenizer(draft.donor.folder, out)
    if config.chat_template:
        set_chat_template(out, find_chat_template(config.chat_template, list(folders.values())))
    finish_folder(out, draft.donor.folder, card, records, changes)
    return records


def find_folder(reference: str) -> str:
    """The folder of a model: a local path, an address such as s3://, `path@revision` of a Hub cache, or a Hub id.

    Raises:
        RecipeError: There is none, or the name is of a form that is not supported.
    """
    if "://" in reference:
        if not exists(join(reference, "config.json")):
            raise RecipeError(f"model '{reference}': no config.json there. Expected a Hugging Face model folder.")
        return reference.rstrip("/")
    if Path(reference).expanduser().is_dir():
        return str(Path(reference).expanduser())
    path, _, revision = reference.partition("@")
    root = Path(path).expanduser()
    if root.is_dir():
        named = root / "refs" / revision
        snapshot = root / "snapshots" / (named.read_text().strip() if named.is_file() else revision)
        if snapshot.is_dir():
            return str(snapshot)
        raise RecipeError(
            f"model '{reference}': {path} is a plain folder and has no revision '{revision}'. Leave out "
            f"'@{revision}', or give a Hub cache folder with snapshots/{revision}."
        )
    if "+" in reference:
        raise RecipeError(f"model '{reference}': adapters ('model+lora') are not supported. Merge the adapter first.")
    return find_model(reference).folder
