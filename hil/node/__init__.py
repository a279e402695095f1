"""Decoder node: pure session state machine, server process, rack-side client."""
