"""Errors that say what is wrong, where, what was found, what is allowed and how to mend it.

Each class carries the exit code that the command line returns for it: 2 for a usage or
scenario error, 3 for a fault of the rig (process, socket, disk, clock).
"""

from __future__ import annotations

from typing import ClassVar


class HilError(Exception):
    """Base of all errors raised on purpose by this project.

    Args:
        what: one sentence that says what is wrong.
        where: the place: ``file:line:col``, a dotted scenario path, a dataset path, a device.
        got: the offending value as text.
        allowed: what would have been accepted.
        fix: what the user can do about it.
    """

    exit_code: ClassVar[int] = 3

    def __init__(
        self, what: str, *, where: str = "", got: str = "", allowed: str = "", fix: str = ""
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.allowed = allowed
        self.fix = fix
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The full message, one labelled line per known part."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        parts = (("got", self.got), ("allowed", self.allowed), ("fix", self.fix))
        return "\n".join([head, *(f"    {name + ':':<9}{text}" for name, text in parts if text)])

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by keyword, so that errors cross process borders whole."""
        return _rebuild, (type(self), self.what, self.where, self.got, self.allowed, self.fix)


def _rebuild(
    cls: type[HilError], what: str, where: str, got: str, allowed: str, fix: str
) -> HilError:
    return cls(what, where=where, got=got, allowed=allowed, fix=fix)


class UsageError(HilError):
    """The command line or an API call was used wrongly."""

    exit_code = 2


class ScenarioError(UsageError):
    """A scenario file is not valid or asks for something that is not built yet."""


class UnitError(UsageError):
    """A quantity has no unit, a wrong unit or is not a whole number of its base unit."""


class WireError(HilError):
    """Bytes do not form the message that they claim to be."""


class LinkError(HilError):
    """A link endpoint could not be opened or broke."""


class NodeError(HilError):
    """The decoder node could not be started, died or broke its protocol."""


class DecoderError(HilError):
    """A decoder could not be built or could not answer; it never returns a guess."""


class TraceError(HilError):
    """A trace file is damaged, incomplete or of an unknown version."""


class RigError(HilError):
    """The rig, not the system under test, failed."""


class MissingExtraError(UsageError):
    """An optional part is not installed; the message names the extra that brings it."""
