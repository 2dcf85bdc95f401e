"""What goes wrong while a base is read: a damaged checkpoint is one line, a bug of ours stays one.

    with reading_base(name):
        config = AutoConfig.from_pretrained(name)

transformers raises nearly any kind of error for files that are missing, damaged or of another version,
AttributeError and KeyError too. These come from our own mistakes as well: they are told apart by the
innermost frame of the traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from salsa_dist.errors import UserError
from salsa_dist.versions import named_in, raised_by_us

CHECKPOINT = (
    "Name a folder with a Hugging Face checkpoint (config.json, *.safetensors, processor files) or a "
    "hub name."
)
NO_MODEL = "has a config that no model can be built from"
_FILES = (OSError, ValueError, SafetensorError, StrictDataclassError)
_FILES_OR_BUGS = (AttributeError, KeyError, TypeError, RuntimeError, ImportError)
_LONGEST = 240


@contextmanager
def reading_base(name: str, what: str = "can't be loaded", advice: str = CHECKPOINT) -> Iterator[None]:
    """Turn what libraries raise in the block into one line about base `name`.

    Args:
        name: folder or hub name.
        what: what failed.
        advice: what to do; "": nothing beyond the reason.

    Raises:
        UserError: the base's files are missing, damaged, or not those of the installed versions. What
            was raised is its cause. An AttributeError, KeyError, TypeError, RuntimeError or ImportError
            that our own code raised passes through, and so does a GPU's full memory.
    """
    try:
        yield
    except (*_FILES, *_FILES_OR_BUGS) as e:
        if isinstance(e, torch.OutOfMemoryError) or (isinstance(e, _FILES_OR_BUGS) and raised_by_us(e)):
            raise
        reason = reason_of(e)
        stop = "." if advice and not reason.endswith((".", "…", "?", "!")) else ""
        raise UserError(f"base {name} {what}: {reason}{stop} {advice}".rstrip()) from e


def reason_of(error: BaseException) -> str:
    """An error as one line; it names the libraries that raised it, where they may be the cause."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
    if isinstance(error, (AttributeError, KeyError, TypeError)) and (line := named_in(error)):
        text += f" ({type(error).__name__}; {line})."  # more likely the library's than the file's
    return text
