"""The interface of a family of speech-LLMs, and the options that users may set.

    clips ── training_batch ──> AdapterBatch ──> the model's forward
    clips ── prompt_batch ────> PromptBatch ──> generate ──> transcripts

A family knows prompts, labels, row maps and the audio window of one kind of base. It holds no weights:
data workers get a pickled copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from salsa_dist.data.clip import Clip
from salsa_dist.speech_llms.batch import AdapterBatch, PromptBatch, Transcript
from salsa_dist.speech_llms.drop_finished import KeepRows


@dataclass(frozen=True)
class Checkpoint:
    """What a family is made from: everything of a checkpoint but its weights.

    Attributes:
        name: folder or hub name, for errors.
        config: the model's config.
        processor: what the family's `load_processor` returned.
        generation: the model's generation config; None where it writes its text in one pass.
    """

    name: str
    config: Any
    processor: Any
    generation: Any


@dataclass(frozen=True)
class FamilyOptions:
    """What a user may change of a base's prompts and window.

    Attributes:
        window_s: longest audio in seconds; None: the base's own.
        prompt: the instruction that stands in for the authors' own, `{language}` in it being the
            language's English name; only for bases that take one.
        language_as: languages to be announced to the base as another, such as `{"tw": "yo"}`.
        silence_stride: keep 1 in this many encoder positions of the trailing padding; only for bases
            that pad every clip to one window. Training sets it (`Method.load`); it is 1 in evaluation.
            auto: training tells each adapter's own as it begins.
    """

    window_s: float | None = None
    prompt: str | None = None
    language_as: Mapping[str, str] = field(default_factory=dict)
    silence_stride: int | Literal["auto"] = 1


def auto_processor(name: str, revision: str | None) -> Any:
    """A checkpoint's processor, through transformers' public class, without remote code."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)


@dataclass(frozen=True)
class Parts:
    """What audio needs of a processor whose whole wants packages for images and videos."""

    tokenizer: Any
    feature_extractor: Any


def parts_of_processor(name: str, revision: str | None) -> Parts:
    """A checkpoint's tokenizer and feature extractor, without the rest of its processor."""
    from transformers import AutoFeatureExtractor, AutoTokenizer

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    return Parts(
        AutoTokenizer.from_pretrained(name, **options),
        AutoFeatureExtractor.from_pretrained(name, **options),
    )


class Family(Protocol):
    """Batches for one kind of base, and its transcripts; families inherit what most of them do.

    Attributes:
        window_s: longest clip in seconds.
        languages: codes that the base knows by name, sorted; never empty.
        MODEL_TYPES: `model_type` of the configs that it is for.
        MODEL_CLASS: transformers class of the model; None: the one its own tables name.
        THINS_PADDING: `silence_stride` thins the trailing padding of a clip.
        RESAMPLES: it gives its processor audio at another rate than that of clips.
        LEARNS_WORD_TIMES: it is trained on clips that know when each word is said.
        LORA: where a checkpoint has a LoRA of its own (`built_in_lora`); None: it has none.
        padded_to_s: what the encoder runs of a clip is a multiple of so many seconds, and so are the
            costs of a pass; None: its own seconds.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]]
    MODEL_CLASS: ClassVar[str | None] = None
    THINS_PADDING: bool = False
    RESAMPLES: bool = False
    LEARNS_WORD_TIMES: bool = False
    LORA: ClassVar[str | None] = None
    window_s: float
    padded_to_s: float | None = None
    languages: list[str]

    def __init__(self, checkpoint: Checkpoint, options: FamilyOptions) -> None:
        """The family of a loaded checkpoint; a `UserError` where it lacks what is needed."""

    @staticmethod
    def load_processor(name: str, revision: str | None) -> Any:
        """Tokenizer and feature extractor, by folder or hub name."""
        return auto_processor(name, revision)

    def fit(self, model: Any) -> None:
        """Change `model` to the window, in place, before its weights are placed.

        The model may have no data yet (meta device), so this may only keep the first rows of a weight.
        Most encoders take any length: nothing to change.
        """
        return

    def prompt(self, language: str) -> list[int]:
        """Token ids up to where the transcript starts, with one placeholder for the audio if the
        prompt holds it; a `UserError` for what is no language code."""

    def apart(self, language: str) -> int:
        """Clips of languages with other numbers can't be in one `prompt_batch`."""
        return 0

    def stand_in(self, language: str) -> str | None:
        """A line about what the prompt names in place of a language that the base does not know; None:
        it names that language, or none at all for all languages."""
        return None

    def training_batch(self, clips: Sequence[Clip]) -> AdapterBatch:
        """Audio, prompt and transcript of `clips`; a clip without text has no labels.

        A clip's part of the batch depends on that clip alone, whatever it is packed with.
        """

    def shared_batch(
        self, clips: Sequence[Clip], distinct: Sequence[Clip], kept: bool = False
    ) -> AdapterBatch:
        """`training_batch` of `clips` that encodes only `distinct`, which has each key of `clips` once.

        Args:
            kept: what the encoder makes of the audio is known already: `distinct` are as long as the
                clips were and silent, and only shapes matter.
        """

    def prompt_batch(self, clips: Sequence[Clip]) -> PromptBatch:
        """Audio and prompts of `clips`, to be continued by `generate`."""

    def generate(
        self,
        model: Any,
        batch: PromptBatch,
        max_new_tokens: int,
        synced: bool = False,
        keep_rows: KeepRows | None = None,
    ) -> list[Transcript]:
        """Transcribe a batch greedily.

        Args:
            model: a base of this family.
            batch: from `prompt_batch`.
            max_new_tokens: limit of a transcript, in tokens.
            synced: keep stepping until all ranks are done, as sharded weights need.
            keep_rows: finished rows are dropped, where the family can, and this is called with those
                that are kept; None: no row is dropped.
        """

    def transcript(self, ids: Sequence[int]) -> str:
        """The text that generated or label token ids stand for."""


@runtime_checkable
class OwnLoss(Protocol):
    """What a family offers beside, whose base is not trained by the cross-entropy of each label."""

    def losses(self, logits: Tensor, batch: AdapterBatch) -> Tensor:
        """(labels,) fp32; their sum over a sample is its loss.

        Args:
            logits: (positions, vocabulary), at `batch.label_positions` one behind the other.
            batch: from `training_batch` or `shared_batch`.
        """


@runtime_checkable
class EncodesApart(Protocol):
    """What a family offers beside, whose model is an encoder with a decoder.

    Its `generate` takes what the encoder puts out (`encoder_outputs`), so that a clip that several
    adapters transcribe can go through what they share of the encoder once. `input_features` of a batch
    is what the encoder takes, a row per clip.
    """

    def shared_prompt_batch(self, clips: Sequence[Clip], distinct: Sequence[Clip]) -> PromptBatch:
        """`prompt_batch` that encodes only `distinct`, which has each clip of `clips` once."""


@runtime_checkable
class TellsLanguage(Protocol):
    """What a family offers beside, whose base can tell the language that is spoken."""

    def languages_of(self, model: Any, batch: PromptBatch) -> list[str]:
        """The language of each sample, whatever languages the batch was made with."""

    def in_languages(
        self, batch: PromptBatch, languages: Sequence[str], rows: Sequence[int]
    ) -> PromptBatch:
        """The same samples with prompts in `languages`, and other rows of the bank."""


def stand_ins(family: Family, languages: Iterable[str]) -> dict[str, str]:
    """`stand_in` of each of `languages` that the base does not know."""
    told = {language: family.stand_in(language) for language in languages}
    return {language: said for language, said in told.items() if said}
