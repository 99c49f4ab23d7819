"""Where results come from: the command that makes them again."""

import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path


def command_line(resumes: Path | None = None) -> str:
    """The command of this process, to be typed again; ``resumes`` makes it one that resumes the run in that folder."""
    script, here = Path(sys.argv[0]), Path.cwd()
    name = script.relative_to(here) if script.is_relative_to(here) else script
    if resumes is None:
        return quoted("python", name, *sys.argv[1:])
    own = {"--run_dir", "--ckpt_path"}
    others = [arg for before, arg in pairwise(sys.argv) if before not in own and arg.partition("=")[0] not in own]
    return quoted("python", name, *others, "--run_dir", resumes, "--ckpt_path", "last")


def quoted(*words: object) -> str:
    """Words as they are typed into a terminal."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
