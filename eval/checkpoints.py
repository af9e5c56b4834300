"""Learned judges on disk: where they are, and what tells one from another.

A result file holds the hub revision and the fingerprint of every judge; where they are not what the protocol names, it
says so among its deviations.
"""

import functools
import hashlib
from pathlib import Path

from protocol import Protocol

# Weights and settings; a Hub folder may hold the same weights for other libraries, which nothing here loads.
SUFFIXES = (".safetensors", ".bin", ".pt", ".json", ".jinja", ".model", ".txt")


def checkpoint(name: str, folder: Path | None, revision: str | None = None) -> str:
    """The folder (or file) of a learned judge; nothing is downloaded here."""
    path = None if folder is None else folder / name
    if path is None or not path.exists():
        where = folder or "JUDGES"
        get = f"hf download {name}{f' --revision {revision}' if revision else ''} --local-dir {where}/{name}"
        if Path(name).suffix == ".pt":
            get = f"put the file there (docs/evaluation.md says whose it is; sha256 {revision})"
        raise ValueError(f"No judge {name} in {where}: {get}, then --judges {where}")
    return str(path)


@functools.cache  # a run asks once for every system and protocol
def fingerprint(path: Path) -> str:
    """sha256 of a file, or over the names and contents of all weights and settings of a checkpoint folder."""
    total = hashlib.sha256()
    for each in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES):
        if each != path:
            total.update(f"{each.relative_to(path)} {each.stat().st_size}\n".encode())
        with each.open("rb") as file:
            while block := file.read(1 << 22):
                total.update(block)
    return total.hexdigest()


def revision(path: Path) -> str | None:
    """The commit that `hf download --local-dir` noted in a folder, of a file its sha256; None: not known."""
    if path.is_file():
        return fingerprint(path)
    notes = (path / ".cache" / "huggingface" / "download").rglob("*.metadata")
    commits = {line for note in notes for line in note.read_text(encoding="utf-8").splitlines()[:1]}
    return commits.pop() if len(commits) == 1 else None


def identify(protocol: Protocol, folder: Path | None) -> dict[str, dict]:
    """{judge: {"revision", "fingerprint"}} of the learned judges of a protocol."""
    paths = {name: Path(checkpoint(name, folder, wanted)) for name, wanted in protocol.checkpoints.items()}
    return {name: {"revision": revision(p), "fingerprint": fingerprint(p)} for name, p in paths.items()}


def deviations(protocol: Protocol, learned: dict[str, dict], versions: dict) -> list[str]:
    """Judges that are not of the revision that the protocol names.

    Args:
        learned: of `identify`.
        versions: {package: version}, for judges that are packages; their revision reads "NAME VERSION, NAME VERSION".
    """
    found = []
    for name, wanted in protocol.checkpoints.items():
        if wanted and learned[name]["revision"] != wanted:
            found.append(f"judge {name} of revision {learned[name]['revision'] or 'not known'}, not {wanted}")
    for package, wanted in protocol.packages.items():
        if versions.get(package) != wanted:
            found.append(f"judge {package} {versions.get(package)}, not {wanted}")
    return found
