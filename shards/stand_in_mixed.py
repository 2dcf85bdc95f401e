"""Recipe: Mandarin syllables with one English word spliced in. A stand-in for recorded code-switching.

Source: Debian's `gcin-voice` (GPL-3 and CC-BY-3) and `ktuberling-data` (GPL-2), unpacked into one
folder; `python demo/fetch.py mixed` fetches and unpacks them.

    ogg/ㄊㄧㄢ/3.ogg       a Mandarin syllable: Zhuyin, a tone (1 stands for none), speaker (3 or 5)
    en/egypt_camel.ogg    an English word by another speaker, which its file names

    今天我有 camel  ─►  ㄐㄧㄣ ㄊㄧㄢ ㄨㄛ3 ㄧㄡ3 camel, without silence, equally loud  ─►  joined

Nobody said these sentences: voices change with the language, and syllables don't blend. So the shards
show that a run works on mixed speech, with its error rates by language and at switch points; no claim
about code-switching can rest on them.

Each sentence below is said with each word of its split, the two Mandarin speakers by turns. Splits
share all speakers, but no sentence, no Mandarin syllable with its tone and no English word. A clip has
two voices, so `speaker` is not set; `mandarin_speaker` is kept. All characters are alike in both
Chinese scripts.
"""

from __future__ import annotations

import random
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from salsa_dist.corpus.utterance import Ask, Corpus, Utterance, key
from salsa_dist.data.audio import Audio, channels, flac, mono, resample
from salsa_dist.errors import UserError

LANGUAGE = "zh-en"
SPEAKERS = ("3", "5")
DEV_WORDS = 8
TEST_WORDS = 8
SENTENCES = {
    "train": (
        *("你的 {} 很好", "大 {} 在水中", "那是你的 {}", "小狗和 {} 在山上", "那不是 {}"),
        *("白色的 {} 很大", "黑色的 {} 很小", "妹妹看 {}", "你不看 {}", "爸爸在家看 {}"),
        *("妹妹的 {} 在家", "你和 {} 都好"),
    ),
    "dev": ("先生用 {}", "男人用手做 {}", "先生自己做三百 {}"),
    "test": (
        *("今天我有 {}", "明天他要 {}", "我想找 {}", "他也有 {}", "我今天吃 {}"),
        *("他明天去拿 {}", "今天 {} 也去找他", "我拿 {} 去找他"),
    ),
}
_READINGS = """
    你ㄋㄧ3 的ㄉㄜ1 很ㄏㄣ3 好ㄏㄠ3 大ㄉㄚ4 在ㄗㄞ4 水ㄕㄨㄟ3 中ㄓㄨㄥ 那ㄋㄚ4 是ㄕ4 小ㄒㄧㄠ3
    狗ㄍㄡ3 和ㄏㄜ2 山ㄕㄢ 上ㄕㄤ4 不ㄅㄨ4 白ㄅㄞ2 色ㄙㄜ4 黑ㄏㄟ 妹ㄇㄟ4 看ㄎㄢ4 爸ㄅㄚ4
    家ㄐㄧㄚ 都ㄉㄡ
    先ㄒㄧㄢ 生ㄕㄥ 用ㄩㄥ4 男ㄋㄢ2 人ㄖㄣ2 手ㄕㄡ3 做ㄗㄨㄛ4 自ㄗ4 己ㄐㄧ3 三ㄙㄢ 百ㄅㄞ3
    今ㄐㄧㄣ 天ㄊㄧㄢ 我ㄨㄛ3 有ㄧㄡ3 明ㄇㄧㄥ2 他ㄊㄚ 要ㄧㄠ4 想ㄒㄧㄤ3 找ㄓㄠ3 也ㄧㄝ3
    吃ㄔ 去ㄑㄩ4 拿ㄋㄚ2
"""
READINGS = {said[0]: said[1:] for said in _READINGS.split()}
# Their files' names are two words, or misspelt.
UNCLEAR = ("palmtree", "fallingstar", "sphynx", "broccolli")

_WORD = re.compile("[a-z]+")

RATE = 16_000
LOUDNESS = 0.05  # root mean square of a piece, of which a peak of 20 times as much still fits
QUIET = 0.02  # of the peak: what is below it at both ends of a piece is cut off …
MARGIN_S = 0.03  # … but for so much, which holds weak consonants


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every sentence with every word of its split; the words are dealt by seed."""
    dealt = deal(sorted(words(source)), ask.seed)
    for reading in READINGS.values():
        for speaker in SPEAKERS:
            if not (syllable := source / "ogg" / reading / f"{speaker}.ogg").is_file():
                raise UserError(
                    f"{syllable} is not there: name the folder that `python demo/fetch.py mixed` makes"
                )
    found: list[Utterance] = []
    for split, sentences in SENTENCES.items():
        for number, sentence in enumerate(sentences):
            for turn, word in enumerate(dealt[split]):
                speaker = SPEAKERS[(number + turn) % len(SPEAKERS)]
                found.append(
                    Utterance(
                        key=key(f"{split}-{number}-{word}"),
                        audio=source,
                        text=sentence.format(word),
                        language=LANGUAGE,
                        split=split,
                        row=len(found),
                        extra={"mandarin_speaker": speaker},
                    )
                )
    return Corpus(
        found,
        "GPL-3 (Mandarin, 3), CC-BY-3 (Mandarin, 5: ChionMeilin, vocal source Chu Lo), GPL-2 (English)",
        "spliced: syllables of Debian gcin-voice, words of Debian ktuberling-data",
        facts={
            "splits": {
                LANGUAGE: "by text, no sentence, syllable with its tone or English word in two splits"
            }
        },
    )


def audio_of(utterance: Utterance) -> bytes:
    """The pieces of the text, one after the other, a FLAC."""
    return flac(np.concatenate([sound(piece) for piece in made_of(utterance)]), RATE)


def made_of(utterance: Utterance) -> list[Path]:
    """The files of the pieces, in the order of the text."""
    source, speaker = utterance.audio, utterance.extra["mandarin_speaker"]
    return [
        source / "ogg" / READINGS[piece] / f"{speaker}.ogg"
        if piece in READINGS
        else words(source)[piece]
        for piece in re.findall(rf"{_WORD.pattern}|\S", utterance.text)
    ]


@lru_cache
def words(source: Path) -> dict[str, Path]:
    """The English words, by what their files' names say. Raises: UserError: there are too few."""
    files = {path.stem.rpartition("_")[2]: path for path in sorted(source.glob("en/*.ogg"))}
    found = {w: path for w, path in files.items() if _WORD.fullmatch(w) and w not in UNCLEAR}
    if len(found) <= DEV_WORDS + TEST_WORDS:
        raise UserError(
            f"{source} holds {len(found)} English words in its folder en, and dev and test take "
            f"{DEV_WORDS + TEST_WORDS}: name the folder that `python demo/fetch.py mixed` makes"
        )
    return found


def deal(found: list[str], seed: int) -> dict[str, list[str]]:
    """The words of each split."""
    random.Random(seed).shuffle(found)
    dev = DEV_WORDS + TEST_WORDS
    return {"test": found[:TEST_WORDS], "dev": found[TEST_WORDS:dev], "train": found[dev:]}


@lru_cache(maxsize=512)
def sound(path: Path) -> Audio:
    """`(samples,)` at `RATE`, without silence at its ends, as loud as any other piece."""
    several, rate = channels(path)
    audio = resample(mono(several), rate, RATE)
    loud = np.flatnonzero(np.abs(audio) > QUIET * np.abs(audio).max())
    if not len(loud):
        raise UserError(f"{path} is silent: unpack it again")
    margin = round(MARGIN_S * RATE)
    audio = audio[max(loud[0] - margin, 0) : loud[-1] + margin]
    return np.asarray(audio * (LOUDNESS / np.sqrt(np.mean(audio**2))), dtype=np.float32)
