"""Checks of the canary set: unchanged, slices large enough, disjoint from the training pool."""

from iccm_assets.defs.check_factory import platform_check

digest_is_unchanged = platform_check(
    "canary_set", "evaluation.checks.digest_is_unchanged", "Is it the set of the last verdict?"
)
slices_have_min_items = platform_check(
    "canary_set",
    "evaluation.checks.slices_have_min_items",
    "Are its slices large enough for the gate to detect forgetting?",
)
no_train_test_overlap = platform_check(
    "canary_set",
    "evaluation.checks.no_train_test_overlap",
    "Is the training pool disjoint from it (exact and similar)? Checks the newest rows.",
)
