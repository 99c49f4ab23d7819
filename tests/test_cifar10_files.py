"""download_cifar10 against a real HTTP server on this machine, with a small archive of the real one's layout."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from datamodules import cifar10_files
from datamodules.cifar10_files import download_cifar10

FOLDER, NAME = "cifar-10-batches-py", "cifar-10-python.tar.gz"
FILES = {name: hashlib.sha512(name.encode()).digest() * 1000 for name in ("data_batch_1", "test_batch", "batches.meta")}
with tarfile.open(fileobj=(PACKED := io.BytesIO()), mode="w:gz") as tar:
    for name, content in FILES.items():
        member = tarfile.TarInfo(f"{FOLDER}/{name}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
GOOD = PACKED.getvalue()
MD5 = hashlib.md5(GOOD).hexdigest()
# what a mirror sends, of how many bytes in its own words, and the cause that the error names
BAD: dict[str, tuple[bytes, int, str]] = {
    "missing": (b"", 0, "404"),
    "wrong": (GOOD[::-1], len(GOOD), "corrupted"),
    "interrupted": (GOOD[: len(GOOD) // 2], len(GOOD), "corrupted"),
    "silent": (b"", len(GOOD), "timed out"),
}


class Handler(BaseHTTPRequestHandler):
    is_over = threading.Event()
    two_clients = threading.Barrier(2)

    def do_GET(self) -> None:
        name = self.path[1:]
        content, length, _ = BAD.get(name, (GOOD, len(GOOD), ""))
        if name == "together":
            self.two_clients.wait(20)
        self.send_response(404 if name == "missing" else 200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        if name == "silent":
            self.is_over.wait(20)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[Callable[[str], str]]:
    with pytest.MonkeyPatch.context() as patch, ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        patch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield lambda name: f"http://127.0.0.1:{server.server_port}/{name}"
        Handler.is_over.set()
        server.shutdown()


def assert_whole(root: Path, *others: str) -> None:
    assert {path.name: path.read_bytes() for path in (root / FOLDER).iterdir()} == FILES
    assert {path.name for path in root.iterdir()} == {FOLDER, *others}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mirror_is_named_and_the_next_one_used(url, tmp_path: Path, name: str, capfd, monkeypatch) -> None:
    monkeypatch.setattr(cifar10_files, "TIMEOUT", 1.0 if name == "silent" else 30.0)
    with pytest.raises(MisconfigurationException, match=f"{url(name)}: .*{BAD[name][2]}.*put {NAME} into"):
        download_cifar10(tmp_path, [url(name)], MD5)
    assert not [*tmp_path.iterdir()]
    download_cifar10(tmp_path / "new", [url(name), url("good")], MD5)
    assert_whole(tmp_path / "new")
    assert f"CIFAR-10: downloading {url('good')}\n" in capfd.readouterr().err


def test_an_archive_at_hand_is_used_and_kept(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(GOOD[:-1])
    with pytest.raises(MisconfigurationException, match=f"{NAME} is not the CIFAR-10 archive"):
        download_cifar10(tmp_path, [], MD5)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    (tmp_path / NAME).write_bytes(GOOD)
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.jpg").touch()
    download_cifar10(tmp_path, [], MD5)
    assert_whole(tmp_path, NAME, "holiday")


def test_two_at_once(url, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: download_cifar10(tmp_path, [url("together")], MD5), range(2)))
    assert_whole(tmp_path)
