"""docs/models.md, made from what the probe saw of each tiny model."""

from __future__ import annotations

from pathlib import Path

from tiny_models import MODELS

from salsa_dist.steering.probe import SiteReport

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

_HEAD = """\
# Models

Written by the tests (`SALSA_WRITE_DOCS=1 pytest tests/models`), never by hand. Each line is a tiny
model with random weights of that architecture, found by structure, with no table of module paths, and
probed with one forward and backward on noise. On every line zero vectors leave each logit as it was,
to the bit, under both rules; other vectors change the logits; a vector's gradient equals finite
differences.

*Rows* says what the first dimension of an encoder layer's output counts: samples, fixed chunks, windows
of a long clip, or tokens of all samples packed together. *Minds padding*: a clip beside a longer one
gives another activation than by itself.

| model | transformers class | encoder layers | rows | LLM layers | sites that work | minds padding |
|---|---|---|---|---|---|---|
"""


def page(reports: dict[str, list[SiteReport]]) -> str:
    return _HEAD + "".join(_line(name, found) for name, found in reports.items())


def _line(name: str, reports: list[SiteReport]) -> str:
    model = MODELS[name]
    rows = {r.component: r.rows for r in reports}
    works = []
    for component in ("encoder", "llm"):
        own = [r for r in reports if r.component == component]
        if own:
            works.append(f"{component} {sum(not r.reason for r in own)}/{len(own)}")
    minds = [
        c
        for c in ("encoder", "llm")
        if any(r.component == c and not r.padding_invariant for r in reports)
    ]
    llm = f"`{model.llm}`" + (", 4-D" if any(r.dimension for r in reports) else "")
    cells = [
        name,
        f"`{model.architecture}`",
        f"`{model.encoder}`" if model.encoder else "none",
        rows.get("encoder") or "-",
        llm,
        ", ".join(works),
        ", ".join(minds) or "no",
    ]
    return "| " + " | ".join(cells) + " |\n"
