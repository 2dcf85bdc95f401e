"""`salsa-dist init`: a commented config to start from."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from salsa_dist.errors import UserError
from salsa_dist.log import result
from salsa_dist.places import Folder, place

if TYPE_CHECKING:  # numpy comes with it
    from salsa_dist.data.index import ShardIndex

STARTER = Path(__file__).with_name("starter.yaml")


def init(
    base: Annotated[str, typer.Argument(help="folder or hub name of a base")],
    shards: Annotated[Any, typer.Argument(help="folder of shards, or s3://…", parser=place)],
    out: Annotated[Path, typer.Option(help="file to write")] = Path("config.yaml"),
    run: Annotated[
        Path | None,
        typer.Option(
            help="folder of the run; default: runs/NAME, where NAME is the name of the shards"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an existing file")] = False,
) -> None:
    """Write a commented config for BASE and SHARDS: one adapter per language, ready to train."""
    from salsa_dist.data.index import ShardIndex
    from salsa_dist.whole_file import replace_file

    if out.exists() and not force:
        raise UserError(f"{out} already exists: name another with --out, or replace it with --force")
    if base.startswith(("/", ".", "~")) and not Path(base, "config.json").expanduser().is_file():
        raise UserError(
            f"base {base} is no folder with a config.json: name a checkpoint, or a hub name"
        )
    index = ShardIndex.load(shards)
    text = starter(base, index, shards, run or Path("runs", index.name), out)
    try:
        replace_file(out, text)
    except OSError as e:
        raise UserError(f"{out} can't be written: {e.strerror}") from e
    result(f"{out}: look at it, then `salsa-dist train {out}`")


def starter(base: str, index: ShardIndex, shards: Folder, run: Path, file: Path) -> str:
    """The config's text.

    Raises:
        UserError: the shards have no clips to train on.
    """
    clips: dict[str, dict[str, int]] = {}
    hours: dict[str, float] = {}
    for shard in index.shards:
        of_language = clips.setdefault(shard.language, {})
        of_language[shard.split] = of_language.get(shard.split, 0) + shard.samples
        if shard.split == "train":
            hours[shard.language] = hours.get(shard.language, 0) + shard.seconds / 3600
    if not hours:
        raise UserError(f"{shards} has no train shards in any language: nothing could be trained")
    adapters = []
    for language in sorted(hours):
        entry = f"  - {{name: {_scalar(language)}, language: {_scalar(language)}}}"
        counts = ", ".join(f"{split} {count:,}" for split, count in sorted(clips[language].items()))
        adapters.append(f"{entry:<31} # clips: {counts}; {hours[language]:.3g} h to train on")
    evaluated = [s for s in ("test", "dev", "train") if all(s in clips[one] for one in hours)]
    return Template(STARTER.read_text(encoding="utf-8")).substitute(
        file=file,
        run=_scalar(str(run)),
        base=_scalar(base),
        shards=_scalar(str(shards)),
        adapters="\n".join(adapters),
        split=evaluated[0],
    )


def _scalar(text: str) -> str:
    """`text` in YAML, in quotes where it would be read as something else: `no`, Norwegian, as false."""
    listed = yaml.safe_dump([text], default_flow_style=True, allow_unicode=True, width=10**6)
    return listed.strip()[1:-1]
