"""A store that speaks as much of S3 as a source of images needs, from memory, with a delay for each request.

Run: python -m benchmarks.store IMAGES SECONDS (prints its port)
"""

import asyncio
import io
import re
import sys
from collections.abc import Mapping
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

BUCKET, PIXELS, LISTED = "images", 96, 1000
RANGE = re.compile(rb"\r\nrange: bytes=(\d+)-(\d+)", re.IGNORECASE)
WHEN = ("2026-01-01T00:00:00.000Z", "Thu, 01 Jan 2026 00:00:00 GMT")


def photos(count: int) -> dict[str, bytes]:
    """Distinct JPEGs of 96 px and about 4 kB, by their keys, and one more in a folder of its own."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((PIXELS, PIXELS)).save(buffer, format="JPEG", quality=90)
    jpeg = buffer.getvalue()
    numbered = {  # in a comment
        f"photos/{number:06}.jpg": jpeg[:2] + b"\xff\xfe\x00\x0a" + b"%08d" % number + jpeg[2:]
        for number in range(count)
    }
    return numbered | {"one/photo.jpg": jpeg}


class Connection(asyncio.Protocol):
    """Answers the requests of one client.

    Args:
        objects: The bytes of each key.
        delay: Seconds that pass before each answer.
    """

    def __init__(self, objects: Mapping[str, bytes], delay: float) -> None:
        self.objects, self.keys, self.delay = objects, sorted(objects), delay
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            request, self.received = self.received[:end], self.received[end + 4 :]
            asyncio.get_running_loop().call_later(self.delay, self.answer, request)

    def answer(self, request: bytes) -> None:
        """Send the answer to a request."""
        method, target, _ = request.partition(b"\r\n")[0].decode().split(" ")
        address = urlsplit(target)
        bucket, _, key = unquote(address.path).strip("/").partition("/")
        if bucket == BUCKET and not key:
            body = self.listing({name: values[0] for name, values in parse_qs(address.query).items()})
            return self.send("200 OK", method, body.encode())
        if (data := self.objects.get(key)) is None:
            return self.send("404 Not Found", method, b"<Error><Code>NoSuchKey</Code></Error>")
        if part := RANGE.search(request):
            first, last = int(part[1]), min(int(part[2]), len(data) - 1)
            extent = f"Content-Range: bytes {first}-{last}/{len(data)}\r\n"
            return self.send("206 Partial Content", method, data[first : last + 1], extent)
        self.send("200 OK", method, data)

    def send(self, status: str, method: str, body: bytes, more: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nLast-Modified: {WHEN[1]}\r\n{more}\r\n"
        self.transport.write(head.encode() + (b"" if method == "HEAD" else body))

    def listing(self, asked: Mapping[str, str]) -> str:
        """What lies under a prefix, as ListObjectsV2 answers."""
        prefix, after = asked.get("prefix", ""), asked.get("continuation-token", "")
        limit = int(asked.get("max-keys", LISTED))
        under = [key for key in self.keys if key.startswith(prefix)]
        deeper = {key for key in under if "delimiter" in asked and "/" in key[len(prefix) :]}
        folders = sorted({prefix + key[len(prefix) :].partition("/")[0] + "/" for key in deeper})
        keys = [key for key in under if key not in deeper and key > after][: limit + 1]
        more = len(keys) > limit
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size><ETag>{key}</ETag>"
            f"<LastModified>{WHEN[0]}</LastModified></Contents>"
            for key in keys[:limit]
        )
        shared = "".join(
            f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders
        )
        token = f"<NextContinuationToken>{keys[limit - 1]}</NextContinuationToken>" if more else ""
        truncated = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return (
            f"<ListBucketResult><Name>{BUCKET}</Name>{contents}{shared}{truncated}{token}</ListBucketResult>"
        )


async def serve(objects: Mapping[str, bytes], delay: float) -> None:
    """Serve until the process ends; prints the port.

    Args:
        objects: The bytes of each key of the bucket.
        delay: Seconds that pass before each answer.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(objects, delay), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(photos(int(sys.argv[1])), float(sys.argv[2])))
