"""Checks of the models: they match their manifests, training changed the weights, lineage is complete."""

from iccm_assets.defs.check_factory import platform_check

production_checksum_matches = platform_check(
    "base_model",
    "training.checks.production_checksum_matches",
    "Does the production model match its manifest?",
)
checkpoint_checksum_matches = platform_check(
    "fine_tuned_checkpoint",
    "training.checks.checkpoint_checksum_matches",
    "Does the newest checkpoint match its manifest?",
)
weights_changed = platform_check(
    "fine_tuned_checkpoint",
    "training.checks.weights_changed",
    "Did training change the weights, and not too far?",
)
lineage_is_complete = platform_check(
    "fine_tuned_checkpoint",
    "training.checks.lineage_is_complete",
    "Are its training conversations known, and is none of them erased since?",
)
