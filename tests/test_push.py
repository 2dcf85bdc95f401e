"""`salsa-dist push`: the card's results are the run's; a refusal is one line and pushes nothing."""

import shutil
from pathlib import Path

import pytest
from stand_in_hub import StandInHub
from typer.testing import CliRunner

from salsa_dist.cli import app
from salsa_dist.commands.push import scores_of
from salsa_dist.errors import UserError
from salsa_dist.metrics.normalise import Rules

RELEASE_RUN = Path(__file__).parent / "report/release_run/run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RELEASE_RUN, tmp_path / "run"))


def test_a_pushed_card_has_the_runs_results(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = run / "adapters/bg"
    (cer,) = [s for s in scores_of(adapter, "bg") if (s.metric, s.language) == ("cer", "bg")]
    assert (cer.utterances, cer.window_s) == (6, 2.0)
    assert cer.steered == pytest.approx(0.1780821917808219)
    assert cer.gain == pytest.approx(0.5806451612903226)
    with StandInHub() as hub:
        hub.use(monkeypatch, str(tmp_path / "cache"))
        words = ["push", str(adapter), "user/bg", "--revision", "v1", "--private"]
        refused = CliRunner().invoke(app, words)
        assert isinstance(refused.exception, UserError)
        assert "--may-publish tiny" in str(refused.exception)
        assert hub.repositories == {}
        pushed = CliRunner().invoke(app, [*words, "--may-publish", "tiny"])
        assert pushed.exit_code == 0, pushed.exception
        assert pushed.stdout.strip().startswith(f"{hub.url}/user/bg/commit/")
        card = hub.repositories["user/bg"]["v1"]["README.md"].decode()
        assert "| bg | test | 2 s | 6 | CER | 42.5% | 17.8%" in card
        assert f"below the better zero-shot. Normaliser: {Rules('auto')}.\n" in card
        assert hub.private == {"user/bg"}


def test_an_adapter_of_no_run_has_no_results(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run / "adapters/bg", tmp_path / "bg"))
    assert scores_of(moved, "bg") == []
