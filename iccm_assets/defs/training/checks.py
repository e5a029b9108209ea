"""Checks of the models: they match their manifests, training changed the weights, lineage is complete."""

from iccm_assets.defs.check_factory import platform_check

production_checksum_matches = platform_check(
    "base_model",
    "training.checks.production_checksum_matches",
    "The production model matches its manifest.",
)
production_descends_from_base_model = platform_check(
    "base_model",
    "training.checks.production_descends_from_base_model",
    "The model in production descends from the one that ICCM_BASE_MODEL names.",
)
checkpoint_checksum_matches = platform_check(
    "fine_tuned_checkpoint",
    "training.checks.checkpoint_checksum_matches",
    "The newest checkpoint matches its manifest.",
)
weights_changed = platform_check(
    "fine_tuned_checkpoint",
    "training.checks.weights_changed",
    "Training changed the weights, but by less than half of their norm.",
)
lineage_is_complete = platform_check(
    "fine_tuned_checkpoint",
    "training.checks.lineage_is_complete",
    "The training conversations of the newest checkpoint are known, and none has been erased since.",
)
