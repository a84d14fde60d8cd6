"""The port that a server of ours listens on: is it free, and how is it called. Opens it only to look, and lets it go."""

import socket
import sys

from rag.errors import UserError


def check_port(host: str, port: int) -> None:
    """A UserError for a port that cannot be listened on."""
    if not 0 < port < 65536:
        raise UserError(f"There is no port {port}. Choose one from 1 to 65535 with --port.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"Cannot listen on {host}:{port} ({error.strerror}). Stop what uses it, or choose another with --port."
        ) from None


def shown_address(host: str, port: int) -> str:
    """As a person types it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
