"""What MLflow's libraries say is told in a line of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import good, run_zoo
from tests.servers import free_port
from zoo.complaints import absent, complaint


class Coded(Exception):
    """An error as MLflow raises them."""

    error_code = "RESOURCE_DOES_NOT_EXIST"


REQUEST = (
    "API request to http://u:hunter2@h:5/api/2.0/x failed with exception "
    "HTTPConnectionPool(host='h', port=5): Max retries exceeded with url: /api?token=hunter2 "
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            REQUEST + "(Caused by NewConnectionError(\"HTTPConnection(host='h', port=5): Failed to "
            'establish a new connection: [Errno 111] Connection refused"))',
            "cannot be reached: Connection refused",
        ),
        (
            REQUEST
            + "(Caused by NameResolutionError(\"HTTPConnection(host='h', port=5): Failed to "
            "resolve 'h' ([Errno -2] Name or service not known)\"))",
            "cannot be reached: Name or service not known",
        ),
        (
            REQUEST + "(Caused by ReadTimeoutError(\"HTTPConnectionPool(host='h', port=5): Read "
            'timed out. (read timeout=10)"))',
            "cannot be reached: timed out",
        ),
        (
            REQUEST + "(Caused by ResponseError('too many 503 error responses'))",
            "cannot be reached: 503 error responses",
        ),
        (
            "got unsupported URI 'x://y' for model registry data storage. Supported: ['', 'file']",
            "is no address of a store; write http://HOST:PORT or sqlite:///FILE",
        ),
        ("Run with id=1\n not found.", "Run with id=1 not found"),
        ("at http://u:hunter2@h/x", "at http://h/x"),
    ],
)
def test_a_complaint_is_short_and_without_credentials(said: str, told: str) -> None:
    assert complaint(RuntimeError(said)) == told


def test_long_ones_are_cut() -> None:
    assert len(complaint(RuntimeError("x" * 5000))) == 300


def test_what_a_store_has_not_got_is_told_from_a_store_that_is_none() -> None:
    assert absent(Coded("Registered Model with name=x not found"))
    assert not absent(Coded("got unsupported URI 'x://y'"))
    assert not absent(RuntimeError("not found"))


def test_commands_tell_it_in_one_line(tracked: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    for words, code, line in (
        (("models", "--uri", away), 1, f"{away}: cannot be reached: Connection refused; --uri"),
        (("models", "--uri", "hello://y"), 1, "hello://y: is no address of a store"),
        (("models", "--uri", str(tracked)), 1, "is no address of a store; write http://HOST:PORT"),
        (
            ("models", "history", "medusa", "--out", tracked),
            1,
            "zoo-medusa not found; `zoo models`",
        ),
        (
            ("export", "models:/zoo-x/1", "format=pt2", f"tracking.uri={away}"),
            1,
            f"weights=models:/zoo-x/1: {away} cannot be reached: Connection refused; tracking.uri=",
        ),
        (
            ("export", "models:/zoo-x/1", "format=pt2", f"out={tracked}"),
            2,
            "name=zoo-x not found (in sqlite",
        ),
    ):
        shown = run_zoo(*words)
        assert line in shown.err, words
        assert (shown.code, shown.err.count("\n")) == (code, 1), shown.err


def test_a_store_without_models_is_no_error(tracked: Path) -> None:
    assert "no model is registered" in good("models", "--out", tracked).out
