"""The host's ends of the sockets, fed with whatever: they call back, or report a broken protocol, and keep nothing."""

# ruff: noqa: E501 - programs for the guest, one per line

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import ProtocolError
from sandbox.guest import frames
from sandbox.wire import PacketChannel, StreamChannel, decode, whole

MOST = 1000
EXAMPLES = settings(max_examples=150, deadline=None)


@EXAMPLES
@given(st.binary(max_size=300))
def test_any_body_is_an_object_or_a_protocol_error(body: bytes) -> None:
    try:
        decoded = decode(body)
    except ProtocolError:
        return
    assert isinstance(decoded, dict)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@EXAMPLES
@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5), st.booleans())
def test_what_is_sent_is_what_arrives(body: dict[str, Any], escaped: bool) -> None:
    sent = json.dumps(body).encode() if escaped else frames.dump(body)
    assert decode(sent) == body
    assert frames.load(frames.dump(body)) == body


SURROGATES = st.text(alphabet=st.characters(categories=("Cs", "Lu")), max_size=20)


@EXAMPLES
@given(SURROGATES, SURROGATES)
def test_text_of_a_guest_can_always_be_encoded(key: str, value: str) -> None:
    for body in (json.dumps({key: [value]}).encode(), frames.dump({key: [value]})):
        json.dumps(decode(body), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b"null", b'"x"', b"{", b"{'a': 1}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}',
             b"[" * 100_000, b'{"a":' * 50_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"\0", b'{"a": 1} x']
)  # fmt: skip
def test_bodies_that_are_no_objects(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(body)


@pytest.mark.parametrize("value", [-1, 256, 1.0, True, "1", None, [], {}, 10**30])
def test_numbers_that_are_none(value: object) -> None:
    with pytest.raises(ProtocolError, match="'n' in a frame from inside"):
        whole({"n": value}, "n", most=255)


def test_numbers() -> None:
    assert (whole({"n": 255}, "n", most=255), whole({}, "n"), whole({"n": 0}, "n", most=0)) == (255, 0, 0)


class _Heard:
    """What a channel called back with."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.lost: list[Exception | None] = []

    def on_frame(self, kind: int, body: bytes) -> None:
        if kind == 99:
            raise ProtocolError("a frame of kind 99")
        self.frames.append((kind, body))


def _feed(chunks: list[bytes]) -> _Heard:
    async def run() -> _Heard:
        heard = _Heard()
        ours, theirs = socket.socketpair()
        channel = StreamChannel(ours, most_bytes=MOST, on_frame=heard.on_frame, on_lost=heard.lost.append)
        with theirs:
            for chunk in chunks:
                try:
                    theirs.sendall(chunk)
                except BrokenPipeError:
                    break
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        for _ in range(50):
            if heard.lost:
                break
            await asyncio.sleep(0.001)
        channel.close()
        assert ours.fileno() == -1
        return heard

    return asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_random_bytes_end_one_channel_and_nothing_else(chunks: list[bytes]) -> None:
    heard = _feed(chunks)
    assert len(heard.lost) == 1
    assert heard.lost[0] is None or isinstance(heard.lost[0], ProtocolError | OSError)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 98), st.binary(max_size=200)), max_size=6), st.integers(1, 50))
def test_frames_arrive_however_they_are_cut(sent: list[tuple[int, bytes]], size: int) -> None:
    data = b"".join(frames.HEADER.pack(kind, len(body)) + body for kind, body in sent)
    heard = _feed([data[start : start + size] for start in range(0, len(data), size)])
    assert heard.frames == sent
    assert heard.lost == [None]


@pytest.mark.parametrize(
    ("data", "said"),
    [(frames.HEADER.pack(17, 2**32 - 1), "claims 4294967295 bytes"), (frames.HEADER.pack(17, MOST + 4097), "claims 5097 bytes"),
     (frames.HEADER.pack(99, 0), "kind 99")],
)  # fmt: skip
def test_frames_that_break_a_rule(data: bytes, said: str) -> None:
    heard = _feed([data + b"more" * 100])
    assert heard.frames == []
    (error,) = heard.lost
    assert isinstance(error, ProtocolError)
    assert said in str(error)


async def test_much_to_send_waits_for_the_reader_and_is_not_mixed_up() -> None:
    heard = _Heard()
    ours, theirs = socket.socketpair()
    channel = StreamChannel(ours, most_bytes=MOST, on_frame=heard.on_frame, on_lost=heard.lost.append)
    bodies = [os.urandom(300_000) for _ in range(5)]
    for body in bodies:
        channel.send(2, body)
    assert channel.unsent_bytes > 0
    with theirs:
        read = await asyncio.to_thread(_read_frames, theirs, len(bodies))
    assert read == [(2, body) for body in bodies]
    channel.close()
    channel.close()
    channel.send(2, b"into nothing")


def _read_frames(end: socket.socket, count: int) -> list[tuple[int, bytes]]:
    stream = frames.Stream(end.fileno())
    found = [stream.receive() for _ in range(count)]
    return [frame for frame in found if frame is not None]


async def test_reader_that_goes_away_while_much_is_sent() -> None:
    heard = _Heard()
    ours, theirs = socket.socketpair()
    channel = StreamChannel(ours, most_bytes=MOST, on_frame=heard.on_frame, on_lost=heard.lost.append)
    channel.send(2, bytes(10_000_000))
    theirs.close()
    await _until(lambda: heard.lost)
    assert len(heard.lost) == 1
    assert ours.fileno() == -1


async def test_packets_and_descriptors() -> None:
    got: list[tuple[bytes, list[int]]] = []
    lost: list[Exception | None] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    PacketChannel(
        ours, on_packet=lambda packet, passed: got.append((packet, passed)), on_lost=lost.append, most_bytes=100
    )
    before = len(os.listdir("/proc/self/fd"))
    with theirs:
        theirs.send(b"plain")
        socket.send_fds(theirs, [b"one"], [0])
        await _until(lambda: len(got) == 2)
        assert [(packet, len(passed)) for packet, passed in got] == [(b"plain", 0), (b"one", 1)]
        os.close(got[1][1][0])
        theirs.send(b"x" * 101)
        await _until(lambda: lost)
    assert isinstance(lost[0], ProtocolError)
    assert len(os.listdir("/proc/self/fd")) == before - 2


@pytest.mark.parametrize("count", [2, 5, 50])
async def test_descriptors_that_nobody_asked_for_are_not_kept(count: int) -> None:
    got: list[tuple[bytes, list[int]]] = []
    lost: list[Exception | None] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    PacketChannel(
        ours, on_packet=lambda packet, passed: got.append((packet, passed)), on_lost=lost.append, most_bytes=100
    )
    before = len(os.listdir("/proc/self/fd"))
    with theirs:
        socket.send_fds(theirs, [b"many"], [0] * count)
        await _until(lambda: lost or got)
    assert got == []
    assert len(os.listdir("/proc/self/fd")) == before - 2


async def test_packets_wait_for_a_slow_reader_with_their_descriptors() -> None:
    lost: list[Exception | None] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = PacketChannel(ours, on_packet=lambda packet, passed: None, on_lost=lost.append, most_bytes=100)
    read_end, write_end = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(500):
        channel.send(number.to_bytes(2, "big") + bytes(2000), [write_end])
    assert len(os.listdir("/proc/self/fd")) > before
    with theirs:
        for number in range(500):
            packet, passed, _, _ = await asyncio.to_thread(socket.recv_fds, theirs, 4000, 1)
            assert packet[:2] == number.to_bytes(2, "big")
            os.close(passed[0])
        await channel.drained()
        assert len(os.listdir("/proc/self/fd")) == before
        for _ in range(500):
            channel.send(bytes(2000), [write_end])
        channel.close()
    for descriptor in (read_end, write_end):
        os.close(descriptor)
    assert len(os.listdir("/proc/self/fd")) == before - 4


async def _until(condition: Callable[[], Any]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not happen")
