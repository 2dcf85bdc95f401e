"""Facts about an adapter for display: its base and training, its norms, similar adapters.

    about(adapter, others)  ──►  tree  ──described──►  text     one adapter, nearest others first
    comparison(a, b)        ──►  tree  ──compared──►   text     two, site by site

Norms are L2. A cosine is over all sites that both adapters steer, taken as one vector. It means
something within one base only: adapters of other bases are counted, not compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from salsa_dist.columns import aligned
from salsa_dist.steering import vector_facts
from salsa_dist.steering.model_card import rate_in_words
from salsa_dist.steering.vector_facts import site_order
from salsa_dist.steering.vectors import SteeringVectors

_BAR = 30  # letters of the longest vector's bar
_NO_VALUE = "-"


def about(adapter: SteeringVectors, others: Mapping[str, SteeringVectors]) -> dict[str, Any]:
    """The facts about an adapter, as JSON.

    Args:
        others: by the place where each is from; those of its base come as `nearest`, by cosine.
    """
    of_base = {where: other for where, other in others.items() if _one_base(adapter, other)}
    nearest = [
        {
            "name": other.name,
            "where": where,
            "language": other.language,
            "cosine": adapter.cosine(other),
            "shared_sites": sum(site in other.vectors for site in adapter.vectors),
        }
        for where, other in of_base.items()
    ]
    nearest.sort(key=lambda row: -2.0 if row["cosine"] is None else row["cosine"], reverse=True)
    return {
        **_facts(adapter),
        "sites": [
            {"site": site, "width": len(adapter.vectors[site]), "norm": norm}
            for site, norm in adapter.norms().items()
        ],
        "nearest": nearest,
        "of_another_base": len(others) - len(of_base),
    }


def described(tree: Mapping[str, Any]) -> str:
    """The text of `about`."""
    base, sites = tree["base"], tree["sites"]
    made_for = f"made for {base['name'] or 'a base not named'} at revision {base['revision']}"
    lines = [
        f"adapter {tree['name']}: language {tree['language']}, rule {tree['rule']}",
        made_for + (f", {base['architecture']}" if base["architecture"] else ""),
        *_training(tree),
        f"{sum(site['width'] for site in sites):,} numbers at {len(sites)} sites",
    ]
    longest = max(site["norm"] for site in sites) or 1.0
    lines += aligned(
        [
            [s["site"], f"width {s['width']}", f"norm {s['norm']:.3f}", _bar(s["norm"] / longest)]
            for s in sites
        ]
    )
    if tree["nearest"]:
        lines.append(f"nearest of {len(tree['nearest'])} adapters of the same base:")
        rows = [
            [r["name"], f"cosine {_number(r['cosine'])}", f"{r['shared_sites']} sites", r["where"]]
            for r in tree["nearest"]
        ]
        lines += aligned(rows)
    if tree["of_another_base"]:
        lines.append(f"{tree['of_another_base']} adapters are of another base: not compared")
    return "\n".join(lines)


def comparison(one: SteeringVectors, two: SteeringVectors) -> dict[str, Any]:
    """Two adapters side by side, as JSON; a site that one of them lacks is null."""
    facts = [_flat(_facts(adapter)) for adapter in (one, two)]
    own, others = ({site: v.numpy() for site, v in a.vectors.items()} for a in (one, two))
    sites = []
    for site in sorted(own.keys() | others.keys(), key=site_order):
        x, y = own.get(site), others.get(site)
        sites.append(
            {
                "site": site,
                "norms": [_norm(x), _norm(y)],
                "cosine": None if x is None or y is None else vector_facts.cosine({site: x}, {site: y}),
                "distance": _norm(x - y)
                if x is not None and y is not None and x.shape == y.shape
                else None,
            }
        )
    return {
        "adapters": [one.name, two.name],
        "one_base": _one_base(one, two),
        "differ": {
            key: [of.get(key) for of in facts]
            for key in {**facts[0], **facts[1]}
            if facts[0].get(key) != facts[1].get(key)
        },
        "cosine": one.cosine(two),
        "shared_sites": sum(site in two.vectors for site in one.vectors),
        "sites": sites,
    }


def compared(tree: Mapping[str, Any]) -> str:
    """The text of `comparison`."""
    lines = [f"{key}: {_said(one)} and {_said(two)}" for key, (one, two) in tree["differ"].items()] or [
        "the same name, base, rule, data and training"
    ]
    if not tree["one_base"]:
        lines.append("they are of different bases: a cosine between them means nothing")
    lines.append(f"cosine {_number(tree['cosine'])} over {tree['shared_sites']} sites that both steer")
    rows = [["site", "norm of 1st", "norm of 2nd", "cosine", "norm of difference"]]
    rows += [
        [s["site"], *map(_number, s["norms"]), _number(s["cosine"]), _number(s["distance"])]
        for s in tree["sites"]
    ]
    return "\n".join([*lines, *aligned(rows)])


def _facts(adapter: SteeringVectors) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "language": adapter.language,
        "rule": adapter.rule,
        "base": {
            "name": adapter.base,
            "revision": adapter.revision,
            "architecture": adapter.architecture,
        },
        "data": adapter.data.model_dump(mode="json") if adapter.data else None,
        "training": adapter.training.model_dump(mode="json") if adapter.training else None,
        "digest": adapter.digest(),
    }


def _training(tree: Mapping[str, Any]) -> list[str]:
    data, training = tree["data"], tree["training"]
    if data:
        languages = " in " + ", ".join(data["languages"]) if data["languages"] else ""
        speech = f"trained on {data['name']}{languages}, licence {data['licence'] or 'not stated'}"
    else:
        speech = "the speech that it was trained on is not recorded"
    if not training:
        return [speech]
    steps = f"{training['steps']} steps, learning rate {rate_in_words(training)}"
    return [
        speech,
        f"{steps if training['lr'] else 'computed without steps'}, seed {training['seed']}, "
        f"window {training['window_s']:g} s, salsa-dist {training['salsa_dist']}",
    ]


def _one_base(one: SteeringVectors, two: SteeringVectors) -> bool:
    known_by = "revision" if one.revision and two.revision else "base"
    return bool(getattr(one, known_by) == getattr(two, known_by))


def _norm(vector: NDArray[np.float32] | None) -> float | None:
    return None if vector is None else float(np.linalg.norm(vector.astype(np.float64)))


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def _said(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return _NO_VALUE if value in (None, "", []) else text


def _number(value: float | None) -> str:
    return _NO_VALUE if value is None else f"{value:.3f}"


def _bar(share: float) -> str:
    return "█" * round(_BAR * share)
