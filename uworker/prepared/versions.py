"""What a proof was made with: this project's own code, and the packages. Imports none of them.

A report keeps it in `versions`, and whoever uses the model compares it with what is installed now.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from uworker.prepared.files import digest_of_lines, sha256_of

CODE, MACHINE = "code", "machine"
_MODULES = ("DECIMER", "tensorflow", "numpy", "onnx", "onnxruntime", "PIL", "cv2")
# How it is asked for and chosen has no part in what a model says.
_NO_PART = frozenset({"__init__.py", "choice.py", "cli.py", "versions.py"})
_ENGINES = ("prepared.py", "preprocessing.py", "spelling.py")


def versions_now() -> dict[str, str]:
    """Of all that has a hand in a proof; TensorFlow's distribution is one of several builds."""
    distributions = packages_distributions()
    packages = {name: version(name) for name in sorted(distributions[module][0] for module in _MODULES)}
    return packages | {MACHINE: platform.machine(), CODE: code_digest()}


def what_differs(proved_with: Mapping[str, str], *, absent_differs: bool) -> list[str]:
    """Name what is another one here than the proof was made with, one text for each.

    Args:
        proved_with: The report's `versions`; one without the code's digest is of before there was one.
        absent_differs: Whether a package counts that is not installed here at all.
    """
    known = {CODE: "", **proved_with}
    differing = []
    for name, then in known.items():
        now = _now(name)
        if name == CODE and now != then:
            differing.append("this project's code")
        elif now is None and absent_differs:
            differing.append(f"{name} {then}, which is not installed")
        elif now not in (None, then):
            differing.append(f"{name} {then}, now {now}")
    return differing


def code_digest() -> str:
    """One digest of this project's code that translates, reads, preprocesses and spells, and that proves it."""
    here = Path(__file__).parent
    engines = here.parent / "engines"
    sources = [path for path in here.glob("*.py") if path.name not in _NO_PART]
    sources += [engines / name for name in _ENGINES]
    return digest_of_lines({path.relative_to(here.parent).as_posix(): sha256_of(path) for path in sources})


def _now(name: str) -> str | None:
    if name == CODE:
        return code_digest()
    if name == MACHINE:
        return platform.machine()
    try:
        return version(name)
    except PackageNotFoundError:
        return None
