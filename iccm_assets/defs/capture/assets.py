"""The source of the data: conversations that the gateway and the importers write."""

import dagster as dg

from iccm_assets.defs.column_schemas import CONVERSATIONS, column_schema
from iccm_assets.defs.partitions import OWNERS, arrivals_freshness

conversations = dg.AssetSpec(
    "conversations",
    group_name="capture",
    kinds={"postgres"},
    owners=OWNERS,
    description=(
        "Conversations between developers and CET-D, one row per session, written by the gateway and the "
        "importers. External: Dagster only reads it. The daily run reports yesterday's arrivals: total, by "
        "origin, users, test suites."
    ),
    freshness_policy=arrivals_freshness,
    metadata={"dagster/table_name": "iccm.conversations", **column_schema(CONVERSATIONS)},
)
