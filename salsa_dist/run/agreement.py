"""Do all ranks mean to run the same modules? Asked before any collective that would hang if not.

    facts   {"training.steps": 20, "sites of bg": "salsa at encoder.0 …", "torch": "2.13.0", …}
    digest  (32,) uint8, SHA-256 of the facts as JSON      all-gathered: 32 bytes per rank
                                                           where they differ, the facts too

Under ZeRO-3 each module's weights are gathered by all ranks of a group together. A rank that ran other
modules, more passes or other steps than its peers would leave them waiting until the timeout. What
decides that is known in two places: once the settings are read, and once the base is loaded. Nothing
of it changes while a job runs, so each is asked there and never again.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic_core import to_jsonable_python

from salsa_dist.config import Config, PlacementConfig
from salsa_dist.config.decides import decided_by
from salsa_dist.config.fingerprint import leaves
from salsa_dist.errors import UserError
from salsa_dist.libraries.deepspeed import true_shape
from salsa_dist.placement.ranks import Ranks, group_size
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.bank import Bank

# These decide which modules a base has, and in which order hooks gather their weights.
_DECIDING_PACKAGES = ("salsa-dist", "torch", "transformers", "deepspeed")
_NAMED = 3


def agree(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Stop all ranks with the same line if `facts` differ between any two. A collective.

    Args:
        ranks: this process, in the process group.
        facts: what must be the same everywhere, as JSON has it.

    Raises:
        UserError: on every rank; names the ranks that differ, where they are, and in what.
    """
    text = json.dumps(facts, sort_keys=True, default=str)
    mine = torch.frombuffer(bytearray(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8)
    mine = mine.to(ranks.device)
    digests = [torch.empty_like(mine) for _ in range(ranks.world_size)]
    dist.all_gather(digests, mine)
    if all(torch.equal(digest, mine) for digest in digests):
        return
    everywhere: list[tuple[str, str]] = [("", "")] * ranks.world_size
    dist.all_gather_object(everywhere, (socket.gethostname(), text))
    raise UserError(_differences([(host, json.loads(t)) for host, t in everywhere]))


def settings_facts(config: Config, shards: str) -> dict[str, Any]:
    """Facts that are known before the base is loaded: versions, settings, the shards' hash."""
    settings: dict[str, Any] = {}
    for key, field, value in leaves(config):
        if "place" not in decided_by(field).kinds:
            settings[key] = to_jsonable_python(value)
        elif key.endswith("ds_config") and value is not None:
            settings[key] = _contents(value)
        else:
            # Where things lie may differ from node to node; what lies there is compared by its hash.
            settings[key] = None if value is None else "given"
    return {
        **{f"version of {name}": version(name) for name in _DECIDING_PACKAGES},
        "shards": shards,
        **settings,
    }


def base_facts(
    speech_llm: SpeechLLM, bank: Bank, ranks: Ranks, placement: PlacementConfig, first_step: int = 0
) -> dict[str, Any]:
    """Facts that are known after the base is loaded.

    Args:
        speech_llm: the base.
        bank: all adapters of the job.
        ranks: this process.
        placement: how many ranks share one copy.
        first_step: the step that this rank would start with.
    """
    weights = hashlib.sha256()
    for name, p in speech_llm.model.named_parameters():
        weights.update(f"{name} {tuple(true_shape(p))} {p.dtype}\n".encode())
    return {
        "base": speech_llm.revision,
        "model class": type(speech_llm.model).__name__,
        "names and shapes of weights": weights.hexdigest()[:16],
        "audio window": speech_llm.window_s,
        "ranks a copy": group_size(placement.kind, ranks),
        "first step": first_step,
        # In the model's order, so that this also says where autograd starts.
        "steered layers": " ".join(bank.sites),
        **{f"sites of {s.name}": f"{s.rule} at {' '.join(s.sites)}" for s in bank.specs},
    }


def _contents(path: Path) -> str:
    """The hash of a file's content. A missing file is reported later, when it is read."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else str(path)


def _differences(everywhere: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """One line for all ranks: the ranks that differ from the majority, and the difference.

    Args:
        everywhere: host name and facts of each rank.
    """
    texts = [json.dumps(facts, sort_keys=True) for _, facts in everywhere]
    # Of two halves of the same size, the one with the lowest rank.
    usual = texts.index(Counter(texts).most_common(1)[0][0])
    _, wanted = everywhere[usual]
    groups: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        if text != texts[usual]:
            groups.setdefault(text, []).append(rank)
    parts = []
    for ranks in list(groups.values())[:_NAMED]:
        _, found = everywhere[ranks[0]]
        keys = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
        said = [f"{k} ({_short(found.get(k))}, not {_short(wanted.get(k))})" for k in keys[:_NAMED]]
        more = [f"{len(keys) - _NAMED} more"] * (len(keys) > _NAMED)
        hosts = ", ".join(dict.fromkeys(everywhere[r][0] for r in ranks))
        parts.append(f"{_named(ranks)} on {hosts} in {', '.join([*said, *more])}")
    more = [f"{len(groups) - _NAMED} other groups"] * (len(groups) > _NAMED)
    return (
        f"ranks would run different modules: from rank {usual} on {everywhere[usual][0]} differs "
        f"{'; '.join([*parts, *more])}. Start all ranks with the same config, base and packages"
    )


def _named(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 48 else text[:45] + "…"
