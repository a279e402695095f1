"""The engine cache: what is kept comes back; anything stale, foreign or damaged is refused."""

from __future__ import annotations

import os
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_decoder.protocol import Reason
from gpu_decoder.runtime.engine_cache import (
    EngineCache,
    EngineKey,
    cache_folder,
    decode,
    encode,
    read_engine,
)
from gpu_decoder.runtime.protocol import EngineError

KEY = EngineKey("ab" * 32, "tensorrt", "11.4.0", "NVIDIA H100", "9.0", "FP16", 1)
OTHER = {
    "onnx_sha256": "cd" * 32,
    "product": "tensorrt_rtx",
    "version": "11.5.0",
    "gpu": "NVIDIA H200",
    "capability": "10.0",
    "precision": "INT8",
    "batch": 2,
}
KEYS = st.builds(
    EngineKey, *(st.text(max_size=12) for _ in range(6)), st.integers(1, 1 << 20)
)  # fmt: skip


@given(KEYS, st.binary(max_size=200))
def test_an_engine_comes_back_whole(key: EngineKey, plan: bytes) -> None:
    assert decode(encode(key, plan), key, "x") == plan


@given(KEYS, KEYS)
def test_keys_have_equal_digests_only_if_they_are_equal(a: EngineKey, b: EngineKey) -> None:
    assert (a.digest == b.digest) == (a == b)
    assert a.digest == EngineKey(**asdict(a)).digest


@given(st.binary(min_size=1, max_size=60), st.data())
def test_every_flipped_bit_and_every_cut_is_refused(plan: bytes, data: st.DataObject) -> None:
    whole = encode(KEY, plan)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (bytes(flipped), whole[:at], whole + b"\0"):
        with pytest.raises(EngineError, match="engine x is not used: ") as seen:
            decode(bad, KEY, "x")
        assert seen.value.reason == Reason.ENGINE_MISMATCH


@given(st.binary(max_size=80))
def test_bytes_that_are_no_engine_are_refused(data: bytes) -> None:
    for bad in (data, b"hil engine 1\n" + data):
        with pytest.raises(EngineError, match="is not used"):
            decode(bad, KEY, "x")


@pytest.mark.parametrize("name", [field.name for field in fields(EngineKey)])
def test_an_engine_for_something_else_is_refused_with_both_sides(tmp_path: Path, name: str) -> None:
    path = tmp_path / "renamed.engine"
    path.write_bytes(encode(replace(KEY, **{name: OTHER[name]}), b"plan"))
    here = getattr(KEY, name)
    with pytest.raises(EngineError) as seen:
        read_engine(path, KEY)
    assert f"{name}: file {OTHER[name]!r}, here {here!r}; remove the file" in str(seen.value)
    assert str(path) in str(seen.value)
    assert seen.value.reason == Reason.ENGINE_MISMATCH


def test_a_damaged_engine_names_both_hashes() -> None:
    whole = encode(KEY, b"plan")
    with pytest.raises(EngineError, match=r"SHA-256 \w{64}, its header says \w{64}"):
        decode(whole[:-1] + b"m", KEY, "x")
    with pytest.raises(EngineError, match="3 bytes, its header says 4"):
        decode(whole[:-1], KEY, "x")


def test_a_missing_file_is_another_reason(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine: ") as seen:
        read_engine(tmp_path / "absent", KEY)
    assert seen.value.reason == Reason.ENGINE_MISSING


def test_the_cache_keeps_engines_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hil" / "engines"
    cache = EngineCache()
    assert cache.load(KEY) is None
    keys = [KEY, *(replace(KEY, **{name: value}) for name, value in OTHER.items())]
    for number, key in enumerate(keys):
        cache.store(key, b"%d" % number)
    assert [cache.load(key) for key in keys] == [b"%d" % n for n in range(len(keys))]
    cache.store(KEY, b"newer")
    assert cache.load(KEY) == b"newer"
    assert len(list(cache.folder.iterdir())) == len(keys), "nothing else is left"
    assert cache.folder.stat().st_mode & 0o077 == 0
    cache.path(KEY).write_bytes(cache.path(keys[1]).read_bytes())
    with pytest.raises(EngineError, match="onnx_sha256: file 'cdcd"):
        cache.load(KEY)


def test_a_store_that_fails_leaves_the_old_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EngineCache(tmp_path)
    cache.store(KEY, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        cache.store(KEY, b"new")
    assert cache.load(KEY) == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [cache.path(KEY).name]
