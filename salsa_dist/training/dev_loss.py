"""Adapters measured on dev clips: mean loss per label, or error rate.

first dev clips of each language ─► each rank tries a share ─► all leave out those that can't be used

dev clips of a language x its adapters ─┬► token losses ─► (adapters,) sums and label counts ─┬► reduced
                                        └► transcripts ──► (adapters,) errors and characters ─┘
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from salsa_dist.config import AdapterSettings, Config
from salsa_dist.data.clip import Clip, silent_clip
from salsa_dist.data.index import Entry, Shard, ShardIndex
from salsa_dist.data.reading import Bad, read_clip
from salsa_dist.data.shards import BadSample
from salsa_dist.data.share import share_of
from salsa_dist.data.subset import first_entries
from salsa_dist.errors import UserError
from salsa_dist.metrics.error_rates import CHOSEN_BY, METRICS, misnamed, score
from salsa_dist.metrics.normalise import Rules
from salsa_dist.placement.decode import generate
from salsa_dist.placement.frozen_base import FrozenBase
from salsa_dist.placement.kept_prefix import Known, without_audio
from salsa_dist.placement.ranks import Ranks
from salsa_dist.speech_llms.family import Family
from salsa_dist.training.loss import label_weights, token_losses


class DevClips:
    """The first dev clips of each language, in the order of their keys; all ranks take a share of them.

    Args:
        index: must have a dev split in each adapter's language.
        adapters: in row order.
        most: clips of a language.
        window_s: longer clips are left out.
    """

    def __init__(
        self,
        index: ShardIndex,
        adapters: Sequence[AdapterSettings],
        most: int,
        window_s: float,
    ) -> None:
        self.folder = index.folder
        self.languages = [a.languages for a in adapters]
        self.clips: dict[str, list[tuple[Shard, Entry]]] = {}
        self.share = True  # encode a clip once for all adapters
        self._known: Mapping[str, Known] | None = None  # by key, where no audio need be read
        for language in dict.fromkeys(x for own in self.languages for x in own):
            clips = first_entries(index.select("dev", language), most, window_s)
            self.clips[language] = clips
            if not clips:
                raise UserError(f"{language}: no dev clip is as short as the window of {window_s:g} s")

    def all_clips(self) -> Iterator[tuple[Shard, Entry]]:
        """All dev clips: any rank may measure on any of them."""
        for clips in self.clips.values():
            yield from clips

    def leave_out_bad(self, family: Family, ranks: Ranks, moved: Callable[[], None]) -> list[Bad]:
        """Try every clip, and leave out those that can't be read or that the base can't be trained on.

        All ranks call this before the first step, and leave out the same. That depends on the clips and
        the base alone, so a resumed run, and another trial of a sweep, leave out the same too.

        Args:
            moved: called before each clip, as often on all ranks.

        Returns:
            Those that are left out.

        Raises:
            UserError: a language has no clip left, or a shard can't be read; the same on all ranks.
        """
        mine, share = share_of(list(self.all_clips()), ranks.rank, ranks.world_size)
        own: list[Bad] = []
        for clip in range(share):
            moved()
            own += self._tried(family, *mine[clip]) if clip < len(mine) else []
        everyones: list[list[Bad]] = [[]] * ranks.world_size
        dist.all_gather_object(everyones, own)
        bad = sorted((b for of_rank in everyones for b in of_rank), key=lambda b: (b.shard, b.key))
        for one in bad:
            # A store or a disk that fails may work again: the choice must not depend on that.
            if one.kind == "shard":
                raise UserError(f"{one.why}; training.dev_clips asks for it: fetch the shard again")
        gone = {(b.shard, b.key) for b in bad}
        for language, clips in self.clips.items():
            self.clips[language] = [c for c in clips if (c[0].path, c[1].key) not in gone]
            if not self.clips[language]:
                first = (clips[0][0].path, clips[0][1].key)
                why = next(b.why for b in bad if (b.shard, b.key) == first)
                raise UserError(
                    f"{language}: none of the {len(clips)} dev clips can be used. The first: {why}"
                )
        return bad

    def _tried(self, family: Family, shard: Shard, entry: Entry) -> list[Bad]:
        """Why a clip can't be used; nothing where it can."""
        try:
            family.training_batch([read_clip(self.folder, shard, entry, row=0)])
        except BadSample as e:
            return [Bad(e.kind, shard.path, entry.key, str(e))]
        except UserError as e:
            return [Bad("refused", shard.path, entry.key, str(e))]
        return []

    def use_kept_prefix(self, known: Mapping[str, Known]) -> None:
        """From now on, read no audio for losses: see `StepBatches.use_kept_prefix`."""
        self._known = known

    def losses(
        self, base: FrozenBase, config: Config, rows: Sequence[int], moved: Callable[[], None]
    ) -> dict[int, float]:
        """Mean loss a label of the adapters of `rows`, labels weighted as in training; the same on all
        ranks, which all call this.

        Args:
            moved: called before each pass, as often on all ranks.
        """
        ranks = base.ranks
        mine, share = self._share(base, rows)
        sums = torch.zeros(2, len(self.languages), device=ranks.device)
        size = config.training.clips_per_pass
        for start in range(0, max(share, 1), size):
            moved()
            clips = self._clips(mine[start : start + size]) or [silent_clip(self.languages[0][0])]
            family = base.family
            # What is trained inside the encoder's layers leaves nothing below it to share.
            shares = self.share and config.training.share_prefix and bool(base.shared.sites)
            if shares and config.method.steers and config.method.learns:
                distinct = list({clip.key: clip for clip in clips}.values())
                batch = family.shared_batch(clips, distinct, kept=self._known is not None)
            else:
                batch = family.training_batch(clips)
            with torch.no_grad():
                losses = token_losses(base, batch)
            label_rows = batch.label_rows.to(ranks.device)
            weights = label_weights(batch, losses)
            sums[0].index_add_(0, label_rows, losses * weights)
            sums[1].index_add_(0, label_rows, weights)
        dist.all_reduce(sums)
        means = (sums[0] / sums[1]).tolist()
        return {row: means[row] for row in rows}

    def error_rates(
        self,
        base: FrozenBase,
        config: Config,
        rows: Sequence[int],
        moved: Callable[[], None],
    ) -> dict[str, dict[int, float]]:
        """Error rates (cer, and wer or mer) of the adapters of `rows`, decoded as evaluation would."""
        ranks = base.ranks
        mine, share = self._share(base, rows)
        shape = len(METRICS), 2, len(self.languages)
        sums = torch.zeros(shape, dtype=torch.float64, device=ranks.device)
        evaluation = config.evaluation
        limit, decoding = evaluation.max_new_tokens, evaluation.decoding.model_dump()
        rules = Rules.of(evaluation)
        for start in range(0, max(share, 1), evaluation.batch):
            moved()
            samples = mine[start : start + evaluation.batch]
            read = {entry.key: read_clip(self.folder, shard, entry) for (shard, entry), _ in samples}
            clips = [replace(read[entry.key], row=row) for (_, entry), row in samples]
            for clip, transcript in zip(clips, generate(base, clips, limit, decoding), strict=False):
                scored = score(clip.text, transcript.text, clip.language, rules=rules)
                edits = [scored.edits(metric) for metric in METRICS]
                sums[:, :, clip.row] += torch.tensor(
                    [[of.errors, of.length] for of in edits], dtype=sums.dtype, device=sums.device
                )
        dist.all_reduce(sums)
        rates = dict(zip(METRICS, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
        return {
            rate: {
                row: rates[metric][row]
                for row in rows
                if not any(misnamed(rate, language) for language in self.languages[row])
            }
            for rate, metric in CHOSEN_BY.items()
        }

    def _share(
        self, base: FrozenBase, rows: Sequence[int]
    ) -> tuple[list[tuple[tuple[Shard, Entry], int]], int]:
        """This rank's dev clips, each with an adapter's row, and how many a rank has at the most."""
        samples = [
            (clip, row)
            for language, clips in self.clips.items()
            for clip in clips
            for row in rows
            if language in self.languages[row]
        ]
        # A clip is encoded once for all rows that follow each other on one rank.
        return share_of(samples, base.ranks.rank, base.ranks.world_size, neighbours=True)

    def _clips(self, samples: Sequence[tuple[tuple[Shard, Entry], int]]) -> list[Clip]:
        read: dict[str, Clip] = {}
        clips = []
        for (shard, entry), row in samples:
            key = entry.key
            if key not in read:
                if self._known is not None:
                    read[key] = without_audio(key, self._known[key], shard.language, row)
                else:
                    read[key] = read_clip(self.folder, shard, entry)
            clips.append(replace(read[key], row=row))
        return clips


def finite_losses(losses: Mapping[int, float], names: Sequence[str]) -> dict[str, float]:
    """Losses by name, for events; losses that are not finite are left out."""
    return {names[row]: loss for row, loss in losses.items() if math.isfinite(loss)}
