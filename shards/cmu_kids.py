"""Recipe: the CMU Kids Corpus (LDC97S63), read sentences, ages 6 to 11.

Source: the release's folder, or one that holds it as cmu_kids:

    kids/fabm/signal/fabm2aa1.sph        speaker (m or f first), sentence, bin; NIST SPHERE
    tables/transcrp.tbl                  fabm2aa1  WHAT WAS SAID [human_noise]
    tables/speaker.tbl                   fabm  SUM95  3/9  …    group, grade/age; two lines of heading

as in https://catalog.ldc.upenn.edu/docs/LDC97S63/TABLES.TXT and KIDS.TXT; columns as Lhotse's
recipes/cmu_kids.py reads them. The text is what was said, not the prompt. There are no splits: whole
speakers are dealt. SPHERE files that are compressed by shorten must be converted first.

Licence: two agreements of the corpus's own, of an individual and of an organization, by the names of
the files that https://catalog.ldc.upenn.edu/LDC97S63 is said to link on 2026-10-02
(cmu-kids-individual-agreement.pdf, cmu-kids-organization-agreement.pdf). Neither text was read for this
recipe: read them there.
"""

from __future__ import annotations

from pathlib import Path

from salsa_dist.corpus.manifest import lines
from salsa_dist.corpus.texts import Texts, cmu_kids
from salsa_dist.corpus.utterance import Ask, Corpus, Utterance, key
from salsa_dist.errors import UserError

LICENCE = "CMU Kids Agreement (licensed by the LDC; not to be passed on)"


def read(source: Path, ask: Ask, scratch: Path) -> Corpus:
    """Every row of transcrp.tbl."""
    home = source / "cmu_kids" if (source / "cmu_kids").is_dir() else source
    table = home / "tables" / "transcrp.tbl"
    if not table.is_file() or not (home / "kids").is_dir():
        raise UserError(f"{source} holds no kids and tables/transcrp.tbl: name the folder of LDC97S63")
    texts, people, found = Texts(cmu_kids.RULES), speakers(home / "tables" / "speaker.tbl"), []
    for number, line in lines(table):
        name, _, said = line.strip().replace("\t", " ").partition(" ")
        if len(name) != 8:
            raise UserError(f"{table}, line {number}: {name!r} is not the 8 letters of an utterance")
        text = texts.clean(said, "en")
        if text:
            audio = home / "kids" / name[:4] / "signal" / f"{name}.sph"
            extra = {"bin": name[7], **people.get(name[:4], {})}
            found.append(
                Utterance(
                    key=key(name),
                    audio=audio,
                    text=text,
                    language="en",
                    speaker=name[:4],
                    table=table,
                    line=number,
                    extra=extra,
                )
            )
    if not found:
        raise UserError(f"{table} has no transcript")
    return texts.corpus(found, LICENCE, "CMU Kids Corpus, LDC97S63, from the LDC")


def speakers(table: Path) -> dict[str, dict[str, int | str]]:
    """Group, grade and age by speaker, as far as they are known; the heading has no such row."""
    found: dict[str, dict[str, int | str]] = {}
    for _, line in lines(table) if table.is_file() else ():
        cells = line.split()
        if len(cells) < 3 or len(cells[0]) != 4 or "/" not in cells[2] or cells[2] == "GR/AGE":
            continue
        grade, _, age = cells[2].partition("/")
        found[cells[0]] = {"group": cells[1]}
        found[cells[0]] |= {k: int(v) for k, v in (("grade", grade), ("age", age)) if v.isdigit()}
    return found
