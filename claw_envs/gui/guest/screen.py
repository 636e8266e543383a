"""The screen as pictures: frames straight from the X server's memory, PNG, and when a screen has settled.

Xvfb keeps its picture, the cursor included, in a file in X Window Dump format (`-fbdir`), so a frame costs one copy of memory
and no request. Format: https://www.x.org/releases/current/doc/man/man1/xwd.1.xhtml (XWDFile.h)
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

_HEADER = struct.Struct(">25I")


class Frame(NamedTuple):
    """One picture: rows of blue, green, red and an unused byte."""

    width: int
    height: int
    pixels: bytes


class Settled(NamedTuple):
    """What came of waiting for a screen to come to rest."""

    frame: Frame
    settled: bool
    changed: bool
    """Whether anything changed while it was watched."""
    seconds: float


class Screen:
    """The picture of one Xvfb. Raises OSError when there is none."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        head = _HEADER.unpack(self._map[: _HEADER.size])
        self.width, self.height, self._row = head[4], head[5], head[12]
        self._begin = head[0] + head[19] * 12
        if head[11] != 32 or self._row != self.width * 4:
            raise OSError(f"the screen has {head[11]} bits a pixel; only 32 are understood")

    def frame(self) -> Frame:
        """The picture now."""
        return Frame(self.width, self.height, self._map[self._begin : self._begin + self._row * self.height])

    def settle(
        self, *, start_s: float, quiet_s: float, longest_s: float, busy: Callable[[], bool] = lambda: False,
        every_s: float = 0.01, patience_s: float = 2.5,
    ) -> Settled:  # fmt: skip
        """Waits until nothing has changed for `quiet_s`; for up to `start_s` it waits for something to begin to change.

        Who is `busy` may still be about to change something, and is waited for, but no longer than `patience_s` after the last
        change. A screen that still changes after `longest_s` is given as it is, not settled.
        """
        began = time.monotonic()
        first = last = self.frame()
        moved_at = idle_since = began
        changed = False
        while True:
            time.sleep(every_s)
            now, frame = time.monotonic(), self.frame()
            if frame.pixels != last.pixels:
                last, moved_at, changed = frame, now, True
            if busy():
                idle_since = now
            rested = now - moved_at >= quiet_s and (now - idle_since >= quiet_s / 2 or now - moved_at >= patience_s)
            if rested and (changed or now - began >= start_s):
                return Settled(frame, True, changed or frame.pixels != first.pixels, now - began)
            if now - began >= longest_s:
                return Settled(frame, False, changed, now - began)


def png(frame: Frame) -> bytes:
    """The frame as a PNG file; with Pillow where the guest has it, which is four times as fast."""
    try:
        from PIL import Image
    except ImportError:
        return _plain_png(frame)
    import io

    image = Image.frombuffer("RGB", (frame.width, frame.height), frame.pixels, "raw", "BGRX", frame.width * 4, 1)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1, compress_type=3)
    return out.getvalue()


def _plain_png(frame: Frame) -> bytes:
    """The same with the standard library alone."""
    size = frame.width * frame.height
    rgb = bytearray(3 * size)
    for channel in range(3):
        rgb[channel::3] = frame.pixels[2 - channel :: 4]
    row = frame.width * 3
    lines = b"".join(b"\0" + rgb[i : i + row] for i in range(0, len(rgb), row))
    head = struct.pack(">2I5B", frame.width, frame.height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(lines, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
