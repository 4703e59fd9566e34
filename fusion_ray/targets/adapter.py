"""LoRA and DoRA through peft: small trainable matrices beside frozen weights, merged into them at the end."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fusion_ray.errors import RecipeError
from fusion_ray.recipe import Adapter

_NAME = "default"
_FROZEN = ".base_layer"

Whole = Callable[[str, torch.nn.Parameter], torch.Tensor]


def add_adapter(model: Any, adapter: Adapter, seed: int) -> None:
    """Freeze the model and put an adapter beside its linear layers; its outputs stay what they were.

    The names of adapted weights change (`q_proj.weight` becomes `q_proj.base_layer.weight`); `merged_weights` gives
    the old names again.

    Raises:
        RecipeError: `modules` names no layer, the output head or the embedding, or layers that peft cannot adapt.
    """
    from peft import LoraConfig, inject_adapter_in_model

    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    possible = ", ".join(_linear_names(model))
    modules = adapter.modules if isinstance(adapter.modules, str) else list(adapter.modules)
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # peft only divides by the rank
        lora_dropout=adapter.dropout,
        target_modules=modules,
        use_dora=adapter.kind == "dora",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft finds out by itself how a layer stores its weight.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # Refused below.
        torch.manual_seed(seed)  # Every worker starts from the same matrices.
        try:
            inject_adapter_in_model(config, model, adapter_name=_NAME)
        except ValueError as error:
            raise RecipeError(
                f"targets.adapter.modules: {error} Expected all-linear, or names of linear layers of "
                f"{type(model).__name__}: {possible}."
            ) from error
    if (model.get_input_embeddings(), model.get_output_embeddings()) != outer:
        raise RecipeError(
            f"targets.adapter.modules: {modules} takes in the embedding or the output head, which are trained whole or "
            f"not at all. Expected all-linear, or names of the layers in between: {possible}."
        )


def magnitudes(model: Any, whole: Whole) -> dict[str, torch.Tensor]:
    """DoRA's initial magnitudes in float32, by parameter name; peft computes them in the model's dtype."""
    found = {}
    for name, layer in _adapted(model):
        if layer.use_dora[_NAME]:
            weight = layer.get_base_layer().weight
            rows = _rows(layer, whole(f"{name}{_FROZEN}.weight", weight))
            found[f"{name}.lora_magnitude_vector.{_NAME}.weight"] = torch.linalg.norm(rows, dim=1)
    return found


def read_elsewhere(model: Any) -> Iterator[tuple[torch.nn.Module, torch.nn.Parameter]]:
    """Modules that read weights of other modules, as DoRA's do, with these weights; ZeRO-3 must gather them."""
    for _, layer in _adapted(model):
        if layer.use_dora[_NAME]:
            for owner in (layer.get_base_layer(), layer.lora_A[_NAME], layer.lora_B[_NAME]):
                for weight in owner.parameters():
                    yield layer.lora_magnitude_vector[_NAME], weight


def merged_weights(model: Any, whole: Whole) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight by the name it had without an adapter, adapted ones with what the adapter adds; float32.

    LoRA: W + s B A, s = alpha / rank (arXiv 2106.09685, section 4.1). DoRA: m (W + s B A) / |W + s B A|, norms over
    the inputs of each output (arXiv 2402.09353, equation 5).

    Args:
        model: With or without an adapter.
        whole: Gives a parameter, called by its name, whole and in float32.
    """
    layers = dict(_adapted(model))
    for name, weight in model.named_parameters():
        layer_name, frozen, last = name.rpartition(_FROZEN)
        if frozen and layer_name in layers:
            full = whole(name, weight)
            yield layer_name + last, _merge(layers[layer_name], layer_name, full, whole) if last == ".weight" else full
        elif ".lora_" not in name:
            yield name, whole(name, weight)


def _merge(layer: Any, name: str, weight: torch.Tensor, whole: Whole) -> torch.Tensor:
    down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    down_RI = whole(f"{name}.lora_A.{_NAME}.weight", down)
    up_OR = whole(f"{name}.lora_B.{_NAME}.weight", up)
    rows_OI = _rows(layer, weight) + layer.scaling[_NAME] * (up_OR @ down_RI)
    if layer.use_dora[_NAME]:
        magnitude = layer.lora_magnitude_vector[_NAME].weight
        length_O = whole(f"{name}.lora_magnitude_vector.{_NAME}.weight", magnitude)
        rows_OI = rows_OI * (length_O / torch.linalg.norm(rows_OI, dim=1))[:, None]
    return _rows(layer, rows_OI)


def _rows(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """A weight with a row per output; GPT-2's layers keep theirs the other way round."""
    return weight.t() if layer.fan_in_fan_out else weight


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _linear_names(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    linear = [n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]
    return sorted({name.rpartition(".")[2] for name in linear})
