"""Which skipped tests are expected."""

from __future__ import annotations

import tomllib

import check_skips

OPTIONAL = {
    "here": "json",
    "gone": "no_such_module",
    "deep": "no_such_package.inner",
    "shell": "command:sh",
    "tool": "command:no-such-command",
    "libc": "library:libc.so.6",
    "lib": "library:libno_such.so",
}


def test_only_tests_whose_extra_is_really_missing_may_be_skipped() -> None:
    def ok(name: str, why: str) -> bool:
        return check_skips.expected(name, why, ["a::listed"], OPTIONAL)

    assert ok("a::listed", "anything")
    assert ok("a::other", "needs gone: the module no_such_module is not installed")
    assert ok("a::other", "needs deep: missing")
    assert ok("a::other", "needs tool: not on PATH")
    assert ok("a::other", "needs lib: missing")
    for present in ("here", "shell", "libc"):
        assert not ok("a::other", f"needs {present}: broken probe")
    assert not ok("a::other", "needs unlisted: x")
    assert not ok("a::other", "because it needs gone: x")
    assert not ok("a::other", "")


def test_the_list_names_both_lanes_and_the_extras() -> None:
    listed = tomllib.loads(check_skips.ALLOWED.read_text())
    assert {"root", "user", "optional"} <= set(listed)
    assert {"openvino", "torch"} <= set(listed["optional"])
