"""Norms of the learned vectors, and cosines between those of two adapters.

{site: (hidden,)} ──norms──> {site: length}
two of them ──cosine──> of the vectors at the sites that both have, taken as one
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Vectors = Mapping[str, NDArray[np.float32]]
"""By site, each `(hidden,)`."""


def norms(vectors: Vectors) -> dict[str, float]:
    """L2 norm of each site's vector, in the model's order."""
    return {
        site: float(np.linalg.norm(vectors[site].astype(np.float64)))
        for site in sorted(vectors, key=site_order)
    }


def cosine(a: Vectors, b: Vectors) -> float | None:
    """Cosine from -1 to 1; None if the adapters share no site, or one of them is zero there."""
    shared = [site for site in a if site in b and a[site].shape == b[site].shape]
    if not shared:
        return None
    x = np.concatenate([a[site] for site in shared]).astype(np.float64)
    y = np.concatenate([b[site] for site in shared]).astype(np.float64)
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip(x @ y / size, -1, 1)) if size else None


def site_order(site: str) -> tuple[str, int, str]:
    """Sort key: `encoder.2` before `encoder.10`, `encoder` before `llm`."""
    module, _, number = site.rpartition(".")
    return (module, int(number), "") if number.isdigit() else (site, -1, site)
