"""Preflight refuses a job whose machines differ, and names what is slow, before anything is loaded.

Four real ranks play two nodes, then three; hosts, versions and speeds are made up, messages are real.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

from salsa_dist.run import link_speed

PLAY = """
import json, os, sys, time
from pathlib import Path
from unittest import mock
from salsa_dist.run import link_speed, preflight as module
from salsa_dist.errors import UserError
from salsa_dist.placement.ranks import Ranks, join

folder = Path(sys.argv[1])
module._SEEN_WITHIN_S = 1.0  # this file system shows files at once
real = link_speed._there_and_back

def play(ranks, name, hosts="aabb", locals="0101", run=None, versions=None, slow=(), dull=None):
    rank = ranks.rank
    host = mock.patch("socket.gethostname", lambda: hosts[rank])
    local = hosts.count(hosts[rank])
    here = Ranks(rank, ranks.world_size, int(locals[rank]), local, ranks.device)

    def there_and_back(message, first, peer):
        real(message, first, peer)
        if (hosts[rank] in slow or hosts[peer] in slow) and hosts[rank] != hosts[peer]:
            time.sleep(2 * 8 * len(message) / 1e6)  # a link of 1 Mbit/s

    exchange = mock.patch.object(link_speed, "_there_and_back", there_and_back)
    changed = {**module._versions(), **(versions(rank) if versions else {})}
    own = mock.patch.object(module, "_versions", lambda: changed)
    work = mock.patch.object(module, "_work_s", lambda device: 0.9 if rank == dull else 0.1)
    at = folder / name / "run" if run is None else Path(str(run).replace("RANK", str(rank)))
    with host, exchange, own, work:
        try:
            found = module.preflight(at, here, lambda: "")
            said = {"event": found.event(), "lines": found.lines()}
        except UserError as error:
            said = {"error": str(error)}
    (folder / f"{name}.{rank}.json").write_text(json.dumps(said))

with join() as ranks:
    play(ranks, "good")
    play(ranks, "versions", versions=lambda rank: {"torch": "1.0"} if rank > 1 else {})
    play(ranks, "layout", hosts="abab", locals="0011")
    play(ranks, "apart", run=f"{folder}/own-RANK")
    play(ranks, "slow", hosts="abcd", locals="0000", slow="c")
    play(ranks, "dull", dull=2)
"""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight")
    (folder / "play.py").write_text(PLAY)
    done = run_ranks(4, folder / "play.py", folder, folder=folder, timeout_s=300)
    assert done.returncode == 0, done.stderr
    return folder


def said(played: Path, name: str) -> dict[str, Any]:
    """What all four ranks said alike of one play; the error or the event."""
    ranks = [json.loads((played / f"{name}.{rank}.json").read_text()) for rank in range(4)]
    if "error" in ranks[0]:
        assert len({rank["error"] for rank in ranks}) == 1, "all ranks refuse alike"
    return dict(ranks[0])


def test_like_nodes_pass_with_their_links_measured(played: Path) -> None:
    found = said(played, "good")
    event = found["event"]
    assert (event["nodes"], event["hosts"]) == (2, ["a", "b"])
    links = [machine["link_gbps"] for machine in event["machines"]]
    assert all(link > 0 for link in links)
    assert event["gbps_inside"] == pytest.approx(min(links[0], links[2]), rel=1e-3)
    assert event["gbps_between"] == pytest.approx(min(links[1], links[3]), rel=1e-3)
    assert found["lines"][0].startswith("preflight: 4 ranks on 2 nodes, slowest link ")
    assert event["seconds"] < 30
    assert not (played / "good").exists(), "the folder is left as it was"


def test_other_versions_are_refused_with_their_hosts(played: Path) -> None:
    assert "1.0 on ranks 2, 3 on b: install one version everywhere" in said(played, "versions")["error"]


def test_ranks_that_are_not_node_by_node_are_refused(played: Path) -> None:
    error = said(played, "layout")["error"]
    assert "not laid out node by node (0 on a, 1 on b, 2 on a, 3 on b)" in error


def test_a_run_folder_that_is_not_shared_is_refused(played: Path) -> None:
    error = said(played, "apart")["error"]
    assert "rank 1 on a and ranks 2, 3 on b does not see what rank 0 writes there" in error


def test_a_node_whose_links_are_slow_is_named(played: Path) -> None:
    warnings = said(played, "slow")["event"]["warnings"]
    assert len(warnings) == 2
    assert all("node c is slow" in warning for warning in warnings)


def test_a_rank_that_computes_slowly_is_named(played: Path) -> None:
    (warning,) = [w for w in said(played, "dull")["event"]["warnings"] if "computes" in w]
    assert warning.startswith("rank 2 on b computes 9.0 times slower")


def test_a_link_that_crawls_does_not_hold_up_the_job(played: Path) -> None:
    # Four megabytes there and back would take a minute each.
    event = said(played, "slow")["event"]
    assert event["seconds"] < 30
    assert event["gbps_between"] == pytest.approx(0.001, rel=0.2)


@pytest.mark.parametrize(("bytes_per_s", "largest"), [(1e5, 16), (2e7, 22), (1e13, 28)])
def test_fast_links_get_large_messages(
    monkeypatch: pytest.MonkeyPatch, bytes_per_s: float, largest: int
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(link_speed, "_there_and_back", lambda message, *_: sent.append(len(message)))
    monkeypatch.setattr(link_speed.dist, "send", lambda *_: None)

    def took(call: Callable[[], object], device: torch.device) -> float:
        call()
        return 2 * sent[-1] / bytes_per_s

    monkeypatch.setattr(link_speed, "best_of", took)
    gbps = link_speed._exchange(torch.device("cpu"), True, 1)
    assert sent[-1] == 2**largest
    assert gbps == pytest.approx(8 * bytes_per_s / 1e9)
