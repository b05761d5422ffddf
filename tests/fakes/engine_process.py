"""A server process as vLLM is one, small enough to start in a tenth of a second: it has a child that holds the "GPU".

``python engine_process.py --port N``. ``GET /health``; ``GET /pids``: ``{"server": n, "engine": n}``; ``GET /mute``:
from now on /health answers 503; ``GET /words``: it prints a bar without newlines and a very long line. Options make it
fail. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_ENGINE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fail", type=int, help="end with this code after a few words")
    parser.add_argument("--health", type=int, nargs="+", help="what /health answers in turn, the last one for ever")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before it listens")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--lives", type=Path, help="append a line here for every start")
    given = parser.parse_args()
    if given.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if given.lives:
        with given.lives.open("a") as lives:
            print(given.port, file=lives)
    print("loading weights", flush=True)
    if given.fail is not None:
        print("ValueError: no such model", file=sys.stderr)
        print("goodbye", file=sys.stderr)
        sys.exit(given.fail)
    time.sleep(given.delay)
    _serve(given.port, given.health or [200])


def _serve(port: int, health: list[int]) -> None:
    engine = subprocess.Popen([sys.executable, "-c", _ENGINE])
    mute = False

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal mute
            mute = mute or self.path == "/mute"
            if self.path == "/words":
                print(*(f"{percent}%" for percent in range(0, 101, 50)), sep="\r", end="\r\n")
                print("x" * 100_000, flush=True)
            content = json.dumps({"server": os.getpid(), "engine": engine.pid}).encode()
            status = 200
            if self.path == "/health":
                status = 503 if mute else health[0]
                health[:] = health[1:] or health
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
