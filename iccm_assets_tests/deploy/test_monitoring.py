"""deploy/: every metric a rule or a panel names is one that `/metrics` exposes; the rules are sound (A3)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from iccm_assets_tests.factories.gateways import (
    TIMEOUT_SECONDS,
    eventually,
    gateway_with_traffic,
    metric_samples,
    two_versions,
)

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "iccm.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
METRIC = re.compile(r"\b(?:iccm_[a-z_]+|up)\b(?!\s*=)")
# Prometheus' own, and those whose condition does not hold in the gateway of this test.
ELSEWHERE = {"up"}


def expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return panels + [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]


def metric_names(expression: str) -> set[str]:
    return set(METRIC.findall(re.sub(r'"[^"]*"', "", expression)))


def test_the_metrics_of_dashboard_and_rules_are_exposed(engine: sa.Engine, tmp_path: Path) -> None:
    def read_arm_metrics() -> Any:
        text = running.client.get("/metrics").text
        return text if "iccm_arm_pass_rate{" in text else None

    two_versions(engine)
    with gateway_with_traffic(engine, tmp_path) as running:
        exposed = {name for name, _ in metric_samples(eventually(read_arm_metrics, TIMEOUT_SECONDS))}
    used = set().union(*map(metric_names, expressions())) - ELSEWHERE
    assert len(used) >= 25 and used <= exposed, used - exposed


def test_the_dashboard_can_be_imported() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    drawn = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["targets"] and panel["title"] for panel in drawn)
    assert {panel["datasource"]["uid"] for panel in drawn} == {"${datasource}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource"]
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24, "panels overlap"


def test_every_rule_has_a_severity_and_a_summary() -> None:
    rules = [rule for group in RULES["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("warning", "critical") and rule["annotations"]["summary"]


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian: apt-get install prometheus)"
)
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
)
def test_promtool_reports_no_error(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
