"""download_cifar10 against a real HTTP server on this machine, misbehaving in every way we thought of."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import pytest
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from datamodules import download
from datamodules.download import download_cifar10

FOLDER = "cifar-10-batches-py"
FILES = {
    name: random.Random(name).randbytes(60_000)  # noise: the archive stays larger than any buffer on its way
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "test_batch", "batches.meta")
}


def special(kind: bytes, name: str, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def archive(*extra: tarfile.TarInfo, files: dict[str, bytes] | None = None) -> bytes:
    """A small archive with the layout of the real one."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        if files is None:
            tar.addfile(special(tarfile.DIRTYPE, FOLDER))
        for name, content in ({f"{FOLDER}/{k}": v for k, v in FILES.items()} if files is None else files).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member)
    return packed.getvalue()


GOOD = archive()
HALF = len(GOOD) // 2


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers /NAME with the method of that name; the last part of the path may give further bytes."""

    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        getattr(self, self.path[1:])()

    def begin(self, status: int = 200, length: int | None = len(GOOD), **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()
        self.server.sent += len(content)

    def ranged(self, content: bytes) -> None:
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            whole = len(content)
            self.begin(206, whole - start, Content_Range=f"bytes {start}-{whole - 1}/{whole}")
            self.send(content[start:])
        else:
            self.begin(length=len(content))
            self.send(content)

    def good(self) -> None:
        self.ranged(GOOD)

    def other(self) -> None:
        self.ranged(self.server.content)

    def norange(self) -> None:
        self.begin()
        self.send(GOOD)

    def unsized(self) -> None:  # HTTP/1.0: the end of the connection is the end of the file
        self.begin(length=None)
        self.send(GOOD)

    def chunked(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.begin(length=None, Transfer_Encoding="chunked", Connection="close")
        self.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD))

    def encoded(self) -> None:  # what some servers say of every .gz file
        self.begin(Content_Encoding="gzip")
        self.send(GOOD)

    def held(self) -> None:  # half, and the rest when the test says so
        self.begin()
        self.send(GOOD[:HALF])
        self.server.go_on.wait(20)
        self.send(GOOD[HALF:])

    def redirect(self) -> None:
        self.begin(302, 0, Location="/good")

    def to_file(self) -> None:
        self.begin(302, 0, Location=Path(__file__).as_uri())

    def to_ftp(self) -> None:
        self.begin(302, 0, Location="ftp://127.0.0.1/cifar-10-python.tar.gz")

    def loop(self) -> None:
        self.begin(302, 0, Location="/loop")

    def missing(self) -> None:
        self.begin(404, 0)

    def empty(self) -> None:
        self.begin(204, None)

    def silent(self) -> None:  # takes the request, never answers
        self.server.go_on.wait(20)

    def stall(self) -> None:
        self.begin()
        self.send(GOOD[:HALF])
        self.server.go_on.wait(20)

    def trickle(self) -> None:  # never silent for as long as the time-out, never done either
        self.begin()
        for at in range(200):
            if self.server.go_on.wait(0.05):
                break
            self.send(GOOD[at : at + 1])

    def truncate(self) -> None:
        self.begin()
        self.send(GOOD[:HALF])

    def unsized_truncate(self) -> None:
        self.begin(length=None)
        self.send(GOOD[:HALF])

    def reset(self) -> None:
        self.begin()
        self.send(GOOD[:HALF])
        # SO_LINGER with no time: close() sends RST instead of FIN
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def html(self) -> None:
        page = b"<html>Please log in</html>"
        self.begin(length=len(page), Content_Type="text/html; charset=utf-8")
        self.send(page)

    def untyped_html(self) -> None:
        page = b"<html>Please log in</html>"
        self.begin(length=len(page))
        self.send(page)

    def wrong(self) -> None:
        self.ranged(GOOD[:-100] + bytes(100))

    def too_long(self) -> None:
        self.begin(length=len(GOOD) + 1)
        self.send(GOOD + b"x")

    def wrong_range(self) -> None:
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.begin(206, len(GOOD) - start, Content_Range=f"bytes 0-{len(GOOD) - start - 1}/{len(GOOD)}")
        self.send(GOOD[: len(GOOD) - start])

    def no_http(self) -> None:
        self.send(b"\x1b[31mno\r\nHTTP\r\n\r\n")


class Server(ThreadingHTTPServer):
    asked: list[tuple[str, str | None]]
    sent = 0  # bytes of bodies
    content = b""  # what /other serves
    go_on: threading.Event

    def __call__(self, *names: str) -> list[str]:
        return [f"http://127.0.0.1:{self.server_port}/{name}" for name in names]

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients hang up on purpose here


@pytest.fixture(autouse=True)
def small_and_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    known_as(GOOD, monkeypatch)
    monkeypatch.setattr(download, "CONNECT_TIMEOUT", 2.0)
    monkeypatch.setattr(download, "STALL_TIMEOUT", 0.4)


def known_as(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this the archive that is asked for."""
    monkeypatch.setattr(download, "SIZE", len(content))
    monkeypatch.setattr(download, "MD5", md5(content))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked, server.go_on = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


def part_of(root: Path) -> Path:
    return root / "cifar-10-python.tar.gz.part"


def left(root: Path) -> set[str]:
    """What lies in ``root``, the lock aside: some releases of filelock leave it there."""
    return {path.name for path in root.iterdir()} - {"cifar-10-python.tar.gz.lock"}


def assert_whole(root: Path) -> None:
    assert {path.name: path.read_bytes() for path in (root / FOLDER).iterdir()} == FILES
    assert left(root) == {FOLDER}


def fails(act: Callable[[], None]) -> str:
    with pytest.raises(MisconfigurationException) as caught:
        act()
    message = str(caught.value)
    assert message.isprintable(), "one line, and nothing that steers a terminal"
    assert "data_root (--data_root, CIFAR10_ROOT)" in message
    return message


@pytest.mark.parametrize("name", ["good", "redirect", "unsized", "chunked", "encoded"])
def test_a_good_mirror(server: Server, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "new folder é" / "data"
    download_cifar10(root, server(name))
    assert_whole(root)
    out, err = capfd.readouterr()
    assert not out and "CIFAR-10 from 127.0.0.1" in err and "\r" not in err, "plain where there is no terminal"
    asked = len(server.asked)
    download_cifar10(root, server(name))
    assert len(server.asked) == asked, "what is there is not fetched again"


BAD = {
    "stall": f"timed out after {HALF:,} of {len(GOOD):,} bytes",
    "trickle": "all but stalled",
    "silent": "timed out",
    "truncate": f"broke off after {HALF:,} of {len(GOOD):,} bytes",
    "unsized_truncate": "broke off",
    "reset": "reset" if os.name == "posix" else "forcibly closed",
    "html": "web page",
    "untyped_html": f"offers 26 bytes, not {len(GOOD):,}",
    "wrong": "md5",
    "too_long": f"offers {len(GOOD) + 1:,} bytes",
    "missing": "HTTP 404",
    "empty": "HTTP 204",
    "loop": "redirects",
    "to_file": "No connection adapters",
    "to_ftp": "No connection adapters",
    "no_http": "",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mirror(server: Server, tmp_path: Path, name: str) -> None:
    message = fails(lambda: download_cifar10(tmp_path, server(name)))
    assert f"127.0.0.1:{server.server_port}: " in message and BAD[name] in message
    assert f"put cifar-10-python.tar.gz (md5 {md5(GOOD)}) into {tmp_path} by hand" in message
    assert left(tmp_path) <= {part_of(tmp_path).name}, "at most the start of the archive, to go on from"
    if part_of(tmp_path).exists():
        assert GOOD.startswith(part_of(tmp_path).read_bytes())
    # the same mirror before a good one costs nothing but time
    download_cifar10(tmp_path, server(name, "good"))
    assert_whole(tmp_path)


def test_every_mirror_and_its_cause_is_named(server: Server, tmp_path: Path) -> None:
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{unused.getsockname()[1]}"
        more = [f"http://{closed}/x", "file:///etc/passwd", "data:,x", "nonsense", "http://[bad/"]
        message = fails(lambda: download_cifar10(tmp_path, server("missing", "html") + more))
    for cause in (
        ": HTTP 404; ",
        ": answered a web page",
        f"{closed}: ",
        "file:///etc/passwd: ",
        "nonsense: ",
        "[bad: ",
    ):
        assert cause in message
    assert "no mirror" in fails(lambda: download_cifar10(tmp_path, []))
    assert left(tmp_path) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets connections to a full queue wait")
def test_connecting_has_its_own_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CONNECT_TIMEOUT", 0.3)
    monkeypatch.setattr(download, "STALL_TIMEOUT", 20.0)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for client in (first, second):  # fill the queue of connections that nobody accepts
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        begun = time.monotonic()
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        assert "timed out" in fails(lambda: download_cifar10(tmp_path, [url]))
        assert time.monotonic() - begun < 5


def test_goes_on_where_another_mirror_broke_off(server: Server, tmp_path: Path) -> None:
    download_cifar10(tmp_path, server("missing", "truncate", "html", "good"))
    assert server.asked[-1] == ("/good", f"bytes={HALF}-"), "the login page did not cost the first half"
    assert_whole(tmp_path)


def test_only_the_missing_bytes_are_sent(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(GOOD[:-1000])
    download_cifar10(tmp_path, server("good"))
    assert server.sent == 1000
    assert_whole(tmp_path)


def test_a_whole_part_needs_no_network(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(GOOD)
    download_cifar10(tmp_path, server("good"))
    assert server.asked == []
    assert_whole(tmp_path)


@pytest.mark.parametrize("size", [1000, len(GOOD), len(GOOD) + 1])
def test_a_part_of_wrong_bytes_is_thrown_away(server: Server, tmp_path: Path, size: int) -> None:
    part_of(tmp_path).write_bytes(bytes(size))
    download_cifar10(tmp_path, server("good"))
    assert server.asked[-1] == ("/good", None)
    assert_whole(tmp_path)


def test_without_range_support_it_begins_again(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(bytes(1000))
    download_cifar10(tmp_path, server("norange"))
    assert server.asked == [("/norange", "bytes=1000-")] and server.sent == len(GOOD)
    assert_whole(tmp_path)


def test_another_range_than_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(GOOD[:1000])
    assert "another range" in fails(lambda: download_cifar10(tmp_path, server("wrong_range")))
    assert part_of(tmp_path).read_bytes() == GOOD[:1000] and left(tmp_path) == {part_of(tmp_path).name}


def test_placed_by_hand(server: Server, tmp_path: Path) -> None:
    placed = tmp_path / "cifar-10-python.tar.gz"
    placed.write_bytes(GOOD[:-1])
    message = fails(lambda: download_cifar10(tmp_path, server("good")))
    assert str(placed) in message and f"{len(GOOD) - 1:,} bytes" in message
    placed.write_bytes(GOOD[:-1] + b"x")
    assert "md5" in fails(lambda: download_cifar10(tmp_path, server("good")))
    assert left(tmp_path) == {placed.name}
    placed.write_bytes(GOOD)
    part_of(tmp_path).write_bytes(GOOD[:1000])
    download_cifar10(tmp_path, server("good"))
    assert server.asked == [] and placed.read_bytes() == GOOD, "no network, and the user's file is the user's"
    assert (tmp_path / FOLDER / "test_batch").read_bytes() == FILES["test_batch"]
    assert left(tmp_path) == {placed.name, FOLDER}


HOSTILE = {
    "parent": archive(files={f"{FOLDER}/a": b"a", f"{FOLDER}/../../evil": b"evil"}),
    "absolute": archive(files={"/tmp/evil": b"evil"}),
    "windows": archive(files={f"{FOLDER}/..\\..\\evil": b"evil"}),
    "drive": archive(files={f"{FOLDER}/c:evil": b"evil"}),
    "elsewhere": archive(files={f"{FOLDER}/a": b"a", "evil": b"evil"}),
    "symlink": archive(special(tarfile.SYMTYPE, f"{FOLDER}/link", "../..")),
    "hardlink": archive(special(tarfile.LNKTYPE, f"{FOLDER}/link", "/etc/passwd")),
    "device": archive(special(tarfile.CHRTYPE, f"{FOLDER}/null")),
    "fifo": archive(special(tarfile.FIFOTYPE, f"{FOLDER}/fifo")),
    "a file for a folder": archive(files={FOLDER: b"evil"}),
    "nothing": archive(files={}),
    "an empty folder": archive(special(tarfile.DIRTYPE, FOLDER), files={}),
    "no archive": b"no archive at all",
    "cut": GOOD[:HALF],
    "a folder in the folder": archive(files={f"{FOLDER}/a/evil": b"evil"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_archive_with_the_right_checksum_and_the_wrong_content(
    server: Server, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content, root = HOSTILE[name], tmp_path / "a" / "data"
    known_as(server.content, monkeypatch)
    message = fails(lambda: download_cifar10(root, server("other")))
    assert "cannot be unpacked" in message and str(part_of(root)) in message
    assert left(root) == {part_of(root).name} and not [*tmp_path.rglob("*evil*")]


def test_data_root_that_cannot_be_one(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for root in (file, file / "below"):
        assert str(root) in fails(lambda: download_cifar10(root, server("good")))  # noqa: B023
    assert file.read_text() == "mine" and server.asked == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs permissions that bind this user")
def test_data_root_without_permission(server: Server, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "Permission denied" in fails(lambda: download_cifar10(tmp_path, server("good")))
        assert left(tmp_path) == set()
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).symlink_to("/dev/full")  # each write ends in a real ENOSPC
    assert "No space left on device" in fails(lambda: download_cifar10(tmp_path, server("good", "good")))
    assert left(tmp_path) == {part_of(tmp_path).name} and len(server.asked) == 1, "no mirror is to blame"


def start_process(root: Path, url: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from datamodules import download; download.SIZE, download.MD5 = int(sys.argv[3]), sys.argv[4];"
        "download.download_cifar10(sys.argv[1], [sys.argv[2]])"
    )
    command = [sys.executable, "-c", code, str(root), url, str(len(GOOD)), md5(GOOD)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 40  # the process imports torch first
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_processes_at_once(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with start_process(tmp_path, server("held")[0]) as first:
        wait_for(lambda: server.sent)
        second = threading.Thread(target=download_cifar10, args=(tmp_path, server("held")))  # its lock is its own too
        second.start()
        wait_for(lambda: "waiting for another process" in capfd.readouterr().err)
        server.go_on.set()
        second.join()
        assert first.wait(20) == 0
    assert len(server.asked) == 1 and server.sent == len(GOOD)
    assert_whole(tmp_path)


def test_killed_in_the_middle_then_resumed(server: Server, tmp_path: Path) -> None:
    with start_process(tmp_path, server("held")[0]) as process:
        wait_for(lambda: part_of(tmp_path).exists() and part_of(tmp_path).stat().st_size)
        process.kill()
    have = part_of(tmp_path).stat().st_size
    assert 0 < have <= HALF
    (tmp_path / f"{FOLDER}.tmp" / FOLDER).mkdir(parents=True)  # as if an earlier one was killed while unpacking
    server.sent = 0
    download_cifar10(tmp_path, server("good"))
    assert server.asked[-1] == ("/good", f"bytes={have}-") and server.sent == len(GOOD) - have
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), OSError(errno.EOPNOTSUPP, "no"), NotImplementedError("no")]
)
def test_a_disk_without_locks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    def refuse(*args: object) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    download_cifar10(tmp_path, server("good"))
    assert_whole(tmp_path)
    assert capfd.readouterr().err.count(f"no file locks in {tmp_path}") == 1
