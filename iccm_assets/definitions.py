"""The code location: everything under `defs/`, the executor, and links to the source code.

Loading it imports neither torch nor transformers nor a database driver, which
`iccm_assets_tests/test_definitions.py` checks (U6).
"""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from iccm_assets import defs as defs_module

CODE_REFERENCES_KEY = "dagster/code_references"


@dg.definitions
def defs() -> dg.Definitions:
    """All assets, checks, jobs, schedules and resources of the platform."""
    with warnings.catch_warnings(), _without_garbage_collection():
        # Dagster is pinned: changes of a later release are handled when the pin moves.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        # Not a component tree: it builds a model of every component type that Dagster has, for nothing.
        modules = dg.load_definitions_from_package_module(defs_module)
        from iccm_assets.defs import resources

        loaded = with_source_code_links(dg.Definitions.merge(modules, resources.defs()))
    # The steps are light and sequential: one process imports once; heavy work runs in worker processes.
    return dg.Definitions.merge(loaded, dg.Definitions(executor=dg.in_process_executor))


def with_source_code_links(loaded: dg.Definitions) -> dg.Definitions:
    """Link every asset to the source lines that define it."""
    linked = dg.with_source_code_references(list(loaded.assets or []))
    specs = [
        spec
        for asset in linked
        for spec in (asset.specs if isinstance(asset, dg.AssetsDefinition) else [asset])
        if isinstance(spec, dg.AssetSpec) and CODE_REFERENCES_KEY in spec.metadata
    ]
    links = {spec.key: {CODE_REFERENCES_KEY: spec.metadata[CODE_REFERENCES_KEY]} for spec in specs}
    return loaded.map_asset_specs(func=lambda spec: spec.merge_attributes(metadata=links.get(spec.key, {})))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause the search for cyclic garbage, a fifth of the time of loading: all that is loaded stays."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
