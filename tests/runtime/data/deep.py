"""Files with colours of 16 bits, written by hand: Pillow writes none."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from runtime.data.pixels import Pixels

FORMS = ("png", "ppm", "tiff <", "tiff >", "tiff < zip", "tiff > zip")


def as_deep_file(values: Pixels, form: str, *, planar: bool = False, extra: int = 2) -> io.BytesIO:
    """Numbers (H, W, C) of 16 bits as a file; the last of 2 or 4 is how much is seen, or what TIFF calls `extra`."""
    height, width, channels = values.shape
    big = values.astype(">u2")
    if form == "ppm":
        return io.BytesIO(b"P6 %d %d 65535\n" % (width, height) + big.tobytes())
    if form == "png":
        head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
        lines = zlib.compress(b"".join(b"\0" + line.tobytes() for line in big))
        chunks = (b"IHDR" + head, b"IDAT" + lines, b"IEND")
        packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
        return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return io.BytesIO(_tiff(values, form[5], zipped=form.endswith("zip"), planar=planar, extra=extra))


def _tiff(values: Pixels, order: str, *, zipped: bool, planar: bool, extra: int) -> bytes:
    height, width, channels = values.shape
    parts = np.moveaxis(values, -1, 0) if planar else values[None]
    strips = [np.ascontiguousarray(part).astype(f"{order}u2").tobytes() for part in parts]
    strips = [zlib.compress(strip) for strip in strips] if zipped else strips
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = {
        **{256: [width], 257: [height], 258: [16] * channels, 259: [8 if zipped else 1], 262: [2]},
        **{273: starts[:-1], 277: [channels], 278: [height], 279: [*map(len, strips)], 284: [2 if planar else 1]},
        **({338: [extra] * (channels - 3)} if channels > 3 else {}),
    }
    after, entries, more = starts[-1] + 2 + 12 * len(tags) + 4, b"", b""
    for tag, numbers in tags.items():
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            more, content = more + content, struct.pack(f"{order}I", after + len(more))
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + content
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, starts[-1])
    return head + b"".join(strips) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + more
