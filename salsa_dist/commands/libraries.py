"""Checks that every command makes before it uses transformers."""

from __future__ import annotations

from salsa_dist.libraries import torchao
from salsa_dist.versions import warn_if_outside


def prepare_libraries() -> None:
    """Warn of versions that were not tested, and quiet transformers: its notes and progress bars."""
    warn_if_outside()
    torchao.quiet()
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
