"""Names in a request that the server does not know are told, with the nearest one that it knows."""

from __future__ import annotations

import pytest

from tests.serving.conftest import Running
from tests.serving.test_predictions import BOUNDARY


@pytest.mark.parametrize(
    ("query", "shown"),
    [("tpo=3", "'tpo'; did you mean top?"), ("Window=2s", "did you mean window?"), ("window_size=2s", "did you mean window?"),
     ("xyz=1", "known are top, window, hop"), ("top=1&top=2", "'top' is given 2 times"), ("file=a.mp4", "known are"),
     ("%F0%9F%8E%AC=1", "unknown parameter of the address"), ("a" * 3000 + "=1", "unknown parameter")],
)  # fmt: skip
def test_unknown_parameters_of_the_address(server: Running, clip: bytes, query: str, shown: str) -> None:
    reply = server.post(clip, f"/predict?{query}")
    assert (reply.status, reply.json["error"]) == (422, "options") and shown in reply.json["detail"]
    assert len(reply.json["detail"]) < 200


@pytest.mark.parametrize(
    ("name", "shown"),
    [("windwo", "unknown field of the form 'windwo'; did you mean window?"),
     ("window", "'window' is not a field of the form: give it as a parameter of the address, /predict?window=..."),
     ("comment", "known are none")],
)  # fmt: skip
@pytest.mark.parametrize("comes_first", [True, False])
def test_unknown_fields_of_a_form(server: Running, clip: bytes, name: str, shown: str, comes_first: bool) -> None:
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n2s\r\n'.encode()
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'.encode()
    parts = [field, head + clip + b"\r\n"][:: 1 if comes_first else -1]
    reply = server.post(b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(), kind=f"multipart/form-data; boundary={BOUNDARY}")
    assert (reply.status, reply.json["error"]) == (422, "options") and shown in reply.json["detail"], reply.body


@pytest.mark.parametrize(
    ("body", "shown"),
    [(b'{"url": "https://x/"}', "unknown key of the JSON 'url'; did you mean uri?"),
     (b'{"uri": "https://x/", "top": 3}', "'top' is not a key of the JSON: give it as a parameter of the address")],
)  # fmt: skip
def test_unknown_keys_of_json(server: Running, body: bytes, shown: str) -> None:
    reply = server.post(body, kind="application/json")
    assert (reply.status, reply.json["error"]) == (422, "options") and shown in reply.json["detail"], reply.body
