"""Files that are no videos, bad ones, or meant to do harm: each is refused, and costs little."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.processes.isolation import ProcessLimits
from pipeline.serving.in_process import InProcess
from pipeline.serving.model.served_model import ServedModel
from pipeline.serving.requests.inspect_upload import Inspectors, begins_like_container
from pipeline.serving.requests.limits import Limits, Refusal
from tests.run_folders import write_video
from tests.serving import misbehaving
from tests.serving.conftest import LIMITS, Running

SECRET = "what only the server's owner may read"
PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    "hls of an address": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/livez\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {secret}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
    "<BaseURL>{secret}</BaseURL></Period></MPD>",
    "xspf": '<?xml version="1.0"?><playlist><trackList><track><location>{secret}</location></track></trackList></playlist>',
}
"""Texts that FFmpeg takes for lists of other files."""


def make_png(side: int) -> bytes:
    """A white PNG of 1 bit a pixel, so well compressed that 30,000 x 30,000 pixels take 100 KB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (-(-side // 8))
    packed = b"".join(rows.compress(row * 100) for _ in range(side // 100)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write_packets(path: Path, packets: list[bytes], codec: str = "png", side: int = 64) -> Path:
    """A QuickTime file whose header says that frames have ``side`` pixels, whatever is in the packets."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = side, side, "rgb24" if codec == "png" else "yuv420p"
        stream.time_base = Fraction(1, 10)
        for number, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    return path


def find_refusal(reply: Any) -> tuple[int, str]:
    assert reply.headers["content-type"] == "application/json" and set(reply.json) == {"error", "detail"}
    return reply.status, reply.json["error"]


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_list_of_other_files_is_no_video(server: Running, tmp_path: Path, name: str) -> None:
    """Nothing that it names is opened, neither a file nor an address."""
    write_video(tmp_path / "secret.mp4", "left")
    before = server.ask("GET", "/metrics").body.count(b'path="/livez"')
    body = PLAYLISTS[name].format(secret=tmp_path / "secret.mp4", port=server.port)
    reply = server.post(body.encode())
    assert find_refusal(reply) == (415, "not_a_video") and "secret" not in reply.json["detail"]
    assert server.ask("GET", "/metrics").body.count(b'path="/livez"') == before


@pytest.mark.parametrize("name", ["hls", "concat"])
def test_a_list_behind_the_first_bytes_of_a_video_is_not_followed_either(server: Running, tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "secret.mp4", "left")
    body = b"\0\0\0\x10free\0\0\0\0\0\0\0\0" + PLAYLISTS[name].format(secret=tmp_path / "secret.mp4", port=1).encode()
    assert find_refusal(server.post(body))[0] in (415, 422)


BYTES = {
    "a text": b"Lorem ipsum dolor sit amet, " * 100,
    "a page": b"<html><body>video</body></html>",
    "a program": b"\x7fELF" + bytes(1000),
    "a zip": b"PK\3\4" + bytes(1000),
    "a JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(1000),
    "a GIF": b"GIF89a" + bytes(1000),
    "a WAV": b"RIFF\0\0\0\0WAVE" + bytes(1000),
    "zeros": bytes(5000),
    "one byte": b"x",
    "random bytes": np.random.default_rng(0).bytes(20_000),
}


@pytest.mark.parametrize("name", BYTES)
def test_what_is_no_video_is_refused_before_a_decoder_sees_it(server: Running, name: str) -> None:
    assert find_refusal(server.post(BYTES[name])) == (415, "not_a_video")


def test_an_empty_body_is_refused(server: Running) -> None:
    assert find_refusal(server.post(b"")) == (400, "empty")


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("audio_only.m4a", (415, "no_video_stream")), ("audio_only.mp4", (415, "no_video_stream")),
        ("cover.jpg", (415, "not_a_video")), ("gifanim.gif", (415, "not_a_video")), ("oneframe.mp4", (422, "too_short")),
        ("reschange.ts", (422, "undecodable")), ("raw.h264", (415, "not_a_video")), ("SOURCE.md", (415, "not_a_video")),
    ],
)  # fmt: skip
def test_real_files_that_cannot_be_used_are_refused(
    server: Running, shared_data: Path, name: str, refusal: tuple[int, str]
) -> None:
    assert find_refusal(server.post((shared_data / "odd" / name).read_bytes())) == refusal


HEADS = {
    "mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "mov": b"\0\0\0\x08wide\0\0\0\x08mdat", "mkv": b"\x1aE\xdf\xa3",
    "avi": b"RIFF\0\0\1\0AVI LIST", "flv": b"FLV\x01\x05\0\0\0\x09", "ogg": b"OggS\0\2", "mpg": b"\0\0\1\xba",
    "ts": (b"G" + bytes(187)) * 4, "wmv": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c",
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_garbage_behind_the_first_bytes_of_a_video_is_refused(server: Running, name: str) -> None:
    assert begins_like_container(HEADS[name])
    for filling in (bytes(30_000), np.random.default_rng(1).bytes(30_000)):
        reply = server.post(HEADS[name] + filling)
        assert find_refusal(reply)[0] in (415, 422)
        assert str(server.service.scratch) not in reply.json["detail"] and "/tmp" not in reply.json["detail"]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_a_truncated_video_is_refused_and_the_path_on_the_server_is_not_told(
    server: Running, clip: bytes, share: float
) -> None:
    reply = server.post(clip[: int(share * len(clip))])
    assert find_refusal(reply)[0] in (415, 422)
    assert str(server.service.scratch) not in reply.json["detail"]


@pytest.mark.parametrize("seed", range(12))
def test_a_video_with_flipped_bits_is_answered_or_refused(server: Running, clip: bytes, seed: int) -> None:
    """And never an error of the server."""
    generator = np.random.default_rng(seed)
    content = bytearray(clip)
    for position in generator.integers(8, len(content), 40):
        content[position] ^= 1 << int(generator.integers(8))
    reply = server.post(bytes(content))
    assert reply.status in (200, 415, 422), reply.body


# ---------------------------------------------------------------------------------------------------- much from little


@pytest.mark.parametrize(
    ("side", "megabytes", "code"),
    [(30_000, 1024, "undecodable"), (12_000, 1024, "too_many_pixels"), (2_900, 10, "too_costly or undecodable")],
)
def test_frames_of_gigabytes_from_few_bytes_are_refused_in_bounded_memory(
    side: int, megabytes: int, code: str, tmp_path: Path
) -> None:
    """Decoded the frames have 2.7 GB, 432 MB and 25 MB; the header says 64 x 64 pixels."""
    bomb = write_packets(tmp_path / "bomb.mov", [make_png(side)] * 3)
    assert bomb.stat().st_size < 500_000
    refusal = _find_refusal_of(bomb.read_bytes(), tmp_path, megabytes)
    assert refusal is not None and refusal[0] == 422 and refusal[1] in code


def test_frames_above_the_limit_are_refused(clip: bytes, tmp_path: Path) -> None:
    assert _find_refusal_of(clip, tmp_path, video_pixels=96 * 64) is None
    assert _find_refusal_of(clip, tmp_path, video_pixels=96 * 64 - 1) == (422, "too_many_pixels")


@pytest.mark.parametrize(("width", "height", "refused"), [(600, 2, True), (2, 200, True), (256, 60, True), (240, 60, False)])
def test_narrow_frames_which_scaling_would_blow_up_are_refused(width: int, height: int, refused: bool, tmp_path: Path) -> None:
    path = tmp_path / "narrow.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    assert _find_refusal_of(path.read_bytes(), tmp_path) == ((422, "too_narrow") if refused else None)


def test_videos_above_the_limits_of_time_and_frames_are_refused(clip: bytes, tmp_path: Path) -> None:
    """The clip has 24 frames in one second."""
    assert _find_refusal_of(clip, tmp_path, video_seconds=0.9) == (422, "too_long")
    assert _find_refusal_of(clip, tmp_path, video_frames=23) == (422, "too_many_frames")
    assert _find_refusal_of(clip, tmp_path, video_frames=24, video_seconds=1.01) is None


def _find_refusal_of(content: bytes, tmp_path: Path, megabytes: int = 1024, **limits: Any) -> tuple[int, str] | None:
    """The refusal of a file by other limits; only its inspection, which needs no networks."""
    path = tmp_path / "upload"
    path.write_bytes(content)
    inspectors = Inspectors(ProcessLimits(20.0, 2**30, megabytes * 2**20))
    try:
        inspectors.inspect(path, Limits(**limits))
    except Refusal as refusal:
        return refusal.status, refusal.code
    finally:
        inspectors.stop()
    return None


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("window=500ms&hop=0.1ms", "too_many_windows"), ("window=1e-9s", "too_many_windows"), ("window=0.2s&hop=1s", "window"),
        ("window=-1s", "window"), ("window=nans", "window"), ("window=infs", "window"), ("hop=1s", "window"),
        ("window=soon", "window"), ("window=1s&hop=0s", "window"), ("top=0", "options"), ("top=1001", "options"),
        ("top=many", "options"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(server: Running, clip: bytes, query: str, code: str) -> None:
    assert find_refusal(server.post(clip, f"/predict?{query}")) == (422, code)


# -------------------------------------------------------------------------------------------- processes that misbehave


@pytest.mark.parametrize(
    ("function", "shown"),
    [(misbehaving.hang, "no result after 0.5 s"), (misbehaving.crash, "crashed"), (misbehaving.take_memory, "memory")],
)
def test_an_inspection_that_hangs_crashes_or_takes_memory_is_a_refusal(function: Any, shown: str, tmp_path: Path) -> None:
    inspectors = Inspectors(ProcessLimits(0.5, 2**30, 2**31), function)
    with pytest.raises(Refusal) as caught:
        inspectors.inspect(tmp_path, LIMITS)
    assert caught.value.status == 422 and shown in caught.value.text
    inspectors.stop()


def test_a_video_whose_decoding_takes_too_long_is_refused_and_the_next_is_answered(
    saved: Any, clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder's time is a part of the request's."""
    monkeypatch.setattr("pipeline.serving.model.served_model.DECODE_SHARE", 1e-4)
    answerer = InProcess(ServedModel(saved, LIMITS))
    path = tmp_path / "upload"
    path.write_bytes(clip)
    answerer.model._inspectors.limits = ProcessLimits(20.0)
    with pytest.raises(Refusal) as caught:
        answerer.model.answer(path, _wanted())
    assert (caught.value.status, caught.value.code) == (422, "too_costly")
    answerer.stop()


def _wanted() -> Any:
    from pipeline.serving.model.answers import RequestOptions

    return RequestOptions()


def test_after_all_of_this_the_server_answers_as_before(server: Running, clip: bytes) -> None:
    assert server.post(clip).status == 200
    assert server.list_scratch() == []
