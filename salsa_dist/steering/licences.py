"""Licences of the speech that an adapter was trained on: the hub's words for them, and who may publish.

stated by the corpus ─┬─ known as open ──> published under it
                      └─ any other, or none ──> only where the user names the corpus
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from salsa_dist.errors import UserError

# As corpora state them, in the hub's words. All let others pass on what was made of the speech.
_OPEN = {
    **{name: name for name in ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0")},
    **{name: name for name in ("cc-by-3.0", "cc-by-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0")},
    **{name: name for name in ("gpl-2.0", "gpl-3.0", "odc-by", "odbl")},
    "cc0": "cc0-1.0",
    "gpl-2": "gpl-2.0",
    "gpl-3": "gpl-3.0",
}


def hub_word(licence: str) -> str | None:
    """The hub's word for an open licence; None for any other."""
    return _OPEN.get(licence.lower())


def refuse_unless_open(name: str, data: Mapping[str, Any] | None, may_publish: str | None) -> None:
    """Refuse to publish an adapter trained on speech that may not be redistributed.

    Args:
        name: of the adapter.
        data: `DataFacts` as a tree; None: its speech is not recorded.
        may_publish: the corpus that the user says may be published; an adapter of unrecorded speech
            goes by its own name.

    Raises:
        UserError: its licence is not an open one, and the user did not name the corpus.
    """
    corpus, licence = (data["name"], data["licence"]) if data else (name, None)
    if licence is not None and hub_word(licence):
        return
    if may_publish == corpus:
        return
    stated = f"of {corpus} is {licence!r}, not an open one" if licence else "is not stated"
    speech = "speech" if data else "speech, which its facts do not record,"
    named = f"; --may-publish {may_publish} names another corpus" if may_publish else ""
    raise UserError(
        f"adapter {name!r} is not published: the licence of its {speech} {stated}{named}. If you may "
        f"publish adapters trained on it, add --may-publish {corpus}"
    )
