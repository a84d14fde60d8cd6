"""Names of hosts: how a header or a setting calls a machine, and whether that is this one.

Knows names and addresses as text: no URLs, and no name is resolved. Who may come under which name is not decided here.
"""

import ipaddress
import re
import socket


def port_of(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def host_name(header: str) -> str | None:
    """The name in a Host header, lower case, without port, brackets and final dot; None if it is not one."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:[0-9]{1,5})?", header.strip().lower())
    return match[1].strip("[]").rstrip(".") if match else None


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    return name.lower() == "localhost" or (is_address(name) and ipaddress.ip_address(name).is_loopback)


def own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, f"{name.split('.')[0]}.local"}
