"""One of three ranks that mean to run different things; started by test_agreement.py.

    torchrun --nproc_per_node 3 disagreeing_ranks.py OUT

Each case is a question to all ranks in the same process group: a rank that was left waiting in one
would never answer the next. Writes OUT/rankR.json: the error of each case, null for none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import join
from salsa_dist.run.agreement import agree

# Case: what each rank brings.
CASES: dict[str, list[dict[str, Any]]] = {
    "same": [{"training.steps": 20}] * 3,
    "one differs": [{"training.steps": 20}, {"training.steps": 20}, {"training.steps": 30}],
    "the first differs": [{"torch": "2.12.0"}, {"torch": "2.13.0"}, {"torch": "2.13.0"}],
    "all differ": [{"steered layers": f"encoder.{r}"} for r in range(3)],
    "one knows less": [{"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1}],
    "in much": [{f"key {i}": i * (r == 0) for i in range(10)} for r in range(3)],
    "same again": [{"x": [1, None, "é"]}] * 3,
}


def main(out: Path) -> None:
    found: dict[str, str | None] = {}
    with join() as ranks:
        for case, facts in CASES.items():
            try:
                agree(ranks, facts[ranks.rank])
                found[case] = None
            except UserError as e:
                found[case] = str(e)
    (out / f"rank{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
