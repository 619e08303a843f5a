"""Who gets an answer: tokens, hosts, and pages of other sites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from pipeline.errors import UserError
from pipeline.serving.in_process import InProcess
from pipeline.serving.requests.limits import Refusal
from pipeline.serving.web.access import OPEN_PATHS, TOKEN_VARIABLE, Access, is_loopback, read_token, require_token
from tests.serving.conftest import Running, run_service

TOKEN = "a-token-of-tests-0123456789"


@pytest.fixture(scope="module")
def guarded(model: InProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_service(model, tmp_path_factory.mktemp("guarded") / "uploads", token=TOKEN) as running:
        yield running


def test_with_the_token_a_video_is_answered(guarded: Running, clip: bytes) -> None:
    assert guarded.post(clip, Authorization=f"Bearer {TOKEN}").status == 200
    assert guarded.post(clip, Authorization=f"bearer {TOKEN}").status == 200


@pytest.mark.parametrize(
    "sent", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer ä"]
)
def test_without_the_token_nothing_is_answered(guarded: Running, clip: bytes, sent: str | None) -> None:
    headers = {} if sent is None else {"Authorization": sent}
    for method, path, body in (("POST", "/predict", clip), ("GET", "/metrics", None), ("GET", "/nothing", None)):
        reply = guarded.ask(method, path, body, Content_Type="video/mp4", **headers)
        assert (reply.status, reply.json["error"]) == (401, "token")
        assert reply.headers["www-authenticate"] == "Bearer" and TOKEN not in str(reply)


@pytest.mark.parametrize("path", OPEN_PATHS)
def test_the_page_and_health_need_no_token(guarded: Running, path: str) -> None:
    assert guarded.ask("GET", path).status == 200


ORIGINS = ["http://evil.example.org", "null", "http://127.0.0.1:1", "https://localhost", "http://[x", "http://", ""]
HOSTS = ["evil.example.org", "evil.example.org:8000", "localhost.evil.org", "10.0.0.1:80", "", "[::1", "[x]:80",
         "localhost@evil.org"]  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
def test_pages_of_other_sites_are_refused(server: Running, clip: bytes, origin: str) -> None:
    reply = server.post(clip, Origin=origin)
    assert (reply.status, reply.json["error"]) == (403, "origin")
    assert "access-control-allow-origin" not in reply.headers
    assert server.post(clip, Origin=server.address).status == 200


@pytest.mark.parametrize("host", HOSTS)
def test_names_that_somebody_made_mean_this_machine_are_refused(server: Running, host: str) -> None:
    reply = server.ask("GET", "/metrics", Host=host)
    assert (reply.status, reply.json["error"]) == (403, "host")


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:80", "127.1.2.3", "[::1]:8000", "[::1]"])
def test_names_of_this_machine_are_answered(host: str) -> None:
    Access().check("/metrics", Headers({"host": host}))
    Access(TOKEN).check("/metrics", Headers({"host": "any.example.org", "authorization": f"Bearer {TOKEN}"}))
    with pytest.raises(Refusal):
        Access(TOKEN).check("/metrics", Headers({"host": host}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "localhost", "::1", "[::1]"])
def test_hosts_that_need_no_token(host: str) -> None:
    assert is_loopback(host)
    require_token(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "localhost.example.org", "", "127.0.0.1.org"])
def test_hosts_that_need_a_token(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UserError, match=TOKEN_VARIABLE):
        require_token(host, None)
    require_token(host, TOKEN)


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}-2\n", encoding="utf-8")
    assert read_token(file) == f"{TOKEN}-2"


@pytest.mark.parametrize("content", [b"", b"short", b"with a space in the middle", b"\xff\xfe" * 20, "ä".encode() * 20])
def test_bad_tokens_are_mistakes(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(UserError, match="--token-file"):
        read_token(file)
    with pytest.raises(UserError, match="No such file"):
        read_token(tmp_path / "none")
