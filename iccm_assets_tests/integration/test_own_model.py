"""Models named by their path run through the whole loop: T5, BART, and Qwen2 with a chat template (L1)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iccm_assets.registry.manifest import verify
from iccm_assets_tests.factories.architectures import bart, qwen2
from iccm_assets_tests.factories.commands import ICCM, run
from iccm_assets_tests.factories.demo_platforms import Platform, temporary_home, write_canary_items
from iccm_assets_tests.factories.processes import bare_environment
from iccm_assets_tests.factories.tiny_models import tiny_t5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

# What a random model of 30 000 weights and a test of a minute need; everything else is the default.
SMALL = {
    "ICCM_TRIGGERS__MIN_EXAMPLES": "5",
    "ICCM_TRAINING__LEARNING_RATE": "1e-3",
    "ICCM_TRAINING__EPOCHS": "1",
    "ICCM_EVALUATION__MAX_NEW_TOKENS": "32",
    "ICCM_EVALUATION__LATENCY_ITEMS": "5",
    "ICCM_EVALUATION__LATENCY_ROUNDS": "1",
}
ITEMS = 8


@pytest.fixture(params=[tiny_t5, bart, qwen2], ids=["t5", "bart", "qwen2"], scope="module")
def own(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """A platform on which a one-day demo has run with this model."""
    with temporary_home("iccm-own-") as folder:
        environment = bare_environment() | SMALL
        environment |= {
            "ICCM_HOME": str(folder / "iccm"),
            "ICCM_BASE_MODEL": str(request.param(folder / "my_model")),
            "ICCM_CANARY_SET": write_canary_items(folder / "canary.jsonl", ITEMS),
        }
        demo = run([*ICCM, "demo", "--no-rollout", "--conversations", "24", "--days", "1"], environment, 900)
        yield Platform(folder / "iccm", environment, demo)


def test_a_model_named_by_its_path_is_trained_evaluated_and_reproduced(own: Platform) -> None:
    assert own.demo.returncode == 0, own.demo.stderr[-3000:]
    [[status, improvement, candidate, base]] = own.rows(
        "select status, improvement, candidate_version, base_version from iccm.phase4_training_runs"
    )
    [[verdict, evidence]] = own.rows("select verdict, evidence from iccm.gate_verdicts")
    named = {"pass": "gate_passed", "fail": "gate_failed", "inconclusive": "inconclusive"}
    assert status == named[verdict["status"]]
    assert len(evidence["items"]) == ITEMS and improvement is not None
    assert own.production() == (candidate if verdict["status"] == "pass" else base)
    [[path, trained]] = own.rows(
        "select path, metrics -> 'training' from iccm.model_versions where version = :v", v=candidate
    )
    assert verify(own.home / path).base == "my_model"
    # The packaged rehearsal sample belongs to the packaged model: without ICCM_REHEARSAL there is none.
    assert trained["counts"]["rehearsal"] == 0 and trained["counts"]["new"] >= 5
    assert trained["weight_change"]["changed_share"] > 0
    assert own.json("verify", candidate)["outcome"] == "reproduced"
