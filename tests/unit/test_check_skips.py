"""Which skipped tests are expected."""

from __future__ import annotations

import tomllib
from pathlib import Path

import check_skips
import pytest

OPTIONAL = {
    "here": "json",
    "gone": "no_such_module",
    "deep": "no_such_package.inner",
    "shell": "command:sh",
    "tool": "command:no-such-command",
    "libc": "library:libc.so.6",
    "lib": "library:libno_such.so",
    "image": "cache:no-such/image.json",
    "built": "cache:some/image.json",
}


def test_only_tests_whose_extra_is_really_missing_may_be_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "image.json").touch()

    def ok(name: str, why: str) -> bool:
        return check_skips.expected(name, why, ["a::listed"], OPTIONAL)

    assert ok("a::listed", "anything")
    assert ok("a::other", "needs gone: the module no_such_module is not installed")
    assert ok("a::other", "needs deep: missing")
    assert ok("a::other", "needs tool: not on PATH")
    assert ok("a::other", "needs lib: missing")
    assert ok("a::other", "needs image: no package source")
    for present in ("here", "shell", "libc", "built"):
        assert not ok("a::other", f"needs {present}: broken probe")
    assert not ok("a::other", "needs unlisted: x")
    assert not ok("a::other", "because it needs gone: x")
    assert not ok("a::other", "")


def test_the_list_names_both_lanes_and_the_extras() -> None:
    listed = tomllib.loads(check_skips.ALLOWED.read_text())
    assert {"root", "user", "optional"} <= set(listed)
    assert {"openvino", "torch"} <= set(listed["optional"])
