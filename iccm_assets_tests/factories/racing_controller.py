"""A controller process for tests that race and kill controllers: `python -m … URL TICKS PAUSE_SECONDS`."""

from __future__ import annotations

import json
import sys
import time

from iccm_assets.db.database import create_engine_for
from iccm_assets.rollout import controller
from iccm_assets.settings import load_settings


def main(url: str, ticks: int, pause: float) -> None:
    """Tick ``ticks`` times and print the revision after each."""
    settings = load_settings(database_url=url)
    engine = create_engine_for(url)
    for _ in range(ticks):
        decision = controller.tick(engine, settings)
        sys.stdout.write(json.dumps(None if decision is None else decision.state.revision) + "\n")
        sys.stdout.flush()
        time.sleep(pause)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
