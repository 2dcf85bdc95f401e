"""config.json of a base, and what the installed transformers can't do with it.

config = known_config(name, files)
with reading_base(name, advice=advice(config.transformers_version)):
    ...
"""

from __future__ import annotations

from typing import Any

from packaging.version import InvalidVersion, Version

from salsa_dist.errors import UserError
from salsa_dist.speech_llms.reading_base import CHECKPOINT, reading_base
from salsa_dist.versions import version_of


def known_config(name: str, files: tuple[str, str | None], **options: Any) -> Any:
    """The config of base `name`, of a class that transformers has.

    Args:
        files: folder or hub name that its files lie in, and revision.
        options: of `AutoConfig.from_pretrained`.

    Raises:
        UserError: it can't be read, is of a type that transformers does not know, or wants code of its
            own, which is not run.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    with reading_base(name):
        tree, _ = PreTrainedConfig.get_config_dict(files[0], revision=files[1])
    model_type, written_by = tree.get("model_type"), tree.get("transformers_version")
    if model_type in CONFIG_MAPPING:
        with reading_base(name, advice=advice(written_by)):
            return AutoConfig.from_pretrained(
                files[0], revision=files[1], trust_remote_code=False, **options
            )
    if tree.get("auto_map"):
        raise UserError(
            f"base {name} wants to run Python code of its own ({model_type or 'no model_type'}), "
            "which is not done here: name a model that transformers itself has"
        )
    newer = advice(written_by)
    raise UserError(
        f"base {name}: transformers does not know the model type {model_type!r}"
        + (
            f". {newer}"
            if newer != CHECKPOINT
            else "; name a speech-LLM of the installed version, or install a newer one"
        )
    )


def advice(written_by: object, otherwise: str = CHECKPOINT) -> str:
    """What to do about a base that can't be read.

    Args:
        written_by: `transformers_version` of its config.json.
        otherwise: the advice where that is no newer than ours.
    """
    ours = version_of("transformers")
    try:
        newer = ours is not None and Version(str(written_by)) > Version(ours)
    except InvalidVersion:
        newer = False
    if not newer:
        return otherwise
    return (
        f"Its config.json was written by transformers {written_by}, and {ours} is installed: install "
        "that release, or name another base."
    )
