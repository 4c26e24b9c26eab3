"""Starts a server of exports and runs it until it is asked to stop."""

import contextlib
import dataclasses
import importlib.util
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kmura.errors import InputError, reason, remedy, unreadable
from kmura.server.limits import Limits

if TYPE_CHECKING:
    from kmura.server.engine import Engine

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "markdown_it")  # of the extra `serve`
_SHORTEST_TOKEN = 16  # characters
_LONGEST_HEAD = 16 << 10  # bytes of a request line with its headers
_CONNECTIONS = 500  # each takes a file descriptor, of which a process often has 1024
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server listens and who may ask it.

    Attributes:
        host, port: port 0 takes any free one.
        token_file: file with the token that requests must present as `Authorization: Bearer TOKEN`; None: no token,
            which is only allowed on loopback or with `no_auth`.
        no_auth: serve other machines without a token.
        certificate, key: PEM files for TLS; both or none.
    """

    host: str = "127.0.0.1"
    port: int = 8501
    token_file: str | os.PathLike | None = None
    no_auth: bool = False
    certificate: str | os.PathLike | None = None
    key: str | os.PathLike | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host == "localhost"


@dataclasses.dataclass(frozen=True)
class Started:
    """What a server offers once it listens.

    Attributes:
        url: of the page.
        models: name -> version.
        needs_token: whether requests must present the token.
    """

    url: str
    models: dict[str, int]
    needs_token: bool


def serve(
    exports: Sequence[str | os.PathLike],
    *,
    names: Sequence[str] = (),
    address: Address = Address(),  # noqa: B008 (frozen)
    limits: Limits | None = None,
    poll: float = 5.0,
    started: Callable[[Started], None] = lambda server: None,
) -> None:
    """Serves exports until SIGTERM or SIGINT; then answers the requests in progress and returns.

    Args:
        exports: folders of all versions of an export, of which the highest is served and replaced when a new one
            appears, or folders of one version.
        names: names of the models, one per export; empty takes the names of the folders.
        address: host, port, token and TLS.
        limits: None takes the defaults.
        poll: seconds between two looks for new versions; 0: never.
        started: called once when the server listens.

    Raises:
        InputError: A package is missing, an export cannot be served, the address is taken or not allowed, the token or
            a certificate cannot be read.
    """
    _check_packages()
    limits = limits or Limits()
    if poll < 0:
        raise InputError(f"poll is {poll}, but must not be negative; give 0 to never look for new versions")
    folders = named_exports(exports, names)
    token = checked_token(address)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(contextlib.closing(_bound(address.host, address.port)))
        from kmura.server.engine import Engine
        from kmura.server.served_versions import check_can_be_served

        for folder in folders.values():
            check_can_be_served(folder)
        engine = Engine(folders, limits)
        stack.callback(engine.close)
        engine.start()
        _without_core_files()
        _run(engine, listening, address, token, poll, started)


def named_exports(exports: Sequence[str | os.PathLike], names: Sequence[str] = ()) -> dict[str, Path]:
    """Returns the folder of each model by its name.

    Raises:
        InputError: There is no export, the numbers differ, a name is not valid, or two are equal.
    """
    if not exports:
        raise InputError("no export is given; give a folder made by kmura export")
    if names and len(names) != len(exports):
        raise InputError(
            f"{len(names)} names are given for {len(exports)} exports; give one --name per export, or none"
        )
    named: dict[str, Path] = {}
    for place, export in enumerate(exports):
        folder = Path(export)
        name = names[place] if names else _name_of(folder)
        if not name or not all(letter.isalnum() or letter in "._-" for letter in name):
            raise InputError(
                f"the name {name!r} of {folder} may only have letters, digits, '.', '_' and '-'; give --name"
            )
        if name in named:
            raise InputError(f"{named[name]} and {folder} have the same name {name}; give each a --name")
        named[name] = folder
    return named


def checked_token(address: Address) -> str | None:
    """Returns the token that requests must present; None if none is needed.

    Raises:
        InputError: The address needs a token and has none, or the file cannot be used.
    """
    if bool(address.certificate) != bool(address.key):
        raise InputError("TLS needs a certificate and its key; give both --tls-certificate and --tls-key")
    if address.token_file is None:
        if not address.is_loopback and not address.no_auth:
            raise InputError(
                f"{address.host} can be reached from other machines; give --token-file with a secret, or --no-auth if "
                "everybody who can reach it may use it"
            )
        return None
    if address.no_auth:
        raise InputError("--token-file and --no-auth contradict each other; remove one")
    path = Path(address.token_file)
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file; write a random token to it") from error
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"the token in {path} must have at least {_SHORTEST_TOKEN} printable ASCII characters without spaces; make "
            f"one with: openssl rand -hex 32 > {path}"
        )
    return token


def _name_of(folder: Path) -> str:
    """Returns the name of the folder of versions, also for the folder of one version."""
    absolute = Path(os.path.abspath(folder))
    return absolute.parent.name if absolute.name.isdigit() else absolute.name


def _check_packages() -> None:
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"kmura serve needs {missing[0]}; run pip install '.[serve]' in a clone of kmura")


def _bound(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to the address; it does not listen yet."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"host {host!r} is unknown ({error}); give an address of this machine") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
    except OSError as error:
        listening.close()
        fix = remedy(error, "choose another --port or --host")
        raise InputError(f"port {port} of {host} cannot be used: {reason(error)}; {fix}") from error
    return listening


def _run(engine: "Engine", listening: socket.socket, address: Address, token, poll: float, started) -> None:
    import uvicorn

    from kmura.server.app import application
    from kmura.server.connection import TimedConnection

    # other host names could be those of a web site that points its name to this machine (DNS rebinding)
    hosts = _LOOPBACK | {address.host.lower()} if token is None and address.is_loopback else None
    tls = {"ssl_certfile": address.certificate, "ssl_keyfile": address.key} if address.certificate else {}
    config = uvicorn.Config(
        application(engine, token=token, hosts=hosts, poll=poll),
        http=TimedConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_LONGEST_HEAD,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(engine.limits.drain)),
        **tls,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise InputError(
            f"the certificate {address.certificate} with the key {address.key} cannot be used ({reason(error)}); give "
            "PEM files that belong together"
        ) from error

    class Server(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            started(_offer(engine, listening, address, token))

        def handle_exit(self, sig, frame) -> None:
            engine.stopping = True
            super().handle_exit(sig, frame)

    with _quiet_signals():
        Server(config).run(sockets=[listening])


def _offer(engine: "Engine", listening: socket.socket, address: Address, token: str | None) -> Started:
    host = f"[{address.host}]" if ":" in address.host else address.host
    url = f"{'https' if address.certificate else 'http'}://{host}:{listening.getsockname()[1]}/"
    models = {name: versions.current.version for name, versions in engine.models.items() if versions.current}
    return Started(url, models, token is not None)


@contextlib.contextmanager
def _quiet_signals() -> Iterator[None]:
    """SIGTERM and SIGINT, which uvicorn raises again once it has stopped, do nothing in the block."""
    try:
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread, where uvicorn does not listen to signals either
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _without_core_files() -> None:
    """Keeps the system from writing the memory of this process, which may hold uploads, to disk if it crashes."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
