"""What the wheel and the source archive hold: ``python -m tests.distribution FOLDER``."""

from __future__ import annotations

import email
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent


def tracked() -> set[str]:
    """The files of the repository."""
    command = ["git", "ls-files"]
    return set(subprocess.check_output(command, cwd=ROOT, text=True).splitlines())


def differences(kind: str, found: set[str], expected: set[str]) -> Iterator[str]:
    yield from (f"{kind}: {name} does not belong in it" for name in sorted(found - expected))
    yield from (f"{kind}: {name} is missing" for name in sorted(expected - found))


def of_the_wheel(wheel: zipfile.ZipFile, files: set[str]) -> Iterator[str]:
    """What is wrong with a wheel: it holds the library, and nothing beside it."""
    names = set(wheel.namelist())
    about = {name for name in names if PurePosixPath(name).parts[0].endswith(".dist-info")}
    library = {name for name in files if name.startswith("reweight/")}
    yield from differences("the wheel", names - about, library)
    (metadata,) = (name for name in about if name.endswith("/METADATA"))
    headers = email.message_from_bytes(wheel.read(metadata))
    needed = [each for each in headers.get_all("Requires-Dist", []) if "extra ==" not in each]
    if sorted(each.partition(">=")[0] for each in needed) != ["numpy", "torch"]:
        yield f"the wheel: it needs {needed}, not torch and numpy only"
    if headers.get_payload(decode=True) != (ROOT / "README.md").read_bytes():
        yield "the wheel: its description is not README.md"


def of_the_archive(archive: tarfile.TarFile, files: set[str]) -> Iterator[str]:
    """What is wrong with a source archive: it holds what the repository does."""
    names = {PurePosixPath(each.name).parts[1:] for each in archive.getmembers()}
    found = {"/".join(parts) for parts in names}
    unneeded = {name for name in files if name.startswith(".github/")}
    yield from differences("the source archive", found, files - unneeded | {"PKG-INFO"})


def main(folder: Path) -> int:
    """Print what is wrong with the distributions in a folder."""
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    files = tracked()
    with zipfile.ZipFile(wheel) as opened, tarfile.open(archive) as tar:
        wrong = [*of_the_wheel(opened, files), *of_the_archive(tar, files)]
    print(*wrong or [f"{wheel.name} and {archive.name} hold what belongs in them"], sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
