"""Pictures of a screen, and when it has come to rest, on a file as Xvfb keeps one."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest
from PIL import Image

from claw_envs.gui.guest.screen import Frame, Pictures, Screen

WIDTH, HEIGHT = 70, 90


def noise(seed: int) -> bytearray:
    return bytearray(random.Random(seed).randbytes(WIDTH * HEIGHT * 4))


def as_seen(pixels: bytes) -> bytes:
    return Image.frombuffer("RGB", (WIDTH, HEIGHT), bytes(pixels), "raw", "BGRX").tobytes()


@pytest.mark.parametrize("plain", [False, True])
def test_a_picture_is_the_frame_whatever_changed_since_the_last_one(plain: bool):
    pictures, pixels = Pictures(plain=plain), noise(0)
    draw = random.Random(1)
    for _ in range(12):
        png = pictures.png(Frame(WIDTH, HEIGHT, bytes(pixels)))
        with Image.open(io.BytesIO(png)) as image:
            assert image.size == (WIDTH, HEIGHT)
            assert image.tobytes() == as_seen(pixels)
        assert png == Pictures().png(Frame(WIDTH, HEIGHT, bytes(pixels))), "what is kept must not show"
        at = draw.randrange(len(pixels))
        pixels[at : at + 900] = draw.randbytes(len(pixels[at : at + 900]))


class Xvfb:
    """A screen's file, written by the test."""

    def __init__(self, path: Path) -> None:
        head = [100, 7, 2, 24, WIDTH, HEIGHT, 0, 0, 32, 0, 32, 32, WIDTH * 4] + [0] * 12
        self.path = path
        path.write_bytes(struct.pack(">25I", *head) + bytes(noise(0)))

    def write(self, seed: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(100)
            file.write(noise(seed))


@pytest.fixture
def xvfb(tmp_path: Path) -> Xvfb:
    return Xvfb(tmp_path / "screen")


def test_a_screen_that_does_not_react_is_given_after_the_wait_for_it(xvfb: Xvfb):
    seen: list[Frame] = []
    done = Screen(str(xvfb.path)).settle(start_s=0.05, quiet_s=0.02, longest_s=5.0, meanwhile=seen.append)
    assert (done.settled, done.changed) == (True, False)
    assert done.seconds >= 0.05
    assert seen == [done.frame], "prepared once, while it waited"


def test_the_frame_given_is_the_last_one_and_who_is_busy_is_waited_for(xvfb: Xvfb):
    asked = 0

    def busy() -> bool:
        nonlocal asked
        asked += 1
        if asked < 4:
            xvfb.write(asked)
        return asked < 6

    done = Screen(str(xvfb.path)).settle(start_s=0.01, quiet_s=0.04, longest_s=20.0, every_s=0.005, busy=busy)
    assert (done.settled, done.changed) == (True, True)
    assert asked >= 6
    assert done.frame.pixels == bytes(noise(3))


def test_one_that_is_busy_for_ever_is_not_waited_for_for_ever(xvfb: Xvfb):
    done = Screen(str(xvfb.path)).settle(start_s=0.01, quiet_s=0.02, longest_s=20.0, patience_s=0.2, busy=lambda: True)
    assert done.settled
    assert done.seconds < 10


def test_a_screen_that_never_rests_is_given_unsettled(xvfb: Xvfb):
    seeds = iter(range(1, 100_000))

    def busy() -> bool:
        xvfb.write(next(seeds))
        return True

    done = Screen(str(xvfb.path)).settle(start_s=0.0, quiet_s=0.001, longest_s=0.2, every_s=0.001, busy=busy)
    assert not done.settled
