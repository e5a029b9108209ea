"""Write constraints.txt: the newest releases within the bounds of pyproject.toml (`make constraints`).

Installs all dependencies into a new virtual environment outside of the repository; needs a package index.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import tomllib
import venv
from itertools import chain

ROOT = pathlib.Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
HEADER = """\
# The releases that `make install` installs; written by `make constraints`, not by hand.
# Public versions: 2.13.0 also accepts 2.13.0+cpu. The CUDA packages of torch follow torch's own pins.
"""


def main() -> int:
    """Install the dependencies without constraints, and write the releases that were chosen."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    with tempfile.TemporaryDirectory(prefix="iccm-constraints-") as directory:
        venv.create(directory, with_pip=True)
        pip = [f"{directory}/bin/python", "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *chain(*groups)], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, stdout=subprocess.PIPE, text=True).stdout
    CONSTRAINTS.write_text(HEADER + parse_releases(frozen), encoding="utf-8")
    return 0


def parse_releases(frozen: str) -> str:
    """Keep the ``name==version`` lines of `pip freeze`, without local versions and CUDA packages."""
    lines = (line.partition("+")[0] for line in frozen.splitlines() if "==" in line and " " not in line)
    released = [line for line in lines if not line.startswith(("nvidia-", "cuda-", "triton="))]
    return "\n".join(sorted(released, key=str.lower)) + "\n"


if __name__ == "__main__":
    sys.exit(main())
