"""A child process that is stopped at every system call, by ptrace: what the ledger's fault injection kills with.

Everything that outlives a process happens in its system calls (and in memory-mapped pages, which `step` stops between).
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Callable
from typing import Self

_TRACEME, _SINGLESTEP, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 9, 24, 0x4200, 0x420E
_OPTIONS = 0x00100000 | 0x00000001  # the child dies with its tracer; stops at system calls are marked
_INFO_BYTES = 88

WRITES = frozenset({1, 18, 20})  # write, pwrite64, writev
SYNCS = frozenset({74, 75})  # fsync, fdatasync
# close, mmap, munmap, ftruncate, rename, mkdir, link, unlink, chmod, fchmod, fchown, openat, unlinkat, linkat
CHANGES = WRITES | SYNCS | {3, 9, 11, 77, 82, 83, 86, 87, 90, 91, 93, 257, 263, 265}

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int = 0, data: int | ctypes.Array[ctypes.c_char] = 0) -> None:
    pointer = ctypes.cast(data, ctypes.c_void_p) if isinstance(data, ctypes.Array) else ctypes.c_void_p(data)
    if LIBC.ptrace(request, pid, address, pointer) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Stopped:
    """A forked child that runs `work` only as far as it is told. `ended` after it exited: its status."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.ended: int | None = None
        self._changing = False
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                _ptrace(_TRACEME, 0)
                os.kill(os.getpid(), signal.SIGSTOP)
                work()
                status = 0
            finally:
                os._exit(status)
        self._wait()
        if self.ended is None:
            _ptrace(_SETOPTIONS, self.pid, 0, _OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def to_boundary(self) -> bool:
        """On to the next entry to, or return from, a system call. False when the child has exited."""
        return self._go(_SYSCALL)

    def to_change(self) -> bool:
        """As `to_boundary`, on to the next system call that may change files."""
        while self.to_boundary():
            call = self.call()
            if call is None and self._changing:
                self._changing = False
                return True
            if call is not None and call[0] in CHANGES:
                self._changing = True
                return True
        return False

    def step(self, instructions: int) -> None:
        """On by single instructions."""
        for _ in range(instructions):
            if not self._go(_SINGLESTEP):
                return

    def call(self) -> tuple[int, tuple[int, ...]] | None:
        """Number and arguments of the system call that is about to be made; None on the way out of one."""
        buffer = ctypes.create_string_buffer(_INFO_BYTES)
        _ptrace(_GET_SYSCALL_INFO, self.pid, _INFO_BYTES, buffer)
        if buffer.raw[0] != 1:
            return None
        number, *arguments = struct.unpack_from("7Q", buffer.raw, 24)
        return number, tuple(arguments)

    def file(self, descriptor: int) -> str:
        """Name of an open file of the child."""
        return os.path.basename(os.readlink(f"/proc/{self.pid}/fd/{descriptor}"))

    def kill(self) -> None:
        """SIGKILL, now."""
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
            _, self.ended = os.waitpid(self.pid, 0)

    def _go(self, request: int) -> bool:
        if self.ended is None:
            _ptrace(request, self.pid)
            self._wait()
        return self.ended is None

    def _wait(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            self.ended = status


def refused() -> str:
    """Why processes cannot be traced here; empty when they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "tracing is written for Linux on x86-64"
    try:
        with Stopped(os.getpid) as child:
            child.to_boundary()
            child.call()
    except OSError as error:
        return f"processes may not be traced here: {error.strerror}"
    return ""
