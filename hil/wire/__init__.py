"""Bytes only: RoCEv2 frames, RPC messages, integrity codes, captures."""
