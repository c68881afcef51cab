"""The bodies that are measured: what is asked, and what the fake provider answers. All pictures are PNGs of noise.

A request names its body in its prompt, which every gateway hands on as it is.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from dataclasses import dataclass
from functools import cache

SIDE = 1024
BOUNDARY = "----kleinbild-benchmark-0123456789abcdef"  # Node takes none that is shorter than 27
FILE_WIDTH, FILE_HEIGHT, NUM_FILES = 1280, 976, 4  # four files of 10 MB


@dataclass(frozen=True, slots=True)
class Body:
    """`concurrency` is swept. Of a form, the upload is large; of all others, the answer."""

    name: str
    what: str
    concurrency: tuple[int, ...]
    num_pictures: int = 1
    form: bool = False
    stream: bool = False

    @property
    def path(self) -> str:
        return "/v1/images/edits" if self.form else "/v1/images/generations"


BODIES = (
    Body("1kB", "1 picture, an answer of 1 kB", (1, 2, 4, 8, 16, 32, 64)),
    Body("2MB", "1 picture of 2 MB base64", (1, 4, 16)),
    Body("4x8MB", "4 pictures of 8 MB base64 each", (1, 4), num_pictures=4),
    Body("40MB-form", "an edit with 4 files of 10 MB, an answer of 1 kB", (1, 4), form=True),
    Body("stream", "3 partial pictures of 2 MB and the last over SSE", (1, 4), stream=True),
)


def request_of(body: Body, model: str) -> tuple[str, bytes]:
    """Its media type and itself."""
    prompt = f"[{body.name}] a fox on a mint background"
    if body.form:
        return f"multipart/form-data; boundary={BOUNDARY}", _form({"model": model, "prompt": prompt})
    asked = {"model": model, "prompt": prompt, "n": body.num_pictures, "size": f"{SIDE}x{SIDE}"}
    streamed = {"stream": True, "partial_images": 3} if body.stream else {}
    return "application/json", json.dumps({**asked, **streamed}).encode()


@cache
def answer_of(body: Body) -> tuple[str, tuple[bytes, ...]]:
    """Media type and what is sent one after the other: of a stream its events, else the whole."""
    usage = {
        "input_tokens": 20,
        "input_tokens_details": {"text_tokens": 20, "image_tokens": 0},
        "output_tokens": 272,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 272},
        "total_tokens": 292,
    }
    about = {"size": f"{SIDE}x{SIDE}", "quality": "low", "background": "opaque", "output_format": "png"}
    pictures = [base64.b64encode(picture_of(body, n)).decode() for n in range(body.num_pictures)]
    if not body.stream:
        data = [{"b64_json": each} for each in pictures]
        whole = {"created": 1_790_000_000, "data": data, "usage": usage, **about}
        return "application/json", (json.dumps(whole).encode(),)
    kinds = [("image_generation.partial_image", {"partial_image_index": n}) for n in range(3)]
    events = [
        {"type": kind, "b64_json": pictures[0], "created_at": 1_790_000_000, **about, **more}
        for kind, more in (*kinds, ("image_generation.completed", {"usage": usage}))
    ]
    return "text/event-stream", tuple(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events)


def picture_of(body: Body, number: int = 0) -> bytes:
    """A PNG of 1024 x 1024 as large as the body says: by its depth, and by how much of it is noise."""
    if body.name == "4x8MB":
        return png(SIDE, SIDE, depth=16, channels=3, num_noise=6_000_000, seed=number)
    if body.name in ("2MB", "stream"):
        return png(SIDE, SIDE, depth=8, channels=3, num_noise=1_500_000, seed=number)
    return png(SIDE, SIDE, depth=1, channels=1, num_noise=200, seed=number)


def png(width: int, height: int, *, depth: int, channels: int, num_noise: int, seed: int) -> bytes:
    """Noise first, which no compression makes smaller, and black below it."""
    row = (width * channels * depth + 7) // 8
    noise = random.Random(seed).randbytes(num_noise).ljust(row * height, b"\0")[: row * height]
    rows = b"".join(b"\0" + noise[start : start + row] for start in range(0, len(noise), row))
    colour = {1: 0, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def _files() -> tuple[bytes, ...]:
    size = FILE_WIDTH * FILE_HEIGHT * 8
    return tuple(png(FILE_WIDTH, FILE_HEIGHT, depth=16, channels=4, num_noise=size, seed=n) for n in range(NUM_FILES))


def _form(fields: dict[str, str]) -> bytes:
    start = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="'
    parts = [f'{start}{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    for number, file in enumerate(_files()):
        head = f'{start}image[]"; filename="{number}.png"\r\nContent-Type: image/png\r\n\r\n'
        parts += (head.encode(), file, b"\r\n")
    return b"".join((*parts, f"--{BOUNDARY}--\r\n".encode()))
