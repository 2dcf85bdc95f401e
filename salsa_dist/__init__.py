"""Steer large frozen speech-LLMs with kilobytes of learned vectors.

from salsa_dist import SteeringVectors, load_speech_llm, transcribe

base = load_speech_llm("openai/whisper-base")
vectors = SteeringVectors.load("runs/demo/adapters/bg")
print(transcribe(base, ["clip.ogg"], language="bg", vectors=vectors))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from salsa_dist.libraries.torchaudio import settle_before_transformers

settle_before_transformers()

if TYPE_CHECKING:
    from salsa_dist.config import load_config as load_config
    from salsa_dist.errors import UserError as UserError
    from salsa_dist.evaluation.run import evaluate as evaluate
    from salsa_dist.speech_llms.load import load_speech_llm as load_speech_llm
    from salsa_dist.steering.vectors import SteeringVectors as SteeringVectors
    from salsa_dist.training.loop import train as train
    from salsa_dist.transcription.transcribe import transcribe as transcribe
    from salsa_dist.transcription.transcribe import transcribe_each as transcribe_each

# Imported on first use: a command's --help need not wait for torch.
_HOME = {
    "SteeringVectors": "salsa_dist.steering.vectors",
    "UserError": "salsa_dist.errors",
    "evaluate": "salsa_dist.evaluation.run",
    "load_config": "salsa_dist.config",
    "load_speech_llm": "salsa_dist.speech_llms.load",
    "train": "salsa_dist.training.loop",
    "transcribe": "salsa_dist.transcription.transcribe",
    "transcribe_each": "salsa_dist.transcription.transcribe",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
