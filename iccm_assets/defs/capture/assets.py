"""Where the data comes from: conversations the gateway and the importers write."""

import dagster as dg

from iccm_assets.defs.schemas import CONVERSATIONS as COLUMNS
from iccm_assets.defs.schemas import schema

CONVERSATIONS = dg.AssetSpec(
    "conversations",
    group_name="capture",
    kinds={"postgres"},
    owners=["team:ml-platform"],
    description=(
        "Conversations between developers and CET-D, one row per session, written by the gateway and the "
        "importers as they happen (C1, C2). Not made here: the platform only reads them. What arrived "
        "yesterday is observed when the daily run reads it: all, by origin, users, test suites."
    ),
    metadata={"dagster/table_name": "iccm.conversations", **schema(COLUMNS)},
)


@dg.definitions
def defs() -> dg.Definitions:
    return dg.Definitions(assets=[CONVERSATIONS])
