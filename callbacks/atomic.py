"""Files that are either whole or absent: written aside, flushed to the disk, then renamed."""

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Creates or replaces ``path`` with what ``write`` puts into a file; on any failure ``path`` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Writes ``standard_json``."""
    text = standard_json(content) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def standard_json(content: Any) -> str:
    """Standard JSON, indented; nan and infinity, which it lacks, become null."""
    return json.dumps(_standard(content), indent=2, allow_nan=False)


def _standard(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _standard(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_standard(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, each whole or absent, and read without running any code of theirs."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        whole = io.BytesIO()  # torch.save would tell of a full disk by a RuntimeError of its own
        torch.save(checkpoint, whole)
        write_atomically(Path(path), lambda file: file.write(whole.getbuffer()))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        return super().load_checkpoint(path, map_location, weights_only=True)
