"""One adapter: saving, loading, attaching to a model, scaling, combining with others.

    SteeringVectors ── vectors[site]    (hidden,) fp32; (2 * hidden,) with the rule `gain`
                    ── rule             how they change an activation
                    ── base …           what it was made for; another base is refused
                    ── data, training   where they come from, for `adapter.json`

`adapter_folder.py` says what lies on disk, `attachment.py` how a model is steered.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from salsa_dist.errors import UserError
from salsa_dist.libraries.transformers import generate_as_it_is
from salsa_dist.steering import adapter_bytes, adapter_folder, hub, vector_facts
from salsa_dist.steering.adapter_folder import AdapterFacts, DataFacts, TrainingFacts
from salsa_dist.steering.arithmetic import combined, shares
from salsa_dist.steering.attachment import Attachment, bank_of, fitting_sites, module_of
from salsa_dist.steering.licences import refuse_unless_open
from salsa_dist.steering.model_card import Score


@dataclass(eq=False, repr=False)
class SteeringVectors:
    """One adapter: a vector per site, and the facts about its base.

        vectors = SteeringVectors.load("runs/demo/adapters/bg")
        with vectors.attach(base, scale=0.5):
            ...

    Args:
        vectors: site name to vector, (hidden,) fp32; with the rule `gain` (2 * hidden,), the vector and
            then the gain of each channel.
        rule: a name in `rules.registry.RULES`, such as `salsa`.
        name: what it is called.
        language: the code of its language.
        base: name of the base that it was trained on; not checked.
        revision: of that base; checked when the adapter is put on a model, as the next two are.
        architecture: the base's class in transformers.
        model_type: the base's type in transformers.
        quantization: how that base was quantised while it was loaded; on another a line says so.
        data: the corpus that it was trained on; None: not known.
        training: the settings that it was trained with; None: not known.
    """

    vectors: Mapping[str, Tensor]
    rule: str
    _: KW_ONLY
    name: str = "adapter"
    language: str = ""
    base: str = ""
    revision: str = ""
    architecture: str = ""
    model_type: str = ""
    quantization: str = ""
    data: DataFacts | None = None
    training: TrainingFacts | None = None

    def __post_init__(self) -> None:
        self.vectors = {site: v.detach().float().cpu().clone() for site, v in self.vectors.items()}

    def save(self, folder: str | Path) -> Path:
        """Write the adapter's folder; it appears whole or not at all, in place of an older one.

        >>> bg = SteeringVectors.load("runs/demo/adapters/bg")
        >>> (0.5 * bg).save("half").name
        'half'

        Raises:
            UserError: the folder holds something else, or can't be written.
        """
        return adapter_folder.write(Path(folder), self.vectors, self._facts())

    save_pretrained = save

    @classmethod
    def load(cls, path: str | Path) -> SteeringVectors:
        """Read an adapter; one that is damaged, changed or of another schema is a `UserError`.

        >>> SteeringVectors.load("runs/demo/adapters/bg").language
        'bg'

        Args:
            path: its folder; or its name on a hub, `user/name` or `user/name@revision`; or the
                `.safetensors` file alone, which does not say what it was trained on, nor the
                architecture of its base.
        """
        name, path = str(path), Path(path)
        if path.is_dir():
            return cls._of(*adapter_folder.read(path))
        if path.is_file():
            vectors, metadata = adapter_bytes.unpack(adapter_bytes.read(path), path)
            known: Any = {k: metadata.get(k, "") for k in ("name", "language", "base", "revision")}
            return cls(vectors, metadata["rule"], **known)
        if (parts := hub.name_and_revision(name)) is None:
            raise UserError(
                f"no adapter at {path}: name the folder of a trained adapter, or user/name of a hub"
            )
        files = hub.fetch(*parts, adapter_folder.LIMITS)
        return cls._of(*adapter_folder.unpack(files, Path(name)))

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> SteeringVectors:
        """Read an adapter by its name on a hub, or from a folder.

        >>> SteeringVectors.from_pretrained("user/bg").language
        'bg'

        Args:
            name: `user/name`, or a folder. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count as anywhere.
            revision: branch, tag or commit; None: the main branch.

        Raises:
            UserError: there is no such adapter, the hub can't be reached, or what it holds is damaged
                or too large. No file but the two of an adapter is fetched; none is run.
        """
        if revision is None:
            return cls.load(name)
        if Path(name).exists():
            raise UserError(f"{name} is a folder, which has no revision: give none")
        return cls.load(f"{name}@{revision}")

    def push_to_hub(
        self,
        name: str,
        *,
        revision: str | None = None,
        private: bool = False,
        may_publish: str | None = None,
        scores: Sequence[Score] = (),
    ) -> str:
        """Put the adapter on a hub, with a card, in one commit; gives the commit's address.

        >>> bg = SteeringVectors.load("runs/demo/adapters/bg")
        >>> address = bg.push_to_hub("user/bg-copy", may_publish="bg")

        Args:
            name: `user/name`; the repository is made if need be.
            revision: a branch, made if need be; None: the main branch.
            private: of a repository that is made now.
            may_publish: the name of its corpus, whose licence is not an open one or not stated, and of
                which you know that an adapter may be published. If its speech is not recorded: its
                own name.
            scores: what its evaluation gave, for the card.

        Raises:
            UserError: its speech may not be passed on, or the hub can't be reached or refuses.
        """
        facts = self._facts()
        refuse_unless_open(self.name, self.data.model_dump() if self.data else None, may_publish)
        files = adapter_folder.files_of(self.vectors, facts, self.name, scores, repository=name)
        message = f"Adapter {self.name} for {facts['base']['name'] or 'a base that is not named'}"
        return hub.push(name, files, revision=revision, private=private, message=message)

    def scaled(self, scale: float) -> SteeringVectors:
        """This adapter with every vector times `scale`; `scale * vectors` is the same.

        >>> bg = SteeringVectors.load("runs/demo/adapters/bg")
        >>> bg.scaled(0.5).name
        'bg-x0.5'
        >>> (0.5 * bg).norms()["encoder.0"] == 0.5 * bg.norms()["encoder.0"]
        True

        Args:
            scale: 0 steers nothing, 1 is the adapter itself.

        Raises:
            UserError: it is not finite, or a vector would not be.
        """
        if not math.isfinite(scale):
            raise UserError(f"adapter {self.name!r} can't be scaled by {scale}: give a finite number")
        if scale == 1:
            return self
        vectors = {site: v * scale for site, v in self.vectors.items()}
        if what := adapter_bytes.wrong(vectors):
            raise UserError(f"adapter {self.name!r} can't be scaled by {scale:g}: {what}")
        return replace(self, vectors=vectors, name=f"{self.name}-x{scale:g}", training=None)

    def __mul__(self, scale: float) -> SteeringVectors:
        return self.scaled(scale) if isinstance(scale, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> SteeringVectors:
        return self.scaled(-1.0)

    def __add__(self, other: SteeringVectors) -> SteeringVectors:
        """The sum at each site; a site that only one of them steers keeps that one's vector.

        >>> bg = SteeringVectors.load("runs/demo/adapters/bg")
        >>> el = SteeringVectors.load("runs/demo/adapters/el")
        >>> (bg + el).name
        'bg+el'
        >>> ((bg + el) - el).cosine(bg) > 0.9999
        True

        Raises:
            UserError: they differ in rule, base or width.
        """
        if not isinstance(other, SteeringVectors):
            return NotImplemented
        return combined([self, other], [1.0, 1.0], f"{self.name}+{other.name}")

    def __sub__(self, other: SteeringVectors) -> SteeringVectors:
        if not isinstance(other, SteeringVectors):
            return NotImplemented
        return combined([self, other], [1.0, -1.0], f"{self.name}-{other.name}")

    def interpolate(self, other: SteeringVectors, share: float) -> SteeringVectors:
        """`1 - share` of this adapter plus `share` of the other, at each site.

        >>> bg = SteeringVectors.load("runs/demo/adapters/bg")
        >>> el = SteeringVectors.load("runs/demo/adapters/el")
        >>> bg.interpolate(el, 0.25).name
        'bg-0.25-el'

        Args:
            other: of the same rule and base; where only one of the two has a site, the other is zero.
            share: 0 is this adapter, 1 the other; less or more goes on along the same line.

        Raises:
            UserError: the share is not finite, or the adapters differ in rule, base or width.
        """
        if not math.isfinite(share):
            raise UserError(f"a share of {share} can't be taken: give a finite number")
        return combined([self, other], [1 - share, share], f"{self.name}-{share:g}-{other.name}")

    @classmethod
    def average(
        cls, adapters: Sequence[SteeringVectors], weights: Sequence[float] | None = None
    ) -> SteeringVectors:
        """The mean of adapters with one rule, the same sites and the same base.

        >>> names = ["runs/demo/adapters/bg", "runs/demo/adapters/el"]
        >>> SteeringVectors.average([SteeringVectors.load(n) for n in names], weights=[3, 1]).name
        'bg+el'

        Args:
            adapters: at least one.
            weights: one for each, none negative, not all zero; only ratios count. None: all alike.
        """
        return combined(adapters, shares(adapters, weights), "+".join(a.name for a in adapters))

    def norms(self) -> dict[str, float]:
        """The length (L2) of each site's numbers, in the model's order.

        >>> SteeringVectors.load("runs/demo/adapters/bg").norms()["encoder.0"] > 0
        True
        """
        return {site: float(v.double().norm()) for site, v in self.vectors.items()}

    def cosine(self, other: SteeringVectors) -> float | None:
        """Similarity of two adapters: cosine, -1 to 1, over the sites that both steer.

        None where they share no site, or one of them is all zero there.

        >>> bg = SteeringVectors.load("runs/demo/adapters/bg")
        >>> round(bg.cosine(bg), 6), round(bg.cosine(-bg), 6)
        (1.0, -1.0)
        """
        own, others = ({s: v.numpy() for s, v in a.vectors.items()} for a in (self, other))
        return vector_facts.cosine(own, others)

    def attach(self, model: Any, scale: float = 1.0, force: bool = False) -> Attachment:
        """Steer `model` with this adapter, for every sample, until `detach()` or the end of a block.

        From then on, `generate` no longer compiles the model by itself, as it does on GPUs where its
        cache is static: what is compiled would keep this adapter, or lack it.

        >>> import soundfile
        >>> from transformers import pipeline
        >>> samples, rate = soundfile.read("clip.wav")
        >>> asr = pipeline("automatic-speech-recognition", "whisper-base", device="cpu")
        >>> bg = SteeringVectors.load("runs/demo/adapters/bg")
        >>> with bg.attach(asr):
        ...     text = asr({"raw": samples, "sampling_rate": rate})["text"]
        >>> on = bg.attach(asr.model, scale=0.5)  # from here on
        >>> on.detach()

        Args:
            model: what `load_speech_llm` returns, a transformers model, or a pipeline with one.
            scale: how much of the adapter; see `scaled`.
            force: put it on another base too, as long as its sites and widths are there.

        Raises:
            UserError: the adapter was made for another base, or steers sites that the model lacks.
        """
        sites = self.check(model, force)
        module = module_of(model)
        generate_as_it_is(model, module)
        device = next(module.parameters()).device
        return Attachment(bank_of([self.scaled(scale)], device), sites)

    def check(self, model: Any, force: bool = False) -> dict[str, nn.Module]:
        """The modules of `model` by site, if this adapter can be put on it; else a `UserError`.

        >>> from salsa_dist import load_speech_llm
        >>> base = load_speech_llm("whisper-base")
        >>> type(SteeringVectors.load("runs/demo/adapters/bg").check(base)["encoder.0"]).__name__
        'WhisperEncoderLayer'

        Args:
            model, force: as in `attach`.
        """
        made_for = {"base": self.base, **self._about_base()}
        return fitting_sites(model, self.vectors, self.rule, made_for, f"adapter {self.name!r}", force)

    def digest(self) -> str:
        """SHA-256 over the rule and the vectors.

        >>> len(SteeringVectors.load("runs/demo/adapters/bg").digest())
        64
        """
        raw = (k.encode() + v.contiguous().numpy().tobytes() for k, v in self.vectors.items())
        return hashlib.sha256(self.rule.encode() + b"".join(raw)).hexdigest()

    def _about_base(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("revision", "architecture", "model_type", "quantization")}

    def _facts(self) -> dict[str, Any]:
        """The facts for `adapter.json`."""
        return {
            "name": self.name,
            "language": self.language,
            "base": {"name": adapter_folder.known_as(self.base), **self._about_base()},
            "rule": self.rule,
            "data": self.data,
            "training": self.training,
        }

    @classmethod
    def _of(cls, vectors: Mapping[str, Tensor], facts: AdapterFacts) -> SteeringVectors:
        return cls(
            vectors,
            facts.rule,
            name=facts.name,
            language=facts.language,
            base=facts.base.name,
            **facts.base.model_dump(exclude={"name"}),
            data=facts.data,
            training=facts.training,
        )

    def __repr__(self) -> str:
        return f"SteeringVectors({self.name!r}, {self.rule}, {list(self.vectors)})"
