"""Brings wllama (llama.cpp as WebAssembly) into rag/serve/ondevice/vendor, from its npm package and nowhere else.

    python scripts/vendor_wllama.py                     # asks npm for the package
    python scripts/vendor_wllama.py wllama-3.8.1.tgz    # takes one that is here

The two files that the page runs are taken only if they have the hashes below; a new version means new hashes, which are
changed here by hand, after a look at what the version does. Nothing of the package is run.
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

PACKAGE: Final = "@wllama/wllama"
VERSION: Final = "3.8.1"
FILES: Final = {
    "index.min.js": ("package/esm/index.min.js", "834d7be963172248caf13c6f2ae786009b43edfeefc85eeadc20609e8447d118"),
    "wllama.wasm": ("package/esm/wasm/wllama.wasm", "551f13439366eff11e057b1b91fe46a7fdac29d56d67372d4c5f19a549dfe70c"),
}
"""Name in our folder: the path in the package, and its SHA-256."""
LICENCE: Final = "package/LICENCE"
FOLDER: Final = Path(__file__).resolve().parent.parent / "rag/serve/ondevice/vendor" / VERSION

# Compiled into the module; its package carries no copy of this.
LICENSE_LLAMA_CPP: Final = """\
wllama.wasm holds llama.cpp and ggml (https://github.com/ggml-org/llama.cpp).

MIT License

Copyright (c) 2023-2026 The ggml authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "archive", nargs="?", type=Path, help=f"an npm package of {PACKAGE} {VERSION}; else npm fetches it"
    )
    given: Path | None = parser.parse_args().archive
    with tempfile.TemporaryDirectory() as folder:
        vendor(given or fetch(Path(folder)))


def fetch(folder: Path) -> Path:
    """The package as npm packs it."""
    command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        sys.exit(f"npm is not installed. Install it, or name an archive of {PACKAGE} {VERSION}.")
    except subprocess.CalledProcessError as error:
        sys.exit(f"npm could not fetch {PACKAGE} {VERSION} (status {error.returncode}).")
    return next(folder.glob("*.tgz"))


def vendor(archive: Path) -> None:
    """All files or none: a wrong one leaves what is there."""
    with tarfile.open(archive) as package:
        found = {name: member(package, path) for name, (path, _) in FILES.items()}
        licence = member(package, LICENCE)
    for name, (path, wanted) in FILES.items():
        digest = hashlib.sha256(found[name]).hexdigest()
        if digest != wanted:
            sys.exit(f"{path} has the SHA-256 {digest}, and should have {wanted}. Nothing was written.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    found |= {"LICENCE": licence, "LICENSE.llama.cpp": LICENSE_LLAMA_CPP.encode()}
    for name, data in found.items():
        (FOLDER / name).write_bytes(data)
        print(f"{FOLDER.name}/{name}: {len(data):,} bytes")


def member(package: tarfile.TarFile, path: str) -> bytes:
    try:
        file = package.extractfile(path)
    except KeyError:
        file = None
    if file is None:
        sys.exit(f"The archive holds no {path}.")
    return file.read()


if __name__ == "__main__":
    main()
