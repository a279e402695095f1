"""Shipped racks: one YAML file each (``docs/scenario.md``); a package so that wheels carry them."""

from __future__ import annotations
