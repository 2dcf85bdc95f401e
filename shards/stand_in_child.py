"""Recipe: a child's voice reads Fish Fillets' Czech texts. A stand-in for recorded children's speech.

Source: as in `fillets`; `python demo/fetch.py fillets` fetches it. The voice is Debian's, GPL-3:

    apt-get install festival festvox-czech-krb

    "Jé, už zase..."  ─►  Festival, voice_czech_krb  ─►  32 kHz     no recording of the game is used

The voice is made of diphones of a real Czech boy, and Festival joins them. No child said these
sentences, and prosody is by rule. So the shards show that a run works on a child's voice; no claim
about children's speech can rest on them.

Splits are those of `fillets`, in whole levels, with the same seed. Of train a part is enough.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from salsa_dist.corpus.recipes import load_recipe
from salsa_dist.corpus.utterance import Ask, Corpus, Utterance
from salsa_dist.errors import UserError

LANGUAGE = "cs"
VOICE = "czech_krb"
VOICE_FOLDER = Path("/usr/share/festival/voices/czech") / VOICE
# Festival starts anew for each clip, which takes a third of a second.
TRAIN_CLIPS = 400
CODING = "iso-8859-2"  # what the Czech voices read

_PROGRAM = "text2wave"
_INSTALL = "install both on each machine that builds: apt-get install festival festvox-czech-krb"


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """The Czech texts in the splits of `fillets`, with at most `TRAIN_CLIPS` of train."""
    if ask.wants(LANGUAGE):
        spoken("Ano.")  # before anything is built
    fillets = load_recipe("fillets")
    corpus: Corpus = fillets.dealt(
        source, ask, (LANGUAGE,), lambda clip: str(clip.extra["level"]), fillets.BY_LEVEL
    )
    kept = _part(corpus.utterances, ask.seed)
    dropped = Counter(corpus.dropped.get(LANGUAGE))
    dropped["more of train than is used"] = len(corpus.utterances) - len(kept)
    return replace(
        corpus,
        utterances=[_by_the_child(clip) for clip in kept],
        licence="GPL-3 (voice), GPL-2 (texts)",
        source="synthesised: texts of Debian fillets-ng-data, voice of Debian festvox-czech-krb",
        dropped={LANGUAGE: dropped},
        facts={**corpus.facts, "synthesised": VOICE, "train_clips": TRAIN_CLIPS},
    )


def audio_of(utterance: Utterance) -> bytes:
    """The text as the child's voice reads it, a WAV."""
    return spoken(utterance.text)


def made_of(utterance: Utterance) -> list[Path]:
    """Festival and the voice's files, where Debian has them."""
    program = shutil.which(_PROGRAM)
    language = VOICE_FOLDER.parents[2].glob("czech*")  # how text is read
    return [*([Path(program)] if program else []), *sorted([*VOICE_FOLDER.rglob("*"), *language])]


def spoken(text: str) -> bytes:
    """`text` in the child's voice, a WAV. Raises: UserError: no Festival, no such voice, no sound."""
    if shutil.which(_PROGRAM) is None:
        raise UserError(f"Festival's {_PROGRAM} is not there: {_INSTALL}")
    with tempfile.TemporaryDirectory() as folder:
        words, wave = Path(folder, "words.txt"), Path(folder, "spoken.wav")
        words.write_bytes(text.encode(CODING, "ignore"))
        done = subprocess.run(
            [_PROGRAM, "-eval", f"(voice_{VOICE})", "-o", str(wave), str(words)],
            capture_output=True,
            text=True,
            errors="replace",
        )
        sound = wave.read_bytes() if wave.exists() else b""
    if sound:
        return sound
    # Festival ends with status 0 after an error, too.
    said = " ".join((done.stderr or done.stdout).split()) or f"status {done.returncode}"
    if f"voice_{VOICE}" in said:
        raise UserError(f"Festival has no voice {VOICE} ({said}): {_INSTALL}")
    raise UserError(f"Festival made no sound of {text!r} ({said})")


def _part(clips: Sequence[Utterance], seed: int) -> list[Utterance]:
    """All clips of dev and test, and `TRAIN_CLIPS` of train, drawn by `seed`."""
    train = [clip for clip in clips if clip.split == "train"]
    drawn = random.Random(seed).sample(train, min(TRAIN_CLIPS, len(train)))
    return [clip for clip in clips if clip.split != "train"] + drawn


def _by_the_child(clip: Utterance) -> Utterance:
    """The same text by the other voice; the game's character goes along."""
    return replace(clip, speaker=VOICE, extra={**clip.extra, "character": clip.speaker or "both"})
