"""Downloads from a server that misbehaves: the right file or one clear line, no wrong file."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faulty import FAULTS, Script, server
from zoo.download import fetch
from zoo.errors import WeightsError, ZooError
from zoo.resuming import Patience, Source

BODY = random.Random(0).randbytes(200_000)
OTHER = random.Random(1).randbytes(170_000)
QUICK = Patience(connect=2, read=0.25, tries=4, wait=0.001, longest=0.01)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def source(url: str, *more: str, known: bool = True, size: int | None = None) -> Source:
    sha = digest(BODY) if known else None
    return Source("a/b", [f"{url}/w.pth", *more], sha, size, "w.pth")


def held(folder: Path) -> list[Path]:
    return list(folder.rglob("w.pth"))


def test_a_file_comes_whole_and_the_cache_is_clean(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    with server(Script([BODY])) as url:
        path, found = fetch(source(url), tmp_path, report=lambda a, b: seen.append((a, b)))
    assert path.read_bytes() == BODY
    assert found == digest(BODY)
    assert path == tmp_path / found / "w.pth"
    assert seen[-1] == (len(BODY), len(BODY))
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("validator", ["etag", "date", "none"])
def test_a_cut_connection_is_continued_not_begun_again(tmp_path: Path, validator: str) -> None:
    script = Script([BODY], ["cut", "cut", "cut"], validator)
    with server(script) as url:
        path, _ = fetch(source(url), tmp_path, patience=QUICK)
    assert path.read_bytes() == BODY
    assert script.sent == len(BODY)
    assert [asked[1] is None for asked in script.asked] == [True, False, False, False]


@pytest.mark.parametrize(("validator", "again"), [("etag", False), ("weak", True), ("none", True)])
def test_without_a_known_hash_only_a_strong_validator_lets_continue(
    tmp_path: Path, validator: str, again: bool
) -> None:
    script = Script([BODY], ["cut"], validator)
    with server(script) as url:
        path, found = fetch(source(url, known=False), tmp_path, patience=QUICK)
    assert path.read_bytes() == BODY
    assert found == digest(BODY)
    assert (script.asked[1][1] is None) == again


def test_a_file_that_changes_between_two_requests_is_never_mixed(tmp_path: Path) -> None:
    for validator in ("etag", "weak", "none"):
        script = Script([BODY, OTHER], ["cut", "change"], validator)
        with server(script) as url:
            path, found = fetch(source(url, known=False), tmp_path / validator, patience=QUICK)
        assert path.read_bytes() == OTHER
        assert found == digest(OTHER)


def _outcome(source: Source, folder: Path) -> bytes | str:
    """The content of the file, or the line of the error."""
    try:
        path, found = fetch(source, folder, patience=QUICK)
    except WeightsError as error:
        return str(error)
    body = path.read_bytes()
    return body if digest(body) == found else "a file under a hash that is not its own"


def test_two_hundred_sequences_of_faults(tmp_path: Path) -> None:
    """Whatever a server does, what is in the cache is one of the files it has, whole."""
    ended = {bytes: 0, str: 0}
    for seed in range(200):
        chance = random.Random(seed)
        faults = chance.choices([f for f in FAULTS if f != "stall"], k=chance.randint(0, 6))
        if seed % 20 == 0:
            faults.insert(0, "stall")
        known = seed % 2 == 0
        validator = chance.choice(["etag", "weak", "date" if known else "etag", "none"])
        folder = tmp_path / str(seed)
        with server(Script([BODY, OTHER], list(faults), validator, stall=0.4)) as url:
            mirror = [f"{url}/mirror.pth"] if chance.random() < 0.3 else []
            found = _outcome(source(url, *mirror, known=known), folder)
        ended[type(found)] += 1
        if isinstance(found, str):
            assert found.startswith("a/b could not be downloaded"), faults
            assert "\n" not in found
            assert not held(folder), faults
        elif known:
            assert found == BODY, faults
        elif "wrong" not in faults:  # whole wrong answers are right, for all anyone can know
            assert found in (BODY, OTHER), faults
    assert ended[bytes] > 60
    assert ended[str] > 20


def test_a_broken_range_costs_one_more_download_and_no_wrong_file(tmp_path: Path) -> None:
    script = Script([BODY], ["cut", "shifted"])
    with server(script) as url:
        path, _ = fetch(source(url), tmp_path, patience=QUICK)
    assert path.read_bytes() == BODY


def test_a_wrong_file_is_refused_and_the_mirror_is_asked(tmp_path: Path) -> None:
    with server(Script([OTHER])) as wrong, server(Script([BODY])) as right:
        path, _ = fetch(source(wrong, f"{right}/w.pth"), tmp_path, patience=QUICK)
        assert path.read_bytes() == BODY
        with pytest.raises(WeightsError, match="other bytes than expected"):
            fetch(source(wrong), tmp_path / "alone", patience=QUICK)
    assert not held(tmp_path / "alone")


def test_a_wrong_size_is_refused_before_a_byte_is_taken(tmp_path: Path) -> None:
    script = Script([BODY])
    with server(script) as url, pytest.raises(WeightsError, match="has 200000 bytes, not 12"):
        fetch(source(url, known=False, size=12), tmp_path, patience=QUICK)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("address", ["http://example.org/w.pth", "ftp://example.org/w.pth"])
def test_only_https_leaves_this_machine(tmp_path: Path, address: str) -> None:
    with pytest.raises(WeightsError, match="not an https address"):
        fetch(Source("a/b", [address], None, 5, "w.pth"), tmp_path)


def test_a_file_address_is_copied_and_compared(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(BODY)
    address = (tmp_path / "x.bin").as_uri()
    path, _ = fetch(Source("a/b", [address], digest(BODY), None, "w.pth"), tmp_path / "cache")
    assert path.read_bytes() == BODY
    with pytest.raises(WeightsError, match="other bytes"):
        fetch(Source("a/b", [address], digest(OTHER), None, "w.pth"), tmp_path / "second")


def test_messages_hold_no_secrets(tmp_path: Path) -> None:
    with server(Script([BODY], ["404"] * 9)) as url:
        secret = url.replace("127.0.0.1", "user:pass@127.0.0.1") + "/w.pth?token=abc"
        with pytest.raises(WeightsError) as caught:
            fetch(Source("a/b", [secret], None, None, "w.pth"), tmp_path, patience=QUICK)
    assert "pass" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_offline_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_OFFLINE", "1")

    def refuse(*words: object, **more: object) -> None:
        raise AssertionError

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(WeightsError, match="ZOO_OFFLINE"):
        fetch(Source("a/b", ["https://example.org/w.pth"], None, None, "w.pth"), tmp_path)


def _pull(url: str, folder: str) -> None:
    fetch(source(url), Path(folder), patience=Patience(wait=0.01))


def test_eight_processes_download_once(tmp_path: Path) -> None:
    script = Script([BODY])
    with server(script) as url:
        context = multiprocessing.get_context("fork")
        many = [context.Process(target=_pull, args=(url, str(tmp_path))) for _ in range(8)]
        for one in many:
            one.start()
        for one in many:
            one.join()
    assert [one.exitcode for one in many] == [0] * 8
    assert len(script.asked) == 1
    assert held(tmp_path)[0].read_bytes() == BODY


def test_another_process_goes_on_where_a_killed_one_was(tmp_path: Path) -> None:
    script = Script([BODY], ["stall"], stall=3.0)
    with server(script) as url:
        one = multiprocessing.get_context("fork").Process(target=_pull, args=(url, str(tmp_path)))
        one.start()
        part = tmp_path / f"{digest(BODY)}.part"
        end = time.monotonic() + 10
        while not (part.exists() and script.sent) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(one.pid or 0, signal.SIGKILL)
        one.join()
        left = part.stat().st_size
        path, _ = fetch(source(url), tmp_path, patience=QUICK)
    assert path.read_bytes() == BODY
    assert script.asked[1][1] == (f"bytes={left}-" if left else None)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with server(Script([BODY])) as url, pytest.raises(WeightsError, match="cannot be written"):
        fetch(source(url), tmp_path / "file" / "cache")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(place)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_a_full_disk_is_one_line(small_disk: Path) -> None:
    with (
        server(Script([BODY])) as url,
        pytest.raises(ZooError, match=r"MB are needed|disk is full"),
    ):
        fetch(source(url), small_disk, patience=QUICK)
    assert not held(small_disk)


def test_a_disk_that_fills_while_writing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo import files, resuming

    def full(self: object, answer: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "need_space", lambda *words: None)
    monkeypatch.setattr(resuming.Hasher, "add", full)
    with server(Script([BODY])) as url, pytest.raises(ZooError, match="the disk is full"):
        fetch(source(url), tmp_path, patience=QUICK)
    assert not held(tmp_path)
