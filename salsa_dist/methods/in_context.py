"""Speech in-context learning: solved examples before each utterance; nothing is trained.

    Whisper       audio   |example 1|example 2|utterance|      decoder  <prompt> text 1 text 2 …
    Qwen2-Audio   <audio 1> request  text 1  <audio 2> request  text 2  <audio> request …

Examples are chosen from the first training clips of the language: at random (Wang et al., arXiv
2309.07081), nearest by the base's own encoder, or nearest by text, as TICL does (arXiv 2509.13395),
here by the letters of the base's zero-shot draft, since no embedding model comes with a base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from salsa_dist.config import AdapterSettings, InContextMethod
from salsa_dist.data.clip import Clip
from salsa_dist.data.reading import first_clips
from salsa_dist.errors import UserError
from salsa_dist.methods.base import Attached, BaseParts, Method
from salsa_dist.run.session import Session
from salsa_dist.speech_llms.batch import Transcript
from salsa_dist.speech_llms.load import SpeechLLM
from salsa_dist.steering.bank import Bank


class InContext(Method):
    """The base with examples of the adapter's language before each clip."""

    section = InContextMethod
    title = "in-context"

    @classmethod
    def label(cls, method: InContextMethod, adapter: AdapterSettings) -> str:
        return f"in-context, {method.examples} examples by {method.choose}"

    @classmethod
    def unfit(
        cls, method: InContextMethod, components: Collection[str], base: BaseParts, dtype: str
    ) -> list[str]:
        problems = []
        if not base.in_context:
            problems.append(" can't be done on this base: it has no prompt with examples")
        if method.choose == "audio" and "encoder" not in base.layers:
            problems.append(" can't be done on this base: it has no encoder")
        return problems

    def digest(self, name: str) -> str:
        return self.config.method.model_dump_json()

    @contextmanager
    def attached(self, session: Session, speech_llm: SpeechLLM, row: int) -> Iterator[Attached]:
        method, adapter = self.config.method, self.config.adapter_settings()[row]
        assert isinstance(method, InContextMethod)
        pool = first_clips(
            *(self.config.data.shards, session.index, adapter.language, method.pool),
            speech_llm.window_s,
        )
        solver = Solver(
            *(method, speech_llm, pool, adapter.seed),
            lambda: session.at(None, "encoding the examples"),
        )
        yield Attached(Bank([], {}, session.ranks.device), solver.transcribe)


class Solver:
    """Transcribes clips of one language with examples from `pool`.

    Args:
        method: how many examples, how chosen.
        speech_llm: the base, whole on this rank.
        pool: solved clips.
        seed: of random choices.
        moved: called before each clip of the pool is encoded.

    Raises:
        UserError: the family has no such prompt, or the pool is empty.
    """

    def __init__(
        self,
        method: InContextMethod,
        speech_llm: SpeechLLM,
        pool: Sequence[Clip],
        seed: int,
        moved: Callable[[], None],
    ) -> None:
        if not hasattr(speech_llm.family, "in_context_batch"):
            raise UserError(
                f"method in-context can't be done on {speech_llm.name}: its family has no prompt with "
                "examples"
            )
        if not pool:
            raise UserError("method in-context: no training clip fits the window")
        self.method = method
        self.speech_llm = speech_llm
        self.pool = list(pool)
        self.seed = seed
        self._known: NDArray[np.float64] | None = None
        self._grams: dict[str, int] = {}
        if method.choose == "audio":
            embeddings = []
            for clip in self.pool:
                moved()
                embeddings.append(self._embedding(clip))
            self._known = np.stack(embeddings)
        elif method.choose == "text":
            every = sorted({g for clip in self.pool for g in _trigrams(clip.text)})
            self._grams = {gram: i for i, gram in enumerate(every)}
            self._known = np.stack([self._letters(clip.text) for clip in self.pool])

    def transcribe(
        self, clip: Clip, max_new_tokens: int, decoding: Mapping[str, Any] | None = None
    ) -> Transcript:
        """The transcript of one clip behind its own examples."""
        family: Any = self.speech_llm.family
        batch = family.in_context_batch(clip, self.examples(clip, max_new_tokens))
        batch = replace(batch, options={**batch.options, **(decoding or {})})
        with torch.inference_mode():
            made: list[Transcript] = family.generate(self.speech_llm.model, batch, max_new_tokens)
        return made[0]

    def examples(self, clip: Clip, max_new_tokens: int) -> list[Clip]:
        """As many of the pool as fit with the clip and its answer, at most `examples`, best last."""
        family: Any = self.speech_llm.family
        room = self.speech_llm.window_s - clip.seconds
        tokens = family.in_context_room(max_new_tokens)
        chosen: list[Clip] = []
        for i in self._order(clip, max_new_tokens):
            example = self.pool[i]
            size = len(family.tokenizer(example.text, add_special_tokens=False).input_ids) + 1
            if len(chosen) < self.method.examples and example.seconds <= room and size <= tokens:
                chosen.append(example)
                room -= example.seconds
                tokens -= size
        return chosen[::-1]

    def _order(self, clip: Clip, max_new_tokens: int) -> list[int]:
        """The pool, best first."""
        if self._known is None:
            word = f"{self.seed} {clip.key}".encode()
            own = int.from_bytes(hashlib.sha256(word).digest()[:8], "big")
            return [int(i) for i in np.random.default_rng(own).permutation(len(self.pool))]
        if self.method.choose == "audio":
            query = self._embedding(clip)
        else:
            query = self._letters(self._draft(clip, max_new_tokens))
        return [int(i) for i in np.argsort(-self._known @ query, kind="stable")]

    @torch.inference_mode()
    def _embedding(self, clip: Clip) -> NDArray[np.float64]:
        """(hidden,) mean output of the last encoder layer, of length 1."""
        model, family = self.speech_llm.model, self.speech_llm.family
        layers = self.speech_llm.layer_lists
        if "encoder" not in layers:
            raise UserError("method.choose audio: this base has no encoder; use random or text")
        kept: list[torch.Tensor] = []

        def keep(_: Any, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            kept.append(hidden.flatten(0, -2).double().mean(0))

        hook = layers["encoder"][-1].register_forward_hook(keep)
        weight = next(model.parameters())
        try:
            model(
                **family.training_batch([clip]).to(weight.device, model.dtype).inputs, use_cache=False
            )
        finally:
            hook.remove()
        mean = kept[0].cpu().numpy()
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))

    def _draft(self, clip: Clip, max_new_tokens: int) -> str:
        model, family = self.speech_llm.model, self.speech_llm.family
        with torch.inference_mode():
            return family.generate(model, family.prompt_batch([clip]), max_new_tokens)[0].text

    def _letters(self, text: str) -> NDArray[np.float64]:
        """(grams of the pool,) counts of letter trigrams, of length 1; zeros where none is known."""
        counts = np.zeros(len(self._grams))
        for gram in _trigrams(text):
            if gram in self._grams:
                counts[self._grams[gram]] += 1
        return counts / max(float(np.linalg.norm(counts)), 1e-12)


def _trigrams(text: str) -> list[str]:
    padded = f"  {text.lower()}  "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]
