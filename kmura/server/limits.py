"""The limits of a server: what a request may contain, how long it may take, and how much work may wait."""

import dataclasses

from kmura.errors import InputError


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        body: size of a request, bytes.
        pixels: of an image; images that declare more are refused before they are decoded.
        files: images of one request.
        queue: images that wait or are worked on, over all requests; more are refused with status 503.
        batch: images per step of the model.
        wait: how long an image waits for others to form a batch, seconds.
        timeout: for receiving a request, and for answering it, seconds each.
        drain: how long running requests may take after the server was asked to stop, seconds.
        decoders: processes that decode images.
    """

    body: int = 64 << 20
    pixels: int = 40_000_000
    files: int = 32
    queue: int = 128
    batch: int = 16
    wait: float = 0.002
    timeout: float = 60.0
    drain: float = 30.0
    decoders: int = 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name not in ("wait", "drain")):
                raise InputError(f"{field.name} is {value}, but must be positive; give a larger value")
        if self.queue < self.files:
            raise InputError(
                f"queue is {self.queue}, but a request may have {self.files} files; give a queue of at least "
                f"{self.files}, or fewer files"
            )

    @property
    def held(self) -> int:
        """Bytes of request bodies that may be in memory at a time."""
        return 4 * self.body


class Overloaded(Exception):
    """The server has too much work at the moment.

    Attributes:
        retry_after: when to try again, seconds.
    """

    def __init__(self, what: str, retry_after: int):
        super().__init__(what)
        self.retry_after = retry_after
