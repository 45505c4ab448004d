"""A trustless gateway at the end of a slow line, as far as that can be had on one machine.

    python -m scripts.benchmarks.far CAR DELAY

Answers each request with a CAR file, so many seconds after it came, and prints its port first.
"""

import shutil
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main(car: Path, delay: float) -> None:
    """Serve until the process is ended."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay)
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.ipld.car")
            self.send_header("Content-Length", str(car.stat().st_size))
            self.end_headers()
            with car.open("rb") as file:
                shutil.copyfileobj(file, self.wfile, 1 << 18)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
