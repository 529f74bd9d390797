"""A server on this machine that answers as the Hugging Face hub does, and interpreters that know no other hub."""

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COMMITS = {"main": COMMIT, "v2": COMMIT[::-1]}
TESTS = Path(__file__).parent


@dataclass
class Hub:
    """A server that knows the files by path, and what it was asked for."""

    files: dict[str, bytes]
    requests: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = ""

    def add(self, repository: str, name: str, content: bytes, revision: str = "main") -> None:
        self.files[f"/{repository}/resolve/{revision}/{name}"] = content

    def asked(self) -> set[str]:
        """Paths, by the name of the branch."""
        return {_by_branch(path)[0] for _, path in self.requests}

    @contextlib.contextmanager
    def serve(self) -> Iterator[None]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.wfile.write(self.answer())

            def answer(self) -> bytes:
                hub.requests.append((self.command, self.path))
                path, commit = _by_branch(self.path)
                content = hub.files.get(path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                if content is not None:
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("X-Repo-Commit", commit)
                self.end_headers()
                return content or b""

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def _by_branch(path: str) -> tuple[str, str]:
    """A path by the name of the branch, and the commit there."""
    for branch, commit in COMMITS.items():
        path = path.replace(f"/resolve/{commit}/", f"/resolve/{branch}/")
        if f"/resolve/{branch}/" in path:
            return path, commit
    return path, COMMIT


def run(code: str, *arguments: str, cwd: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter: huggingface_hub reads its environment when it is imported.

    endpoint: address of the hub. Its cache is a folder in cwd. Tests and swinx can be imported.
    """
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cwd / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as many as here: the last bits depend on it
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
