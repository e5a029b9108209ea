"""`iccm rollout simulate`: reproducible JSON, a table, a plot, one-line errors (R10)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from iccm_assets.cli.main import build_app
from iccm_assets.errors import InputError

BASE = ("--production", "0.8", "--canary", "0.1", "--sessions-per-day", "500", "--runs", "3")


def run(*arguments):
    result = CliRunner().invoke(build_app("rollout"), ("rollout", "simulate", *arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_json_contains_shares_times_and_the_arguments():
    report = json.loads(run(*BASE, "--seed", "3", "--json").output)
    assert (report["promoted"], report["rolled_back"], report["undecided"]) == (0.0, 1.0, 0.0)
    assert report["canary_sessions_until_rollback"]["median"] < 40
    assert (report["runs"], report["seed"], report["evidence"]) == (3, 3, "sequential")
    assert sum(report["reasons"].values()) == 3
    again = json.loads(run(*BASE, "--seed", "3", "--json").output)
    assert again == report


def test_a_table_is_printed_and_a_plot_is_written(tmp_path):
    path = tmp_path / "endings.png"
    shown = run(*BASE, "--evidence", "point", "--plot", str(path)).output
    assert "rolled_back" in shown and "hours until the end" in shown
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--production": "1.5"}, "--production 1.5 is not a pass rate"),
        ({"--canary": "-0.1"}, "--canary -0.1 is not a pass rate"),
        ({"--canary": "nan"}, "--canary nan is not a pass rate"),
        ({"--sessions-per-day": "0"}, "--sessions-per-day 0 is not above 0"),
        ({"--sessions-per-day": "inf"}, "--sessions-per-day inf is not above 0"),
        ({"--sessions-per-day": "1e9"}, "at most 100000"),
        ({"--runs": "0"}, "--runs 0 is not between 1 and"),
        ({"--runs": "1000000000000000000000"}, "--runs 1000000000000000000000 is not"),
        ({"--seed": "-1"}, "--seed -1 is not"),
    ],
)
def test_invalid_numbers_are_reported_in_one_line(changes, message):
    arguments = dict(zip(BASE[::2], BASE[1::2], strict=True)) | changes
    with pytest.raises(InputError, match=message) as caught:
        run(*(part for pair in arguments.items() for part in pair))
    assert "\n" not in str(caught.value)


def test_an_unwritable_plot_is_reported_in_one_line(tmp_path):
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "from iccm_assets.cli.main import main; main()",
            "rollout",
            "simulate",
            *BASE,
            "--plot",
            str(tmp_path / "no" / "such.png"),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        env={name: value for name, value in os.environ.items() if not name.startswith("ICCM_")},
    )
    assert process.returncode == 1 and process.stderr.count("\n") == 1 and "such.png" in process.stderr
