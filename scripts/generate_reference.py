"""Write the reference pages below docs/reference/ from the code; with ``--check``, fail if one is stale.

Needs neither a network nor a database. The pages are the same on every machine and in every environment.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
NOTICE = "<!-- Written by `make docs` from the code (scripts/generate_reference.py); do not edit. -->\n\n"


def main() -> int:
    """Write or check the pages; return 1 if a page is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is stale")
    parser.add_argument("--directory", type=Path, default=REFERENCE, help="where the pages are")
    arguments = parser.parse_args()
    stale = []
    for name, render in load_pages().items():
        path, text = arguments.directory / name, NOTICE + render()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
    if arguments.check and stale:
        sys.stderr.write(f"stale in docs/reference/: {', '.join(stale)}; `make docs` writes them\n")
        return 1
    sys.stdout.write(
        f"reference: {len(stale)} pages written\n" if stale else "reference: all pages are fresh\n"
    )
    return 0


def load_pages() -> dict[str, Callable[[], str]]:
    """Return the function of each page; the variables of the platform are removed before any import."""
    for name in [name for name in os.environ if name.startswith("ICCM_")]:
        del os.environ[name]
    from scripts.reference import (
        alerts_page,
        command_page,
        dagster_pages,
        http_page,
        metrics_page,
        settings_page,
        tables_page,
    )

    return {
        "settings.md": settings_page.render,
        "commands.md": command_page.render,
        "http-api.md": http_page.render,
        "assets.md": dagster_pages.render_assets,
        "checks.md": dagster_pages.render_checks,
        "automation.md": dagster_pages.render_automation,
        "tables.md": tables_page.render,
        "metrics.md": metrics_page.render,
        "alerts.md": alerts_page.render,
    }


if __name__ == "__main__":
    sys.exit(main())
