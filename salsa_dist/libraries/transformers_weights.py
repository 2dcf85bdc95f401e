"""transformers' internals: which stored tensors a weight of a model is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any


def renaming(model: Any) -> Callable[[str], tuple[str, bool]] | None:
    """A function from a stored tensor's name to its name in `model`, and whether its values change.

    Assumes that `get_model_conversion_mapping` lists the renames and conversions of a checkpoint, and
    that `rename_source_key` applies them to one name, as `from_pretrained` does.

    Seen: transformers 5.17 and 5.24.
    Else: None. Each rank then loads the whole base before it keeps its partition: the same weights,
        with more host memory.
    Test: test_stored_names_become_the_models
    """
    try:
        target_of, _ = _mapping(model)
    except ImportError:
        return None

    def rename(key: str) -> tuple[str, bool]:
        target, pattern = target_of(key)
        return target, pattern is not None

    return rename


def made_of(model: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """By its name in `model`, what `from_pretrained` makes of stored tensors; data are not read.

    Args:
        stored: by its name in the checkpoint, anything that the conversions can call instead of a
            tensor, with `__torch_function__`; see `speech_llms/sources.py`.

    Raises:
        ImportError: these internals are gone.
        Exception: whatever a conversion raises where it calls what `stored` does not follow.

    Assumes that `WeightConverter` collects the stored tensors of one weight in the order of
    `dot_natural_key`, and that `convert` makes the weight of them.

    Seen: transformers 5.17 and 5.24.
    Else: each rank loads the whole base before it keeps its partition, or wrong weights, which only
        the test detects.
    Test: test_weights_are_made_of_stored_tensors
    """
    from transformers.core_model_loading import dot_natural_key

    target_of, converters = _mapping(model)
    names = model.state_dict()
    made: dict[str, Any] = {}
    converted: dict[str, Any] = {}
    for key in sorted(stored, key=dot_natural_key):
        target, pattern = target_of(key)
        if target not in names:
            continue
        if pattern is None:
            made[target] = stored[key]
            continue
        if target not in converted:
            converted[target] = deepcopy(converters[pattern])
        converted[target].add_tensor(target, key, pattern, stored[key])
    for target, converter in converted.items():
        for name, tensor in converter.convert(target, model=model, config=model.config).items():
            made[name] = tensor[0] if isinstance(tensor, list) else tensor
    return made


def _mapping(model: Any) -> tuple[Callable[[str], tuple[str, str | None]], dict[str, Any]]:
    """From a stored name to the name in `model` and the pattern of its conversion; these by pattern."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping = get_model_conversion_mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings: list[Any] = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    names, prefix = model.state_dict(), model.base_model_prefix

    def target_of(key: str) -> tuple[str, str | None]:
        target, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if target not in names and key in names:
            target, pattern = rename_source_key(key, [], [], prefix, names)
        return target, pattern

    return target_of, {p: converter for converter in converters for p in converter.source_patterns}
