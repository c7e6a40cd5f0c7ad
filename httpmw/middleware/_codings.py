# Content codings: gzip, br and zstd, each from the library that is there.
#
# Rule 1: one gzip member, one br stream: browsers and clients stop after the first.
# Rule 2: a window that every browser has room for: zstd at most 8 MiB (RFC 9659), br without its
# large window.
# Rule 3: who has not finished a coder has not ended the body; nothing here does by itself.

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol

_GZIP: Final = 31  # zlib's bits of a window for gzip's frame
_WINDOW: Final = 23  # bits: 8 MiB
# From this level on zstd takes a larger window.
_ULTRA: Final = 20
_TEXT: Final = 1  # brotli.MODE_TEXT


class Coder(Protocol):
    """One body on its way into its coding."""

    def add(self, data: bytes) -> bytes:
        """Code *data*, and give what is ready of the whole."""

    def flush(self, data: bytes) -> bytes:
        """Code *data*, and give all that the far side needs to have it."""

    def finish(self) -> bytes:
        """Give what ends it."""


class Coding:
    """A content coding: its name, and what makes its coders."""

    def __init__(
        self, name: str, coder: Callable[[bool], Coder], whole: Callable[[bytes, bool], bytes]
    ) -> None:
        self.name = name
        # Takes whether it is text.
        self.coder = coder
        self.whole = whole


# ---------------------------------------------------------------------- gzip


class _Gzip:
    def __init__(self, level: int) -> None:
        self._coder = zlib.compressobj(level, zlib.DEFLATED, _GZIP)

    def add(self, data: bytes) -> bytes:
        return self._coder.compress(data)

    def finish(self) -> bytes:
        return self._coder.flush()

    def flush(self, data: bytes) -> bytes:
        return self._coder.compress(data) + self._coder.flush(zlib.Z_SYNC_FLUSH)


def gzip(level: int) -> Coding:
    """Make the coding gzip (RFC 1952)."""

    def whole(data: bytes, is_text: bool) -> bytes:  # noqa: ARG001, FBT001 - as all of them
        return zlib.compress(data, level, _GZIP)

    def coder(is_text: bool) -> Coder:  # noqa: ARG001, FBT001
        return _Gzip(level)

    return Coding("gzip", coder, whole)


# ---------------------------------------------------------------------- br


class _Brotli:
    def __init__(self, coder: Any) -> None:
        self._coder = coder
        self.add = coder.process
        self.finish = coder.finish

    def flush(self, data: bytes) -> bytes:
        coded: bytes = self.add(data) + self._coder.flush()
        return coded


def brotli(quality: int) -> Coding | None:
    """Make the coding br (RFC 7932); None where nobody has installed a library for it."""
    library = _first("brotli", "brotlicffi")
    if library is None:
        return None

    def whole(data: bytes, is_text: bool) -> bytes:  # noqa: FBT001
        coded: bytes = library.compress(data, mode=_TEXT if is_text else 0, quality=quality)
        return coded

    def coder(is_text: bool) -> Coder:  # noqa: FBT001
        return _Brotli(library.Compressor(mode=_TEXT if is_text else 0, quality=quality))

    return Coding("br", coder, whole)


# ---------------------------------------------------------------------- zstd


class _Zstd:
    # Of the standard library from 3.14 on, and of its backport.

    def __init__(self, coder: Any) -> None:
        self._coder = coder
        self.add = coder.compress

    def flush(self, data: bytes) -> bytes:
        coded: bytes = self._coder.compress(data, self._coder.FLUSH_BLOCK)
        return coded

    def finish(self) -> bytes:
        coded: bytes = self._coder.flush()
        return coded


class _Zstandard:
    def __init__(self, coder: Any, block: int) -> None:
        self._coder = coder
        self._block = block
        self.add = coder.compress
        self.finish = coder.flush

    def flush(self, data: bytes) -> bytes:
        coded: bytes = self.add(data) + self._coder.flush(self._block)
        return coded


def zstd(level: int) -> Coding | None:
    """Make the coding zstd (RFC 8878, RFC 9659); None where there is no library for it."""
    library = _first("compression.zstd", "backports.zstd")
    if library is not None:
        parameter = library.CompressionParameter
        options = {parameter.compression_level: level}
        if level >= _ULTRA:
            options[parameter.window_log] = _WINDOW

        def compressor() -> Any:
            return library.ZstdCompressor(options=options)

        def coder(is_text: bool) -> Coder:  # noqa: ARG001, FBT001
            return _Zstd(compressor())

        whole = _reusing(compressor, lambda made, data: made.compress(data, made.FLUSH_FRAME))
        return Coding("zstd", coder, whole)
    library = _first("zstandard")
    if library is None:
        return None
    limits = {"window_log": _WINDOW} if level >= _ULTRA else {}
    parameters = library.ZstdCompressionParameters.from_level(level, **limits)

    def compressor_of() -> Any:
        return library.ZstdCompressor(compression_params=parameters)

    def coder_of(is_text: bool) -> Coder:  # noqa: ARG001, FBT001
        return _Zstandard(compressor_of().compressobj(), library.COMPRESSOBJ_FLUSH_BLOCK)

    whole = _reusing(compressor_of, lambda made, data: made.compress(data))
    return Coding("zstd", coder_of, whole)


def _reusing(
    make: Callable[[], Any], code: Callable[[Any, bytes], bytes]
) -> Callable[[bytes, bool], bytes]:
    # To make a compressor costs more than to code a small body; after a frame it begins another.
    idle: list[Any] = []

    def whole(data: bytes, is_text: bool) -> bytes:  # noqa: ARG001, FBT001
        try:
            compressor = idle.pop()
        except IndexError:
            compressor = make()
        coded = code(compressor, data)
        idle.append(compressor)
        return coded

    return whole


def _first(*modules: str) -> Any:
    for module in modules:
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    return None
