"""Read-only views of the platform: lineage, funnel, live traffic, arm metrics, status and plots."""
