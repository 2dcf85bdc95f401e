"""What users write in configs and on command lines, as two lists of lines.

    python tests/frozen/surface.py      write config-keys.txt and options.txt anew, on purpose

config-keys.txt     key, type and default of each config key, of each method as `method(KIND)`
options.txt         command and option
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

HERE = Path(__file__).parent


def config_keys() -> list[str]:
    """One line a key."""
    from salsa_dist.config import Config

    return sorted(set(_keys(Config, "")))


def options() -> list[str]:
    """One line an option."""
    import typer

    from salsa_dist.cli import app
    from salsa_dist.launch.command import launch
    from salsa_dist.launch.options import command_line

    ours, launcher = typer.main.get_command(app), command_line(launch)
    return sorted([*_options(ours, "salsa-dist"), *_options(launcher, "salsa-dist launch")])


def _keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    from salsa_dist.config.annotations import sections_below, written

    for name, field in model.model_fields.items():
        below = sections_below(field.annotation)
        if not below:
            default = field.get_default(call_default_factory=True)
            said = "required" if default is PydanticUndefined else repr(default)
            yield f"{prefix}{name}: {written(field.annotation)} = {said}"
        for section in below:
            kind = section.model_fields.get("kind")
            one_of = f"({get_args(kind.annotation)[0]})" if kind is not None and len(below) > 1 else ""
            yield from _keys(section, f"{prefix}{name}{one_of}.")


def _options(command: Any, name: str) -> Iterator[str]:
    for child, own in getattr(command, "commands", {}).items():
        yield from _options(own, f"{name} {child}")
    for parameter in command.params:
        words = [w for w in (*parameter.opts, *parameter.secondary_opts) if w.startswith("-")]
        yield from (f"{name} {word}" for word in words)


if __name__ == "__main__":
    for name, lines in (("config-keys.txt", config_keys()), ("options.txt", options())):
        (HERE / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
