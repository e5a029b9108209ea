"""What a person does in the UI, done by a browser on a real instance (U1, U3-U5)."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from iccm_assets_tests.factories.ui_instances import Instance

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.xdist_group("ui")]

ASSETS = (
    "conversations",
    "reconstructions",
    "filtered_conversations",
    "training_pool",
    "base_model",
    "canary_set",
    "fine_tuned_checkpoint",
    "canary_evaluation",
    "deployed_model_version",
    "production_quality",
)
GROUPS = ("capture", "curation", "scoring", "training", "evaluation", "rollout", "monitoring")
# The daily assets stand in two groups; a backfill of assets keeps their order, one of a job does not.
DAILY_ASSETS = "/asset-groups~" + quote('group:"scoring" or group:"curation"', safe="")
RUNS = """
    query { runsOrError(limit: 100) { ... on Runs { results {
        id status jobName tags { key value } assetSelection { path }
    } } } }
"""


def picture(page: Any, name: str) -> None:
    if folder := os.environ.get("UI_TEST_PICTURES"):
        page.wait_for_timeout(1500)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def runs(instance: Instance) -> list[dict[str, Any]]:
    results = instance.query(RUNS)["runsOrError"]["results"]
    for run in results:
        run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
    return results


def finished(instance: Instance, chosen: Any, seconds: float = 900) -> list[dict[str, Any]]:
    """The runs for which ``chosen`` holds, once there are some and all of them have ended."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        matching = [run for run in runs(instance) if chosen(run)]
        if matching and all(run["status"] in ("SUCCESS", "FAILURE", "CANCELED") for run in matching):
            return matching
        time.sleep(1)
    raise AssertionError(f"not finished: {runs(instance)}")


def choose_partitions(page: Any, partitions: str, count: str) -> None:
    """In the dialog that asks which partitions to materialize; ``count`` is what it then says."""
    field = page.get_by_role("dialog").locator("input[type=text]")
    field.fill(partitions)
    field.press("Enter")
    page.get_by_text(count, exact=True).first.wait_for()


def test_the_graph_shows_the_path_from_conversation_to_deployed_version(page: Any) -> None:
    expanded = quote(",".join(f"global@global:{group}" for group in GROUPS))
    page.goto(f"/asset-groups?expanded={expanded}", wait_until="domcontentloaded")
    places = {}
    for asset in ASSETS:  # long names are cut in the middle
        name = re.compile(f"^({asset}|{asset[:3]}.*…_{asset.rsplit('_', 1)[-1]})$")
        page.locator("foreignObject").get_by_text(name).first.wait_for()
    for group in GROUPS:
        label = page.locator("foreignObject").get_by_text(group, exact=True).first
        label.wait_for()
        places[group] = label.bounding_box()["x"]
    assert places["capture"] < places["curation"] < places["training"]
    assert places["training"] < places["rollout"] and places["evaluation"] < places["rollout"]
    picture(page, "graph")


def test_a_partition_is_materialized_from_the_page(page: Any, instance: Instance) -> None:
    page.goto(DAILY_ASSETS, wait_until="domcontentloaded")
    page.get_by_role("button", name=re.compile("Materialize all")).click()
    choose_partitions(page, instance.yesterday.isoformat(), "1 partition")
    page.get_by_role("button", name=re.compile("^Launch ")).click()
    finished(instance, lambda run: run["tags"].get("dagster/partition") == instance.yesterday.isoformat())
    page.goto("/assets/training_pool?view=partitions&partition=" + instance.yesterday.isoformat())
    page.get_by_text("rejections", exact=True).wait_for()
    page.get_by_text("in_the_pool").first.wait_for()
    picture(page, "partition")


def test_a_backfill_of_ten_days_succeeds_in_few_runs(page: Any, instance: Instance) -> None:
    first = instance.yesterday - timedelta(days=9)
    page.goto(DAILY_ASSETS, wait_until="domcontentloaded")
    page.get_by_role("button", name=re.compile("Materialize all")).click()
    choose_partitions(page, f"[{first}...{instance.yesterday}]", "10 partitions")
    page.get_by_role("button", name="Launch backfill").click()
    page.goto("/runs?view=backfills", wait_until="domcontentloaded")
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        states = instance.query(
            "query { partitionBackfillsOrError(limit: 5) { ... on PartitionBackfills "
            "{ results { id status numPartitions } } } }"
        )["partitionBackfillsOrError"]["results"]
        ended = [state for state in states if state["numPartitions"] == 10 and "COMPLETED" in state["status"]]
        if ended:
            break
        time.sleep(1)
    assert ended and ended[0]["status"] == "COMPLETED_SUCCESS", states
    backfill_runs = [run for run in runs(instance) if run["tags"].get("dagster/backfill") == ended[0]["id"]]
    assert 1 <= len(backfill_runs) <= 3
    assert {run["status"] for run in backfill_runs} == {"SUCCESS"}
    page.goto(f"/runs/b/{ended[0]['id']}", wait_until="domcontentloaded")
    page.get_by_text("training_pool").first.wait_for()
    page.get_by_text("Completed").first.wait_for()
    picture(page, "backfill")


def test_numbers_of_the_days_are_plotted(page: Any) -> None:
    page.goto("/assets/training_pool?view=overview", wait_until="domcontentloaded")
    page.get_by_role("button", name="Plots").click()
    for name in ("captured", "scored", "filtered", "duplicates_removed"):
        page.get_by_text(name, exact=True).first.wait_for()
    assert page.locator("canvas").count() >= 4
    page.locator("canvas").first.scroll_into_view_if_needed()
    picture(page, "plots")


def test_arrivals_are_observed(page: Any) -> None:
    page.goto("/assets/conversations?view=overview", wait_until="domcontentloaded")
    page.get_by_text("arrived", exact=True).first.wait_for()
    page.get_by_text("from_simulated").first.wait_for()
    page.get_by_text("daily_history").first.wait_for()


def test_the_gates_verdict_shows_its_reasons_and_the_next_step(page: Any, instance: Instance) -> None:
    retrained = instance.iccm("retrain", "--json")
    assert retrained.stdout, retrained.stderr[-2000:]
    run = json.loads(retrained.stdout)
    assert run["status"] in ("gate_passed", "gate_failed", "inconclusive"), run
    page.goto("/assets/canary_evaluation?view=checks&checkDetail=quality_gate", wait_until="domcontentloaded")
    page.get_by_text("quality_gate").first.wait_for()
    page.get_by_text("verdict_rules").first.wait_for()
    summary = page.get_by_text(re.compile(r"scores 0\.\d{3}, production")).first
    summary.wait_for()
    assert page.get_by_text("recovery", exact=True).count() == (
        "it may be deployed" not in summary.inner_text()
    )
    # The other check of the evaluation has its own answer, whatever the gate says.
    page.get_by_text("no_missing_items", exact=True).first.click()
    page.get_by_text("0 of 47 items have no reliable score").first.wait_for()
    page.get_by_text("quality_gate", exact=True).first.click()
    page.get_by_text("verdict_rules").first.wait_for()
    picture(page, "gate")
    page.goto("/assets/fine_tuned_checkpoint?view=events", wait_until="domcontentloaded")
    for name in ("model_card", "dataset", "training_conversations", "loss_curve"):
        page.get_by_text(name, exact=True).first.wait_for()
    picture(page, "checkpoint")


CHECKS = """
    query ($asset: AssetKeyInput!) { assetNodeOrError(assetKey: $asset) { ... on AssetNode {
        assetChecksOrError { ... on AssetChecks { checks {
            name executionForLatestMaterialization { status }
        } } }
    } } }
"""


def check_states(instance: Instance, asset: str) -> dict[str, str]:
    """Each check of an asset, with the status of its evaluation of the newest materialization."""
    node = instance.query(CHECKS, asset={"path": [asset]})["assetNodeOrError"]
    return {
        check["name"]: (check["executionForLatestMaterialization"] or {"status": "not evaluated"})["status"]
        for check in node["assetChecksOrError"]["checks"]
    }


def test_what_commands_decide_is_on_the_pages_when_they_end(page: Any, instance: Instance) -> None:
    status = json.loads(instance.iccm("status", "--json").stdout)
    production = status["production"]["version"]
    candidate = next(row["version"] for row in status["versions"] if row["version"] != production)
    instance.iccm("rollout", "abort")  # if the gate has passed, the retrain's rollout is live
    url = "/assets/deployed_model_version?view=overview"
    deployed = instance.iccm("deploy", candidate, "--force", "--reason", "a drill")
    assert deployed.returncode == 0, deployed.stderr
    page.goto(url, wait_until="domcontentloaded")
    # Without a gateway, the controller's next tick holds it.
    page.get_by_text(re.compile("^(ramping|holding)$")).first.wait_for()
    page.get_by_text(candidate, exact=True).first.wait_for()
    assert instance.iccm("rollback", "--reason", "the drill is over").returncode == 0
    page.goto(url, wait_until="domcontentloaded")
    page.get_by_text("rolled_back", exact=True).first.wait_for()
    page.get_by_text(production, exact=True).first.wait_for()
    picture(page, "deployed")
    verdict = json.loads(instance.iccm("evaluate", candidate, "--json").stdout)["verdict"]["status"]
    page.goto("/assets/canary_evaluation?view=overview", wait_until="domcontentloaded")
    page.get_by_text(verdict, exact=True).first.wait_for()
    states = check_states(instance, "canary_evaluation")
    assert states["quality_gate"] == ("SUCCEEDED" if verdict == "pass" else "FAILED"), states
    assert set(check_states(instance, "deployed_model_version").values()) == {"SUCCEEDED"}
