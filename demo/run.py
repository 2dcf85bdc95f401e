"""The demo: the whole main job on a real base and real speech, from nothing to a report.

    python demo/run.py [section.key=value …]

    fetch  ─►  base: Whisper-base, converted  ─┐
           ─►  speech ─► tar shards           ─┴─►  train (2 ranks, ZeRO-3)  ─►  evaluate  ─►  report

Everything is kept: what is fetched, converted and built lies in a cache folder, what is trained and
transcribed in the run's folder. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fetch import fetch_base, fetch_speech

from salsa_dist.config import Config, load_config
from salsa_dist.corpus.build import build
from salsa_dist.corpus.utterance import Ask
from salsa_dist.errors import UserError
from salsa_dist.places import cache_folder
from salsa_dist.report.write import write_report
from salsa_dist.speech_llms.whisper_from_ctranslate2 import convert

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "demo.yaml"
LAUNCHER = HERE.parent / "launchers" / "slurm.py"
LANGUAGES = ("bg", "el")


def main(overrides: Sequence[str]) -> int:
    started = time.monotonic()
    try:
        base, shards = prepare(cache_folder())
        where = [f"base.name={base}", f"data.shards={shards}"]
        report = run_job(CONFIG, [*where, *overrides])
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    minutes = (time.monotonic() - started) / 60
    print(f"\nDone in {minutes:.1f} minutes. Open {report.resolve()} in a browser.")
    return 0


def prepare(cache: Path) -> tuple[Path, Path]:
    """The base and the shards, in the cache; made once."""
    _say("1/5  the base: multilingual Whisper-base, 72 M parameters")
    source = fetch_base(cache)
    base = cache / "whisper-base"
    if base.is_dir():
        print(f"already converted: {base}")
    else:
        convert([source], base)
    _say("2/5  the speech: Tux Paint's spoken stamps, as tar shards")
    shards = cache / "shards" / ("tuxpaint-" + "-".join(LANGUAGES))
    build("tuxpaint", fetch_speech(cache), shards, Ask(languages=LANGUAGES))
    return base, shards


def run_job(config_path: Path, overrides: Sequence[str]) -> Path:
    """Train on two ranks, evaluate on two ranks, write the report; returns its path."""
    config = load_config(config_path, overrides)
    _say(f"3/5  training {len(config.adapters)} adapters in one bank, the base sharded over two ranks")
    _launch("train", config_path, overrides, config)
    _say("4/5  transcribing the test split, without and with each adapter")
    _launch("evaluate", config_path, overrides, config)
    _say("5/5  scoring and the report")
    return write_report(config.run)


def _launch(command: str, config_path: Path, overrides: Sequence[str], config: Config) -> None:
    line = [sys.executable, str(LAUNCHER), command, "--config", str(config_path)]
    line += ["--cluster", "local", "--nodes", "1", "--tasks-per-node", "2", *overrides]
    print("$ " + " ".join(["python", os.path.relpath(LAUNCHER), *line[2:]]), flush=True)
    status = subprocess.run(line, check=False).returncode
    if status == 2:  # it has said what was wrong
        raise SystemExit(2)
    if status:
        raise UserError(
            f"{command} ended with status {status}; its logs are in {config.run / 'logs'}. Run the "
            "same command again to go on from the last checkpoint"
        )


def _say(line: str) -> None:
    print(f"\n== {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
