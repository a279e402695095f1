"""Engines on disk: built once per model, product, version, GPU, precision and batch.

A file is the magic line, u32 little-endian length of the header, the header (JSON: the key, length
and SHA-256 of the engine), the engine. TensorRT does not tell a foreign engine reliably from its
own, so each field is compared before a byte of it is deserialised. The hash finds damage, it is no
signature: an engine is code, take it only from folders you trust.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from gpu_decoder.files import write_whole
from gpu_decoder.protocol import Reason
from gpu_decoder.runtime.protocol import EngineError

_MAGIC: Final = b"hil engine 1\n"
_LENGTH: Final = struct.Struct("<I")
_MAX_HEADER_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine was built from and for; equal keys mean interchangeable engines.

    Attributes:
        onnx_sha256: of the model.
        product: ``tensorrt`` or ``tensorrt_rtx``.
        version: of the product, as it names itself.
        gpu: name of the device.
        capability: compute capability, such as ``9.0``.
        precision: number format of the convolutions.
        batch: shots per call.
    """

    onnx_sha256: str
    product: str
    version: str
    gpu: str
    capability: str
    precision: str
    batch: int

    @property
    def digest(self) -> str:
        """SHA-256 over all fields, as hexadecimal text."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, header: dict[str, object]) -> list[str]:
        """Fields in which a header differs, with both sides."""
        return [
            f"{field.name}: file {header.get(field.name)!r}, here {getattr(self, field.name)!r}"
            for field in fields(self)
            if header.get(field.name) != getattr(self, field.name)
        ]


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/hil/engines``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hil" / "engines"


class EngineCache:
    """Engines of this user.

    Args:
        folder: instead of :func:`cache_folder`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() if folder is None else folder

    def path(self, key: EngineKey) -> Path:
        """Where the engine of a key lies or would lie."""
        return self.folder / f"{key.product}-{key.digest[:32]}.engine"

    def load(self, key: EngineKey) -> bytes | None:
        """The engine of a key, ``None`` if there is no file.

        Raises:
            EngineError: ``ENGINE_MISMATCH``, see :func:`read_engine`.
        """
        path = self.path(key)
        return read_engine(path, key) if path.exists() else None

    def store(self, key: EngineKey, plan: bytes) -> Path:
        """Keep an engine; another process sees all of it or nothing.

        Raises:
            OSError: the folder cannot be written; no part of a file is left.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path(key)
        write_whole(path, encode(key, plan))
        return path


def encode(key: EngineKey, plan: bytes) -> bytes:
    """File of an engine."""
    facts = asdict(key) | {
        "plan_bytes": len(plan), "plan_sha256": hashlib.sha256(plan).hexdigest(),
    }  # fmt: skip
    header = json.dumps(facts, sort_keys=True, ensure_ascii=True).encode()
    return _MAGIC + _LENGTH.pack(len(header)) + header + plan


def read_engine(path: Path, key: EngineKey) -> bytes:
    """The engine in a file, if it is whole and was built for exactly this.

    Raises:
        EngineError: ``ENGINE_MISMATCH``, names the file and both sides; ``ENGINE_MISSING``, the
            file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(f"no engine: {error}", Reason.ENGINE_MISSING) from error
    return decode(data, key, str(path))


def decode(data: bytes, key: EngineKey, where: str) -> bytes:
    """The engine in the bytes of a file; raises as :func:`read_engine`."""
    start = len(_MAGIC) + _LENGTH.size
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        raise _refused(where, [f"begins {data[: len(_MAGIC)]!r}, allowed: {_MAGIC!r}"])
    (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
    header = _header(data[start : start + length]) if length <= _MAX_HEADER_BYTES else None
    if header is None:
        raise _refused(where, ["its header cannot be read"])
    if wrong := key.differences(header):
        raise _refused(where, wrong)
    plan = data[start + length :]
    if header.get("plan_bytes") != len(plan):
        raise _refused(where, [f"{len(plan)} bytes, its header says {header.get('plan_bytes')}"])
    found = hashlib.sha256(plan).hexdigest()
    if header.get("plan_sha256") != found:
        raise _refused(where, [f"SHA-256 {found}, its header says {header.get('plan_sha256')}"])
    return plan


def _header(text: bytes) -> dict[str, object] | None:
    try:
        header = json.loads(text)
    except ValueError:
        return None
    return header if isinstance(header, dict) else None


def _refused(where: str, wrong: list[str]) -> EngineError:
    return EngineError(
        f"engine {where} is not used: {'; '.join(wrong)}; remove the file to have it built anew",
        Reason.ENGINE_MISMATCH,
    )
