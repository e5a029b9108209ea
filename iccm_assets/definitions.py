"""The code location: everything under `defs/`, and the policies that hold for all of it.

Imports neither torch, nor transformers, nor a database driver (U6); `iccm_assets_tests/test_definitions.py`
keeps it so.
"""

import warnings
from pathlib import Path

import dagster as dg

from iccm_assets import defs as rooms

CODE = "dagster/code_references"


@dg.definitions
def defs() -> dg.Definitions:
    """All assets, checks, jobs, schedules and resources of the platform."""
    with warnings.catch_warnings():
        # Dagster is pinned: what may change in a later release is met when the pin is moved.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        # Not `load_from_defs_folder`: that reads pyproject.toml, which costs a tenth of a second and is not
        # there where the package is installed from a wheel.
        tree = dg.ComponentTree.from_module(defs_module=rooms, project_root=Path(__file__).parents[1])
        loaded = with_code_links(tree.build_defs())
    # A chain of light steps: one process and one import; heavy work starts processes of its own.
    return dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor))


def with_code_links(loaded: dg.Definitions) -> dg.Definitions:
    """Every asset with a link to the lines that make it (U1): where this installation has them."""
    linked = dg.with_source_code_references(list(loaded.assets or []))
    links = {
        spec.key: {CODE: spec.metadata[CODE]}
        for one in linked
        for spec in ([one] if isinstance(one, dg.AssetSpec) else one.specs)
        if CODE in spec.metadata
    }
    return loaded.map_asset_specs(func=lambda spec: spec.merge_attributes(metadata=links.get(spec.key, {})))
