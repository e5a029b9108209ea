"""The tests of the platform."""

import iccm_assets.models  # noqa: F401  settles how torch's threads wait, whatever test loads torch first
