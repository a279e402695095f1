"""Trials of pre-decoders: paired with plain matching, shot by shot, cell by cell."""
