"""The start of every run: its folder, its config, and its first event."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
import yaml

from salsa_dist.config import Config
from salsa_dist.errors import UserError
from salsa_dist.libraries import torchaudio
from salsa_dist.placement.ranks import Ranks
from salsa_dist.run.events import Events
from salsa_dist.run.folder import RunFolder
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.adapter_folder import known_as
from salsa_dist.versions import libraries
from salsa_dist.whole_file import replace_file


def refuse_unwritable(run: Path) -> None:
    """Before minutes of loading: the run's folder, or the nearest one above it, can be written."""
    there = next(p for p in [run, *run.absolute().parents] if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"run folder {run} can't be written: {there} is no folder to write to")


def open_run(config: Config, ranks: Ranks) -> Path:
    """Make the run's folder and write its config there."""
    if ranks.is_first:
        try:
            config.run.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            replace_file(RunFolder(config.run).config, text)
        except OSError as e:
            raise UserError(f"run folder {config.run} can't be written: {e.strerror}") from e
    return config.run


def write_start(events: Events, ranks: Ranks, speech_llm: SpeechLLM, first: int) -> None:
    """The event that every run begins with, and each resume of it at step `first`."""
    events.write(
        "start",
        world_size=ranks.world_size,
        resumed_step=first,
        startup_s=round(time.time() - psutil.Process().create_time(), 1),
        threads=torch.get_num_threads(),
        base={
            "name": known_as(speech_llm.name),
            "revision": speech_llm.revision,
            "parameters": speech_llm.parameters,
        },
        environment=environment(),
        tested={lib.name: lib.tested for lib in libraries()},
    )


def environment() -> dict[str, str]:
    """Versions of what decides a result."""
    names = ("torch", "deepspeed", "transformers", "accelerate", "webdataset", "jiwer", "submitit")
    return {
        "salsa-dist": version("salsa-dist"),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "torchaudio": torchaudio.status(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
