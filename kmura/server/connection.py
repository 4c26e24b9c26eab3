"""HTTP connections that are closed if the head of a request does not arrive in time."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0


class TimedConnection(H11Protocol):
    """uvicorn's connection with a limit of time for each request line and its headers.

    uvicorn limits only the pause between two requests, so clients that send their headers byte by byte could occupy
    connections for ever.
    """

    head_seconds = HEAD_SECONDS
    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._set_alarm()

    def data_received(self, data: bytes) -> None:
        served = self.cycle
        if self._alarm is None and (served is None or served.response_complete):
            self._set_alarm()  # the first bytes of another request
        super().data_received(data)
        if self.cycle is not served:  # its head is complete
            self._clear_alarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_alarm()
        super().connection_lost(exc)

    def _set_alarm(self) -> None:
        self._alarm = self.loop.call_later(self.head_seconds, self._close)

    def _clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _close(self) -> None:
        self._alarm = None
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
