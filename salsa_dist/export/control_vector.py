"""LLM sites as a llama.cpp control vector (GGUF), and as an EasySteer / vLLM steering spec.

general.architecture = controlvector          direction.N   (hidden,) fp32
controlvector.model_hint, .layer_count        added to the output of layer N, counted from 0

    llama.cpp    h' = h + s · direction.N       all positions; s by the command line; never layer 0
    EasySteer    h' = h + s · direction.N       algorithm `direct`, trigger tokens [-1]: all positions
                 h' · |h| / |h'|                the same with `normalize`

The first is our rule `add` with s = 1, the second our rule `salsa`. Neither engine reaches an audio
encoder. Sources: llama.cpp's pull request 5970 and its control vector generator; EasySteer's README and
its algorithm `direct`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from salsa_dist.errors import UserError
from salsa_dist.steering.blocks import layer_of
from salsa_dist.steering.rules.registry import rule_named
from salsa_dist.steering.vectors import SteeringVectors
from salsa_dist.whole_file import replace_file, written_whole

ENGINES = ("llama.cpp", "easysteer")


def export(vectors: SteeringVectors, engine: str, out: Path) -> list[Path]:
    """Write an adapter for another engine; gives the files.

    Args:
        engine: `llama.cpp`, or `easysteer`, which gets a spec in JSON beside.
        out: the GGUF file.

    Raises:
        UserError: the engine can't do what this adapter does, or `out` can't be written.
    """
    if what := unlike(vectors, engine):
        raise UserError(f"adapter {vectors.name!r} can't be exported to {engine}: {what}")
    if engine == "easysteer" and out.suffix == ".json":
        raise UserError(
            f"{out} is where the spec of EasySteer goes: name the vectors' file {out.stem}.gguf"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(out) as part:
            _write_gguf(vectors, part)
        if engine == "llama.cpp":
            return [out]
        spec = out.with_suffix(".json")
        replace_file(spec, json.dumps(easysteer_request(vectors, out.name), indent=1) + "\n")
    except OSError as e:
        raise UserError(f"{out} can't be written: {e.strerror}") from e
    return [out, spec]


def unlike(vectors: SteeringVectors, engine: str) -> str:
    """Reasons why an engine cannot run an adapter; empty if it can."""
    if engine not in ENGINES:
        return f"no such engine; known are {', '.join(ENGINES)}"
    rule = rule_named(vectors.rule)
    if rule.does and engine == "llama.cpp":
        return f"its rule {vectors.rule} {rule.does}, and llama.cpp only adds"
    if rule.does and not rule.keeps_norm:
        return f"its rule {vectors.rule} {rule.does}, and {engine} adds or keeps the norm"
    if outside := [site for site in vectors.vectors if not site.startswith("llm.")]:
        return f"it steers {outside[0]}, and {engine} steers layers of the LLM alone"
    if inside := [site for site in vectors.vectors if site != layer_of(site)]:
        return f"it steers {inside[0]}, inside a layer, and {engine} steers whole layers"
    if engine == "llama.cpp" and "llm.0" in vectors.vectors:
        return "it steers llm.0, the one layer that llama.cpp does not"
    return ""


def easysteer_request(vectors: SteeringVectors, file: str) -> dict[str, Any]:
    """Arguments of EasySteer's `SteerVectorRequest`; -1 triggers at every token.

    Args:
        file: of the GGUF, beside the spec.
    """
    return {
        "steer_vector_name": vectors.name,
        "steer_vector_int_id": 1,
        "steer_vector_local_path": file,
        "scale": 1.0,
        "target_layers": [_layer(site) for site in vectors.vectors],
        "prefill_trigger_tokens": [-1],
        "generate_trigger_tokens": [-1],
        "algorithm": "direct",
        "normalize": rule_named(vectors.rule).keeps_norm,
    }


def _write_gguf(vectors: SteeringVectors, path: Path) -> None:
    try:
        from gguf import GGUFWriter
    except ImportError as e:
        raise UserError("exports need the package gguf: pip install 'salsa-dist[gguf]'") from e
    writer = GGUFWriter(str(path), "controlvector")
    writer.add_string("controlvector.model_hint", vectors.model_type)
    writer.add_uint32("controlvector.layer_count", max(_layer(site) for site in vectors.vectors))
    for site, vector in vectors.vectors.items():
        writer.add_tensor(f"direction.{_layer(site)}", vector.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _layer(site: str) -> int:
    return int(site.partition(".")[2])
