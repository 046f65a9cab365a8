"""Runs a command so that it can never outlive whoever asked for it. Linux only; standard library only.

Run as ``python -I -S guard.py GRACE_S COMMAND...`` by a process that made it the leader of a new session. The whole
process group ends, by SIGKILL at the latest, as soon as

- the command ends, for whatever reason (its own children are not left behind);
- SIGTERM comes: the command gets it too, and ``GRACE_S`` seconds;
- the parent dies, even by SIGKILL: the kernel then sends us SIGTERM (PR_SET_PDEATHSIG, see prctl(2)). It does so when
  the *thread* that started us ends, so that thread has to live as long as we should.

If the guard itself is killed, the command dies with it, and the parent has to kill the rest of the group.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1


def main() -> None:
    grace_s, command = float(sys.argv[1]), sys.argv[2:]
    _die_with_parent(signal.SIGTERM)
    asked_to_end = False

    def on_term(number: int, frame: object) -> None:
        nonlocal asked_to_end
        asked_to_end = True

    signal.signal(signal.SIGTERM, on_term)
    # Not threaded, so preexec_fn is safe. SIGKILL, since nobody is left to wait for it once we are gone.
    child = subprocess.Popen(command, preexec_fn=lambda: _die_with_parent(signal.SIGKILL))
    while child.poll() is None and not asked_to_end:
        time.sleep(0.05)
    if asked_to_end:
        child.terminate()
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            print(f"guard: still running {grace_s:g} s after SIGTERM, killing it", flush=True)
    print(f"guard: the command ended with {child.poll()}", flush=True)
    os.killpg(0, signal.SIGKILL)


def _die_with_parent(number: signal.Signals) -> None:
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
