"""`fold`: a plain Hugging Face checkpoint with an adapter inside its weights, proved by reloading it.

base ─┬─ steered ──> logits ──────────────┐
      └─ weights moved ──> checkpoint ──> reloaded ──> logits ──> the largest difference
                           written beside; under its name only when it passed

Exact for the rule `add`: `h + v` is a bias; and for `gain` where one map makes the output: its rows are
scaled. A rule that keeps the norm is neither; `approximate.py` fits biases that come near it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from salsa_dist.data.clip import SAMPLE_RATE, Clip
from salsa_dist.errors import UserError
from salsa_dist.folding.approximate import Approximate, biases_set
from salsa_dist.folding.targets import Map, Target, maps, scaled, targets
from salsa_dist.new_folder import made_beside
from salsa_dist.speech_llms.base_files import CHECKPOINT_FILES, source_folder
from salsa_dist.speech_llms.built_in_lora import folders_of
from salsa_dist.speech_llms.inspection import read_config
from salsa_dist.speech_llms.load import SpeechLLM, load_speech_llm
from salsa_dist.speech_llms.quantization import own_method
from salsa_dist.speech_llms.sources import Source
from salsa_dist.speech_llms.weight_files import StoredTensor
from salsa_dist.steering.adapter_folder import known_as
from salsa_dist.steering.blocks import layer_of
from salsa_dist.steering.rules.registry import rule_named
from salsa_dist.steering.vectors import SteeringVectors

# The largest difference of a logit that is rounding, as a share of the largest logit, by the precision
# that the biases are stored in.
_SAME = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Folded:
    """The written checkpoint.

    Attributes:
        folder: of the checkpoint.
        biases: by site, the biases that hold its vector, one where it is exact; with a gain also the
            weights that hold that.
        differences: by precision, the largest difference of a logit between the steered base (where it
            is approximate: the base with the fitted biases) and the reloaded checkpoint; `float32`,
            and the checkpoint's own precision.
        largest: the largest logit, which a difference is measured against.
    """

    folder: Path
    biases: Mapping[str, Sequence[str]]
    differences: Mapping[str, float]
    largest: float


def fold(
    base: str,
    vectors: SteeringVectors,
    out: Path,
    *,
    revision: str | None = None,
    force: bool = False,
    approximate: Approximate | None = None,
) -> Folded:
    """Write `base` with an adapter folded into its weights.

    Args:
        base: folder or hub name.
        out: a folder that does not exist yet.
        revision: of a hub name.
        force: the adapter may be of another base, as long as its sites and widths are there.
        approximate: for an adapter that no bias holds exactly, the speech to fit biases on; None: such
            an adapter is refused.

    Raises:
        UserError: the rule can't be folded or the base has no weights for it at a site, and
            `approximate` is None; or the reloaded checkpoint differs. Nothing is written then.
    """
    rule = rule_named(vectors.rule)
    if rule.affine is None and approximate is None:
        raise UserError(
            f"adapter {vectors.name!r} can't be folded: its rule {vectors.rule} {rule.does}, which no "
            "bias can do; train one with rule: add, serve this one unfolded, or fit biases to it with "
            "--approximate"
        )
    refuse_taken(out)
    if kind := own_method(read_config(base, revision)):
        raise UserError(
            f"base {base} can't be folded into: its weights are quantised ({kind}); fold into the "
            "checkpoint that it was made of"
        )
    described = load_speech_llm(base, revision=revision, filled=False)
    files = described.sources
    if files is None:
        raise UserError(f"base {base} can't be folded into: {described.why_whole}")
    whole = load_speech_llm(base, revision=revision, dtype="float32", device="cpu")
    layers = {
        site: layer for site, layer in vectors.check(whole, force).items() if site in vectors.vectors
    }
    inputs = whole.family.training_batch(noise_clips(whole, vectors.language)).inputs
    found = targets(whole.model, layers, inputs)
    lacking = [site for site in layers if site not in found]
    scaling = maps(whole.model, layers, inputs) if rule.affine and rule.parts > 1 else None
    if scaling is not None and not lacking:
        lacking = [s for s in layers if s not in scaling or found[s].name not in scaling[s].rows]
    if approximate is None:
        if lacking:
            what = "bias that moves its output by a constant"
            if scaling is not None:
                what = "map with a bias that makes its whole output"
            module = type(layers[lacking[0]]).__name__
            raise UserError(
                f"{lacking[0]} can't be folded: its module, {module}, has no {what}; serve this base "
                "with its adapter beside it, or fit biases to it with --approximate"
            )
        into, moved = _exact(vectors, found, scaling or {})
    else:
        if rule.affine is not None and not lacking:
            raise UserError(f"adapter {vectors.name!r} folds exactly: leave out --approximate")
        into, moved = approximate(whole, vectors, layers, found, files)
    stored = {name: tensor for name in moved if isinstance(tensor := files[name], StoredTensor)}
    if made := [name for name in moved if name not in stored]:
        raise UserError(
            f"base {base} can't be folded into: its checkpoint does not hold {made[0]} as one tensor"
        )
    own = str(next(iter(stored.values())).dtype).removeprefix("torch.")
    wanted = {}
    for precision in dict.fromkeys(("float32", own)):
        plain = whole
        if precision != "float32":
            plain = load_speech_llm(base, revision=revision, dtype=precision, device="cpu")
        if approximate is None:
            wanted[precision] = steered_logits(plain, vectors, inputs)
        else:
            with biases_set(plain.model, moved):
                wanted[precision] = logits(plain, inputs)
    largest = float(wanted["float32"].abs().max())
    with made_beside(out) as folder:
        _write(source_folder(base, revision), files.values(), folder)
        _mark(folder / "config.json", vectors)
        for name, bias in moved.items():
            _put(folder, stored[name], bias)
        differences = {}
        for precision, expected in wanted.items():
            again = load_speech_llm(folder, dtype=precision, device="cpu")
            differences[precision] = float((logits(again, inputs) - expected).abs().max())
        worst = max(differences.values())
        if not worst <= _SAME[own] * largest:
            raise UserError(
                f"adapter {vectors.name!r} can't be folded into {base}: reloaded, a logit differs by "
                f"{worst:.2g}, where the largest is {largest:.2g}; nothing was written"
            )
        card = _card(base, vectors, differences, largest, approximate)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Folded(out, into, differences, largest)


def _exact(
    vectors: SteeringVectors, found: Mapping[str, Target], scaling: Mapping[str, Map]
) -> tuple[dict[str, Sequence[str]], dict[str, Tensor]]:
    """The weights of each site by name, and their new values."""
    affine = rule_named(vectors.rule).affine
    assert affine is not None
    into: dict[str, Sequence[str]] = {}
    moved: dict[str, Tensor] = {}
    # A block's output is part of its layer's, and may be made by the same weights: blocks come first.
    for site in sorted(found, key=lambda site: site == layer_of(site)):
        target, (scale, shift) = found[site], affine(vectors.vectors[site])
        rows = scaling[site].rows if scale is not None else {}
        for name, weight in rows.items():
            assert scale is not None
            moved[name] = scaled(moved.get(name, weight), scale)
        before = moved.get(target.name, target.bias.detach())
        moved[target.name] = before + shift / target.multiplier
        into[site] = tuple(dict.fromkeys([*rows, target.name]))
    return into, moved


def _write(source: Path, weights: Iterable[Source], folder: Path) -> None:
    """Copy a checkpoint; of its weights, only the files from which the model is read."""
    kinds = tuple(kind for kind in CHECKPOINT_FILES if kind != ".safetensors")
    try:
        for path in sorted(p for p in source.iterdir() if p.name.endswith(kinds)):
            shutil.copyfile(path, folder / path.name)
        for lora in folders_of(source)[1:]:
            shutil.copytree(lora, folder / lora.name)
        beside = set(source.glob("adapter_model.safetensors"))
        for path in sorted(beside | {path for tensor in weights for path in tensor.paths}):
            shutil.copyfile(path, folder / path.name)
    except OSError as e:
        raise UserError(f"the checkpoint can't be written beside {folder.parent}: {e.strerror}") from e


def _mark(config: Path, vectors: SteeringVectors) -> None:
    """Write the folded adapter into the config. So the checkpoint is another base to this adapter.

    The revision of a folder samples the weights of a large base, and may miss the biases.
    """
    settings = {**json.loads(config.read_text(encoding="utf-8")), "folded_adapter": vectors.digest()}
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _put(folder: Path, stored: StoredTensor, values: Tensor) -> None:
    """Write a weight's values over those in the copy, in the same dtype."""
    raw = values.to(stored.dtype).cpu().contiguous().view(torch.uint8).numpy().tobytes()
    with open(folder / stored.path.name, "r+b") as file:
        file.seek(stored.offset)
        file.write(raw)


def _card(
    base: str,
    vectors: SteeringVectors,
    differences: Mapping[str, float],
    largest: float,
    approximate: Approximate | None,
) -> str:
    data = vectors.data
    speech = f"`{data.name}`, licence {data.licence or 'not stated'}" if data else "not recorded"
    compared = "base with these biases" if approximate else "steered base"
    lines = [
        f"# {known_as(base)} with the adapter {vectors.name}",
        f"A plain checkpoint: `{known_as(base)}` with the steering vectors `{vectors.name}` for "
        f"`{vectors.language or 'no one language'}` folded into its weights by salsa-dist "
        f"{version('salsa-dist')}. It needs no salsa-dist.",
        f"Speech that the adapter was trained on: {speech}. The licence of the base holds as well.",
        f"Largest difference of a logit to the {compared}: "
        + ", ".join(f"{d:.2g} in {precision}" for precision, d in differences.items())
        + f", where the largest logit is {largest:.3g}.",
    ]
    if approximate is not None:
        lines.append(
            f"The biases come near the adapter, whose rule is {vectors.rule}, and are not equal to it. "
            + "\n".join(approximate.accuracy.lines())
        )
    return "\n\n".join(lines) + "\n"


def refuse_taken(out: Path) -> None:
    """A `UserError` where `out` is there already, or no folder can be made there."""
    try:
        if out.exists() or out.is_symlink():
            raise UserError(f"{out} already exists: name a new folder")
        # Tried before the base is loaded and biases are fitted, which can take long.
        there = next(folder for folder in out.absolute().parents if folder.exists())
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=there):
            pass
    except OSError as e:
        raise UserError(f"{out} can't be written: {e.strerror}") from e


def noise_clips(base: SpeechLLM, language: str) -> list[Clip]:
    """Two clips of noise, of two lengths, for a forward pass that only compares."""
    rng = np.random.default_rng(0)
    known = language if language in base.family.languages else base.family.languages[0]
    return [
        Clip(str(i), rng.standard_normal(int(s * SAMPLE_RATE), np.float32), "a b c", known)
        for i, s in enumerate((0.7, 1.0))
    ]


def logits(base: SpeechLLM, inputs: Mapping[str, Tensor]) -> Tensor:
    """(batch, labels, vocabulary) fp32."""
    weight = next(base.model.parameters())
    moved = {
        k: v.to(weight.device, weight.dtype) if v.is_floating_point() else v for k, v in inputs.items()
    }
    with torch.no_grad():
        out: Tensor = base.model(**moved, use_cache=False).logits.float()
    return out


def steered_logits(base: SpeechLLM, vectors: SteeringVectors, inputs: Mapping[str, Tensor]) -> Tensor:
    """Like `logits`, with the adapter on the base."""
    with vectors.attach(base, force=True):
        return logits(base, inputs)
