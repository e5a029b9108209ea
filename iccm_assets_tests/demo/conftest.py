"""The database of the gateway's tests: one version in production and one candidate."""

from __future__ import annotations

from iccm_assets_tests.gateway.conftest import fresh

__all__ = ["fresh"]
