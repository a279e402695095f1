"""Racks from measurements: read a capture, fit a recording, judge it on held-out rounds, write."""

from __future__ import annotations
