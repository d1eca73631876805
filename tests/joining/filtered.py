"""Runs a program under the system call filter of a systemd unit: `python -m tests.joining.filtered UNIT PROGRAM...`.

What systemd would do with `SystemCallFilter=` and `SystemCallErrorNumber=EPERM`, by libseccomp, where no systemd runs.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

_ALLOW = 0x7FFF0000  # seccomp.h SCMP_ACT_ALLOW
_ERRNO_EPERM = 0x00050000 | 1


def calls(unit: Path) -> frozenset[str]:
    """Return the system calls that a unit allows, its groups resolved by `systemd-analyze`."""
    line = next(line for line in unit.read_text().splitlines() if line.startswith("SystemCallFilter="))
    found: set[str] = set()
    todo, seen = line.partition("=")[2].split(), set[str]()
    while todo:
        word = todo.pop()
        if not word.startswith("@"):
            found.add(word)
        elif word not in seen:
            seen.add(word)
            text = subprocess.run(
                ["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True
            ).stdout
            todo += [item.strip() for item in text.splitlines()[1:] if item.strip() and "#" not in item]
    return frozenset(found)


def main(argv: list[str]) -> None:
    """Confine this process and become the program."""
    allowed = calls(Path(argv[0]))
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
    ]  # fmt: skip
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    context = library.seccomp_init(_ERRNO_EPERM)
    for name in allowed:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # negative: of another architecture, or of a newer kernel than this library knows
            assert library.seccomp_rule_add_array(context, _ALLOW, number, 0, None) == 0, name
    assert library.seccomp_load(context) == 0
    os.execvp(argv[1], argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
