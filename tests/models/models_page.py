"""docs/models.md, made from what the probe saw of each tiny model."""

from __future__ import annotations

from pathlib import Path

from tiny_models import MODELS

from salsa_dist.steering.probe import SiteReport

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

_HEAD = """\
# Models

The tests write this page (`SALSA_WRITE_DOCS=1 pytest tests/models`); do not edit it. Each line is
a tiny model of that architecture with random weights. Its layers were found by structure, without
a table of module paths, and probed with one forward and backward pass on noise. On every line,
under both rules:

- zero vectors change no logit by one bit;
- other vectors change the logits;
- a vector's gradient equals finite differences.

*Rows* is what the first dimension of an encoder layer's output counts: samples, fixed chunks,
windows of a long clip, or tokens of all samples packed together. *Padding changes* lists the
components whose activations for a clip differ between the clip alone and the clip in a batch with
a longer one.

| model | transformers class | encoder layers | rows | LLM layers | sites that work | padding changes |
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
    llm = f"`{model.llm}`" if model.llm else "none"
    llm += ", 4-D" if any(r.dimension for r in reports) else ""
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
