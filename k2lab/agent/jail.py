"""The inside of the sandbox: a script that shuts itself in, then becomes the code to be run.

Started by `sandbox.py` as `python -I -S jail.py`, never imported. It reads one line of JSON from
its input, tells on descriptor 3 what it reached, and then is replaced by a fresh interpreter:

    new user, network, mount, pid, ipc and uts namespaces, no root in any of them;
    a file system of its own, with the interpreter and the system's libraries read-only;
    resource limits; no new privileges; and a system call filter, against processes of its own,
    further namespaces, mounts, sockets, tracing and leaving the process group.

Linux, x86-64 and AArch64. Elsewhere only the limits are reached, and said so.
Source: namespaces(7), mount_namespaces(7), seccomp(2), linux/seccomp.h, linux/filter.h.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

NEW_SPACES = 0x10000000 | 0x40000000 | 0x00020000 | 0x20000000 | 0x08000000 | 0x04000000
# CLONE_NEWUSER, NEWNET, NEWNS, NEWPID, NEWIPC, NEWUTS
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT, BIND, REC, PRIVATE = (
    1, 2, 4, 8, 32, 4096, 16384, 1 << 18,
)  # fmt: skip
KEPT = {4096: 1 << 21, 1024: 1 << 10, 2048: 1 << 11}  # statvfs relatime, noatime, nodiratime → MS_*
DETACH = 2
SET_DEATH_SIGNAL, SET_SECCOMP, DROP_BOUND, NO_NEW_PRIVILEGES = 1, 22, 24, 38
INSIDE = 1000  # user and group in there
TELL = 3  # descriptor of the report

MACHINES = {
    "x86_64": (
        0xC000003E, 56,
        (57, 58, 272, 308, 165, 166, 155, 101, 310, 311, 321, 298, 250, 248, 249, 323, 175, 313,
         246, 112, 109, 157, 304, 41),
    ),
    "aarch64": (
        0xC00000B7, 220,
        (97, 268, 40, 39, 41, 117, 270, 271, 280, 241, 219, 217, 218, 282, 105, 273, 104, 157, 154,
         167, 265, 198),
    ),
}  # fmt: skip
"""By machine: its audit number, `clone`, and what is refused: fork, vfork, unshare, setns, mount,
umount2, pivot_root, ptrace, process_vm_readv and _writev, bpf, perf_event_open, keyctl, add_key,
request_key, userfaultfd, init_module, finit_module, kexec_load, setsid, setpgid, prctl,
open_by_handle_at, socket (a network namespace does not hold vsock, which speaks to the host)."""

EVERYWHERE = (425, 428, 429, 430, 431, 432, 433, 442)
"""Refused, with the same number on all machines: io_uring_setup and the newer calls for mounts."""

CLONE_3, OF_A_THREAD = 435, 0x00010000
REFUSED, NOT_THERE = 1, 38  # EPERM, ENOSYS: then the C library asks the older call
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def main() -> None:
    """Shut in, and become the code."""
    asked = json.loads(sys.stdin.buffer.readline())
    if asked["level"] == "limits":
        limit(asked)
        become(asked, asked["folder"], "limits", "")
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        filters = MACHINES[platform.machine()]
        user, group = os.getuid(), os.getgid()
        checked(libc.unshare(NEW_SPACES), "unshare")
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{INSIDE} {user} 1"),
            ("gid_map", f"{INSIDE} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - no pathlib in here
                file.write(text)
        child = os.fork()  # the first process of the new pid namespace; with it all of them end
        if child:
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        checked(libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), "prctl")
        os.setpgid(0, 0)  # so that the code's own group is not that of its warder
        furnish(libc, asked["readable"], asked["links"])
        for right in range(64):
            libc.prctl(DROP_BOUND, right, 0, 0, 0)
        limit(asked)
        checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
        refuse(libc, *filters)
    except (OSError, KeyError) as error:
        tell({"level": "none", "why": f"{type(error).__name__}: {error}"})
        os._exit(125)
    become(asked, "/work", "full", "")


def furnish(libc: ctypes.CDLL, readable: list[str], links: list[list[str]]) -> None:
    """A file system with nothing but what may be read, and /work."""
    mount(libc, "none", "/", None, REC | PRIVATE, None)
    mount(libc, "tmpfs", "/tmp", "tmpfs", NO_SUID | NO_DEV, "size=1m,mode=755")
    root = "/tmp/root"
    os.mkdir(root)  # noqa: PTH102
    mount(libc, "tmpfs", root, "tmpfs", NO_SUID | NO_DEV, "size=16m,mode=755")
    for path in readable:
        inside = root + path
        os.makedirs(inside, exist_ok=True)  # noqa: PTH103
        mount(libc, path, inside, None, BIND | REC, None)
        flags = os.statvfs(inside).f_flag
        kept = sum(flag for bit, flag in KEPT.items() if flags & bit) | flags & NO_EXEC
        mount(libc, None, inside, None,
              REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEV | kept, None)  # fmt: skip
    for path, target in links:  # such as /lib64, by which programs name their loader
        os.symlink(target, root + path)  # noqa: PTH211
    for name in ("work", "old"):
        os.mkdir(f"{root}/{name}")  # noqa: PTH102
    mount(libc, "tmpfs", f"{root}/work", "tmpfs", NO_SUID | NO_DEV, "size=16m,mode=755")
    pivot = {"x86_64": 155, "aarch64": 41}[platform.machine()]
    checked(libc.syscall(pivot, root.encode(), f"{root}/old".encode()), "pivot_root")
    os.chdir("/work")
    checked(libc.umount2(b"/old", DETACH), "umount2")
    os.rmdir("/old")  # noqa: PTH106
    mount(libc, None, "/", None, REMOUNT | READ_ONLY | NO_SUID | NO_DEV, "size=16m,mode=755")


def limit(asked: dict[str, int]) -> None:
    """Resource limits of this process and its like."""
    for name, value in (
        (resource.RLIMIT_AS, asked["memory"]),
        (resource.RLIMIT_CPU, asked["seconds"] + 1),
        (resource.RLIMIT_FSIZE, 2**24),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))
    with contextlib.suppress(ValueError, OSError):  # not for root, whom the filter holds
        resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))


def refuse(libc: ctypes.CDLL, machine: int, clone: int, calls: tuple[int, ...]) -> None:
    """Install the system call filter, a small program that the kernel runs at each call."""
    load, equal, greater, both, end = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF opcodes
    program = [
        (load, 0, 0, 4), (equal, 1, 0, machine), (end, 0, 0, KILL),
        (load, 0, 0, 0), (greater, 0, 1, 0x40000000), (end, 0, 0, KILL),  # the x32 numbers
        (equal, 0, 1, CLONE_3), (end, 0, 0, ERROR | NOT_THERE),
    ]  # fmt: skip
    for number in (*calls, *EVERYWHERE):
        program += [(equal, 0, 1, number), (end, 0, 0, ERROR | REFUSED)]
    program += [
        (equal, 0, 3, clone), (load, 0, 0, 16), (both, 1, 0, OF_A_THREAD),
        (end, 0, 0, ERROR | REFUSED), (end, 0, 0, ALLOW),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    head = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    )
    checked(libc.prctl(SET_SECCOMP, 2, ctypes.byref(head), 0, 0), "seccomp")


def mount(
    libc: ctypes.CDLL, source: str | None, target: str, kind: str | None, flags: int,
    data: str | None,
) -> None:  # fmt: skip
    """Mount; OSError where that fails."""
    texts = [None if each is None else each.encode() for each in (source, target, kind, data)]
    result = libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    checked(result, f"mount {target}")


def checked(result: int, what: str) -> None:
    """OSError unless a call of the C library went well."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become(asked: dict[str, str], folder: str, level: str, why: str) -> None:
    """Be replaced by an interpreter with the code."""
    path = f"{folder}/code.py"
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:  # noqa: PTH123
        file.write(asked["code"])
    os.chdir(folder)
    tell({"level": level, "why": why})
    os.execve(asked["python"], [asked["python"], "-I", "-S", "-B", "-u", path], {"LANG": "C.UTF-8"})


def tell(report: dict[str, str]) -> None:
    """What was reached; the descriptor is closed, so that the code cannot speak on it."""
    os.write(TELL, json.dumps(report).encode())
    os.close(TELL)


if __name__ == "__main__":
    main()
