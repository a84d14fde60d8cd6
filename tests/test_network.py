"""What conftest.py promises: tests reach this machine only."""

import socket

import pytest


def test_another_machine_is_refused_before_a_packet_leaves() -> None:
    with pytest.raises(PermissionError, match=r"tried to reach 192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_this_machine_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
