"""Decoding threads hold a bounded number of pixels; large images wait for each other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from embed_samples import embed, pictures, vectors_of

from mwa_export.embed.room import Room
from mwa_export.inputs.decode import MAX_PIXELS


def test_threads_never_hold_more_than_the_limit_and_all_get_their_turn() -> None:
    room, lock, held, most = Room(1), threading.Lock(), [0], [0]

    def decode(pixels: int) -> int:
        with room(pixels):
            with lock:
                held[0] += pixels
                most[0] = max(most[0], held[0])
            with lock:
                held[0] -= pixels
        return pixels

    sizes = [MAX_PIXELS // part for part in (1, 3, 5, 2, 1, 7)] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(decode, sizes)) == sizes
    assert most[0] <= room.pixels == MAX_PIXELS


def test_a_large_picture_waits_and_is_not_overtaken() -> None:
    room, order = Room(1), list[str]()
    started = threading.Event()

    def take(name: str, pixels: int) -> None:
        started.set()
        with room(pixels):
            order.append(name)

    with ExitStack() as first:
        first.enter_context(room(1))
        large = threading.Thread(target=take, args=("large", MAX_PIXELS))
        large.start()
        assert started.wait(5)
        while not room._turn.locked():
            pass
        small = threading.Thread(target=take, args=("small", 1))
        small.start()
        assert order == []
    large.join(5)
    small.join(5)
    assert order == ["large", "small"]


def test_photographs_of_many_threads_do_not_wait() -> None:
    room = Room(64)
    with ExitStack() as held:
        for _thread in range(64):
            held.enter_context(room(4000 * 3000))


def test_embed_asks_for_room_before_it_decodes(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = list[int](), Room.__call__

    def spy(room: Room, pixels: int) -> AbstractContextManager[None]:
        asked.append(pixels)
        return real(room, pixels)

    monkeypatch.setattr(Room, "__call__", spy)
    embed(files / "bundle", [pictures(5)], tmp_path / "out")
    assert asked == [7 * 9] * 5
    assert len(vectors_of(tmp_path / "out", "images")[0]) == 5
