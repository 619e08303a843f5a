"""Which Ray cluster a command joins, when what it is told is out of date."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import ray

from pipeline.errors import UserError
from pipeline.ray_cluster import address as addresses
from pipeline.ray_cluster import connect
from tests.ray_cluster.answering_gcs import Gcs, serve_gcs
from tests.ray_cluster.certificates import Environment, make_certificates


@pytest.fixture
def dead_address() -> str:
    """A port of this machine at which nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{closed.getsockname()[1]}"


@pytest.fixture
def note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file in which ``ray start`` leaves its address."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@pytest.fixture
def serve() -> Iterator[Callable[[Gcs | None], str]]:
    """Starts a gRPC server, without any service for None; returns its address."""
    with ExitStack() as servers:
        yield lambda service: servers.enter_context(serve_gcs(service))


@pytest.fixture
def listen() -> Iterator[Callable[[bytes | None], str]]:
    """Starts a server that answers each connection with these bytes and closes it, or with None never answers."""
    servers = []

    def start(answer: bytes | None) -> str:
        server = socket.create_server(("", 0))
        servers.append(server)

        def loop() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(24)
                    connection.sendall(answer or b"")

        if answer is not None:
            threading.Thread(target=loop, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


def test_without_a_cluster_one_is_started_here(note: Path) -> None:
    assert connect._choose_address() == "local"


def test_a_cluster_that_was_killed_is_not_waited_for(note: Path, dead_address: str, caplog: pytest.LogCaptureFixture) -> None:
    note.write_text(dead_address)
    assert connect._choose_address() == "local"
    assert not note.exists()
    assert dead_address.rpartition(":")[2] in caplog.text


def test_a_cluster_that_answers_is_joined(
    note: Path, serve: Callable[[Gcs | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "find_node_ids", lambda: {"a raylet of this machine"})
    note.write_text(serve(Gcs()))
    assert connect._choose_address() is None
    assert note.exists()


def test_a_cluster_whose_port_another_service_took_over_is_gone(note: Path, listen: Callable[[bytes | None], str]) -> None:
    """6379 is also Redis's port."""
    note.write_text(listen(b"-ERR unknown command\r\n"))
    assert connect._choose_address() == "local"
    assert not note.exists()


def test_a_cluster_of_another_machine_is_not_forgotten(note: Path) -> None:
    note.write_text("unknown.invalid:6379")
    with pytest.raises(UserError, match="ray stop"):
        connect._choose_address()
    assert note.exists()


def test_a_named_cluster_that_does_not_listen_is_an_error(monkeypatch: pytest.MonkeyPatch, dead_address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", dead_address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"no Ray cluster can be joined .*unset RAY_ADDRESS"):
        connect.connect()


@pytest.mark.parametrize(
    ("named", "remedy"),
    [
        ("http://head:8265", "python -m jobs.submit --address http://head:8265 COMMAND"),
        ("https://ray.example.com", "RAY_ADDRESS=ray.example.com:6379"),
        ("ray://head:10001", "python -m jobs.submit --address http://head:8265 COMMAND"),
        ("gcs://head", "RAY_ADDRESS=head:6379"),
        ("head", "head:6379"),
        ("10.0.0.1", "10.0.0.1:6379"),
        (":6379", "HOST:6379"),
        ("fd00::1", "HOST:6379"),
        ("[fd00::1]", "HOST:6379"),
        ("head:", "head:6379"),
        ("head:gcs", "port 'gcs' is not a number"),
        ("head:0", "port '0' is not a number from 1 to 65535"),
        ("head:65536", "head:6379"),
        ("head:6379 ", "port '6379 ' is not a number"),
        ("http://", "--address http://HEAD:8265 COMMAND, or RAY_ADDRESS=HEAD:6379"),
        ("http://:8265", "--address http://HEAD:8265 COMMAND, or RAY_ADDRESS=HEAD:6379"),
        ("http://head:bad", "--address http://head:8265 COMMAND, or RAY_ADDRESS=head:6379"),
        ("https://head:99999/", "--address https://head:8265 COMMAND, or RAY_ADDRESS=head:6379"),
        ("http://[x", "RAY_ADDRESS=HEAD:6379 on a machine of the cluster, HEAD being the address of the head node"),
        ("ray://[x]:1", "--address http://HEAD:8265 COMMAND"),
        ("http://[fd00::1]:8265", "--address http://[fd00::1]:8265 COMMAND, or RAY_ADDRESS=[fd00::1]:6379"),
        ("//", "HOST:6379"),
    ],
)
def test_what_is_no_address_is_refused_with_the_remedy(named: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for ask in (connect.connect, connect.is_reachable):
        with pytest.raises(UserError) as refused:
            ask()
        text = str(refused.value)
        assert f"RAY_ADDRESS={named}" in text and remedy in text and "unset RAY_ADDRESS" in text


@pytest.mark.parametrize("address", ["head:6379", "10.0.0.1:1", "[fd00::1]:6379", "auto", "local"])
def test_an_address_of_the_right_form_is_taken(address: str) -> None:
    addresses.check_form(address)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no answer within 0.5 s"),
        (b"", "does not speak Ray's protocol"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "does not speak Ray's protocol"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak Ray's protocol"),
    ],
    ids=["silent", "hangs up", "ssh", "web"],
)
def test_a_service_other_than_ray_is_told_within_seconds(
    answer: bytes | None, reason: str, listen: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", listen(answer))
    begun = time.monotonic()
    with pytest.raises(UserError, match=reason):
        connect.connect()
    assert time.monotonic() - begun < 10


def test_a_grpc_service_other_than_a_clusters_is_told(serve: Callable[[Gcs | None], str]) -> None:
    """Such as Ray Client's own, at port 10001."""
    refusal = addresses.find_refusal(serve(None))
    assert refusal is not None and refusal.absent and "another service" in refusal.reason


def test_an_unknown_host_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "unknown.invalid:6379")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=unknown.invalid:6379 \(the host's name is unknown here\)"):
        connect.connect()


def test_a_cluster_of_another_version_of_ray_is_told(serve: Callable[[Gcs | None], str]) -> None:
    refusal = addresses.find_refusal(serve(Gcs("2.9.0")))
    assert refusal is not None and "2.9.0" in refusal.reason and ray.__version__ in refusal.reason and not refusal.absent


def test_a_cluster_that_wants_a_token_is_told_of_by_its_remedy(
    serve: Callable[[Gcs | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", serve(Gcs(refuse=grpc.StatusCode.UNAUTHENTICATED)))
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN"):
        connect.connect()


def test_a_noted_cluster_that_wants_a_token_is_left_to_ray(
    note: Path, serve: Callable[[Gcs | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which looks for this user's token only where no address is named."""
    monkeypatch.setattr(connect, "find_node_ids", lambda: {"a raylet of this machine"})
    note.write_text(serve(Gcs(refuse=grpc.StatusCode.UNAUTHENTICATED)))
    assert connect._choose_address() is None


@pytest.fixture
def certificates(tmp_path: Path) -> Environment:
    return make_certificates(tmp_path / "own")


@pytest.fixture
def tls_address(certificates: Environment) -> Iterator[str]:
    """Address of a cluster's service that speaks TLS as Ray does, and wants a certificate of its own authority."""
    names = ("RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT", "RAY_TLS_CA_CERT")
    key, certificate, authority = (Path(certificates[name]).read_bytes() for name in names)
    with serve_gcs(Gcs(), grpc.ssl_server_credentials([(key, certificate)], authority, True)) as address:
        yield address


def test_a_cluster_that_speaks_tls_is_joined_by_its_own_machines_alone(
    certificates: Environment, tls_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", tls_address)
    with pytest.raises(UserError, match=r"it speaks TLS, and this command was given no certificate.*RAY_USE_TLS=1"):
        connect.connect()
    stranger = make_certificates(tmp_path / "stranger")
    for taken, reason in (
        (certificates, None),
        (stranger, "its certificate is not of the authority in RAY_TLS_CA_CERT"),
        ({**stranger, "RAY_TLS_CA_CERT": certificates["RAY_TLS_CA_CERT"]}, "it refuses this machine's certificate"),
        ({**certificates, "RAY_TLS_SERVER_KEY": str(tmp_path / "none.key")}, "none.key"),
    ):
        with monkeypatch.context() as patched:
            for name, value in taken.items():
                patched.setenv(name, value)
            refusal = addresses.find_refusal(tls_address)
            if reason is None:
                assert refusal is None
            else:
                assert refusal is not None and reason in refusal.reason and "RAY_TLS_SERVER_CERT" in refusal.remedy
                assert not refusal.absent


def test_certificates_are_for_addresses(
    certificates: Environment, serve: Callable[[Gcs | None], str], tls_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in certificates.items():
        monkeypatch.setenv(name, value)
    elsewhere = addresses.find_refusal(f"127.0.0.2:{tls_address.rpartition(':')[2]}")
    assert elsewhere is not None and "for another address" in elsewhere.reason
    plain = addresses.find_refusal(serve(Gcs()))
    assert plain is not None and "speaks no TLS" in plain.reason and plain.remedy == "unset RAY_USE_TLS"
    monkeypatch.delenv("RAY_TLS_CA_CERT")
    unset = addresses.find_refusal(tls_address)
    assert unset is not None and "RAY_TLS_CA_CERT" in unset.reason


def test_a_noted_cluster_that_speaks_tls_is_not_forgotten(note: Path, tls_address: str) -> None:
    note.write_text(f"{ray.util.get_node_ip_address()}:{tls_address.rpartition(':')[2]}")
    with pytest.raises(UserError, match="RAY_USE_TLS=1"):
        connect._choose_address()
    assert note.exists()


def test_a_machine_that_is_no_node_of_the_cluster_is_told(
    serve: Callable[[Gcs | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(connect, "find_node_ids", set)
    monkeypatch.setattr(connect, "NODE_SECONDS", 0.1)
    monkeypatch.setenv("RAY_ADDRESS", serve(Gcs()))
    with pytest.raises(UserError, match=r"not a node of the Ray cluster .*jobs.submit"):
        connect.connect()


def test_a_ray_that_did_not_start_in_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a load of 30 on 2 cores; every other exception keeps its traceback."""
    said = "The current node timed out during startup. This could happen because some of the raylet failed to startup"

    def fail(*_: object, **__: object) -> None:
        raise Exception(said)

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", fail)
    monkeypatch.setattr(connect, "_choose_address", lambda: None)
    with pytest.raises(UserError, match=r"within 30 s, its limit: the machine is too busy.*scale\.workers=0"):
        connect.connect()
    said = "something else"
    with pytest.raises(Exception, match=r"^something else$"):
        connect.connect()


def test_auto_without_a_cluster_says_how_to_start_one(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"RAY_ADDRESS=auto: no Ray runs on this machine; start one with `ray start --head`"):
        connect.connect()
