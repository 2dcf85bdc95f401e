"""Copies a base to each node's own disk: one rank per node copies, all ranks read.

base.stage_to: $SLURM_TMPDIR

    $SLURM_TMPDIR/
    └── whisper-base-3f9c2a71d0b4/     its name and a hash of its config and weights
        ├── config.json
        └── model.safetensors          of the source's size, or the copy is made again

The copy grows in a folder beside and takes its name when it is whole, so a job that is killed while
copying leaves nothing that a later one would take for a base.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from salsa_dist.config import BaseConfig
from salsa_dist.new_folder import made_beside
from salsa_dist.placement.node_disk import Told, node_folder, once_a_node
from salsa_dist.placement.ranks import Ranks
from salsa_dist.speech_llms.base_files import CHECKPOINT_FILES, base_revision, source_folder
from salsa_dist.speech_llms.built_in_lora import folders_of
from salsa_dist.whole_file import flush


def staged(base: BaseConfig, ranks: Ranks, say: Callable[[str], None]) -> Path:
    """The folder of this node's copy. Every rank calls this; one per node copies.

    Raises:
        UserError: no such base, an environment variable that is not set, or too little room.
    """

    def make(told: Told) -> Path:
        source = source_folder(base.name, base.revision)
        mark = base_revision(str(source)).removeprefix("local-")
        parent = node_folder("base.stage_to", base.stage_to or "")
        folder = parent / f"{Path(base.name).name}-{mark}"
        _copy(source, folder, say, told)
        return folder

    return once_a_node(ranks, f"base.stage_to is {base.stage_to}, no place to write to", make, say)


def fetched(base: BaseConfig, ranks: Ranks, say: Callable[[str], None]) -> Path | None:
    """The folder with the files of a hub name on this node, fetched by one rank; None for a folder.

    Every rank calls this.

    Raises:
        UserError: on all ranks: there is no such base, or no way to the hub.
    """
    if Path(base.name).is_dir() or ranks.world_size == 1:
        return None
    return once_a_node(
        ranks,
        f"base {base.name} can't be fetched",
        lambda told: source_folder(base.name, base.revision),
        say,
    )


def _copy(source: Path, target: Path, say: Callable[[str], None], told: Told) -> None:
    found = [p for folder in folders_of(source) for p in sorted(folder.iterdir())]
    files = {p.relative_to(source): p for p in found if p.is_file() and p.suffix in CHECKPOINT_FILES}
    if target.is_dir():
        if {p.relative_to(target): p.stat().st_size for p in target.rglob("*") if p.is_file()} == {
            name: p.stat().st_size for name, p in files.items()
        }:
            say(f"using the copy of the base in {target}")
            return
        shutil.rmtree(target)
    size = sum(p.stat().st_size for p in files.values())
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise OSError(f"the base takes {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")
    say(f"copying the base's {size / 1e9:.2f} GB to {target}")
    done = 0
    with made_beside(target) as folder:
        for name, path in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
            flush(folder / name)  # here, not of all at the end, so that `told` says how far it is
            done += path.stat().st_size
            told(done, size)
