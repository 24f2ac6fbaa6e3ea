"""The command hetkern, run from its source by a server that has loaded torch already.

A process of its own needs seconds to load it, and most tests only ask what the command then does.
The server forks for each call: arguments, folder, environment and streams are the caller's.

    status, out, err = hetkern("train", "--data", text, cwd=folder)
    ends = hetkern_in_processes(2, "train", "--data", text, cwd=folder)
    install(folder)     # a program `hetkern` in a folder, for what runs in a shell
"""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLI = ROOT / "hetkern" / "cli.py"
CLIENT = """\
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    call = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(call).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(call)
    status = server.recv(1)
sys.exit(status[0] if status else "the server of the command is gone")
"""


def hetkern(*arguments, cwd):
    """(exit status, standard output, standard error) of the command."""
    done = subprocess.run(
        [*_client(), *map(str, arguments)], cwd=cwd, env=os.environ | {"COLUMNS": "200"}, text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=180,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def hetkern_in_processes(number, *arguments, cwd):
    """The same of several processes that train together, as torchrun starts them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [*_client(), *map(str, arguments)], cwd=cwd, env=os.environ | shared | {"RANK": rank},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )
        for rank in map(str, range(number))
    ]  # fmt: skip
    ends = [process.communicate(timeout=180) for process in processes]
    return [(p.returncode, *end) for p, end in zip(processes, ends, strict=True)]


def install(folder):
    """Make a program ``hetkern`` in ``folder``."""
    script = folder / "hetkern"
    words = " ".join(f'"{word}"' for word in _client())
    script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    script.chmod(0o755)


@functools.cache
def _client():
    folder = tempfile.TemporaryDirectory()
    address, program = Path(folder.name, "socket"), Path(folder.name, "client.py")
    program.write_text(CLIENT)
    server = subprocess.Popen(
        [sys.executable, "-P", __file__, str(address)], stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    atexit.register(folder.cleanup)
    atexit.register(server.wait)
    atexit.register(server.kill)
    assert server.stdout is not None and server.stdout.read(1), "the server has not begun"
    return sys.executable, "-I", "-S", str(program), str(address)


def _serve(address):
    import torch._dynamo  # noqa: F401
    import typer  # noqa: F401

    import hetkern.training.commands
    import hetkern.training.evaluation
    import hetkern.training.predict  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        os.write(1, b"\n")
        while True:
            caller, _ = server.accept()
            if not os.fork():
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(caller)
            caller.close()


def _answer(caller):
    """Run one call in a process of its own, and send its exit status."""
    status = 1
    try:
        length, streams, _, _ = socket.recv_fds(caller, 4, 3)
        size, call = int.from_bytes(length, "big"), b""
        while len(call) < size:
            call += caller.recv(size - len(call))
        process = os.fork()
        if not process:
            _run(streams, *json.loads(call))
        for stream in streams:
            os.close(stream)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) % 256
        caller.sendall(bytes([status]))
    finally:
        os._exit(status)


def _run(streams, arguments, folder, environment):
    import runpy

    status = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin = open(0, closefd=False)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["hetkern", *arguments]
        runpy.run_path(str(CLI), run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1])
