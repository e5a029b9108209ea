"""The code location: everything under `defs/`, and the policies that hold for all of it.

Imports neither torch, nor transformers, nor a database driver (U6); `iccm_assets_tests/test_definitions.py`
keeps it so.
"""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """All assets, checks, jobs, schedules and resources of the platform."""
    loaded = dg.load_from_defs_folder(path_within_project=Path(__file__).parent / "defs")
    # A chain of light steps: one process and one import; heavy work starts processes of its own.
    return dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor))
