import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from devices.runtime import Decoder

pytestmark = pytest.mark.interop
PAGE = Path(__file__).parent / "web"
TOKENS, SECONDS = 16, 240
# Nothing beyond this machine is asked for, and nobody has to be there to answer.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


class Handler(SimpleHTTPRequestHandler):
    """Serves the page, /ort, /artifact and /request from this machine, and keeps what is posted to it."""

    def __init__(self, *args, folders, request, answers, **kwargs):
        self.folders, self.asked, self.answers = folders, request, answers
        super().__init__(*args, directory=str(PAGE), **kwargs)

    def translate_path(self, path):
        """A file of the page, or of the folder that the path's first part stands for."""
        first, _, name = path.lstrip("/").partition("/")
        return str(self.folders[first] / name) if first in self.folders else super().translate_path(path)

    def do_GET(self):
        """The request is data, all else are files."""
        if self.path != "/request":
            return super().do_GET()
        body = json.dumps(self.asked).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        """The page's answer."""
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        """Nothing: what went wrong is in the answer."""


@contextmanager
def chromium(url, home):
    """Headless Chromium at `url`, its processes ended afterwards."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium here; install it (Debian: apt-get install chromium) or set CHROMIUM")
    # What it leaves behind goes as well; below a longer path its socket could not be made.
    with (home / "log").open("w") as log, TemporaryDirectory(ignore_cleanup_errors=True) as short:
        command = [program, *FLAGS, f"--user-data-dir={home / 'profile'}", url]
        places = {**os.environ, "TMPDIR": short}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=places, start_new_session=True)
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def browse(tmp_path, interop_folder):
    """`browse(folder, request)`: what the page answers about the artifact in `folder`."""

    def run(folder, request):
        answers = queue.Queue()
        ort = interop_folder("onnxruntime-web") / "node_modules" / "onnxruntime-web" / "dist"
        folders = {"ort": ort, "artifact": folder}
        handler = partial(Handler, folders=folders, request=request, answers=answers)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with chromium(f"http://127.0.0.1:{server.server_port}/index.html", tmp_path):
                try:
                    return answers.get(timeout=SECONDS)
                except queue.Empty:
                    pytest.fail(f"no answer in {SECONDS} s; {(tmp_path / 'log').read_text()[-2000:]}")
                finally:
                    server.shutdown()

    return run


@pytest.mark.parametrize("name", ["teacher-int8", "llama-16-fp32"])
def test_a_browser_generates_our_tokens(artifact, texts, browse, until_end, name):
    """The first greedy tokens of a page that runs onnxruntime-web's WASM build are those of our runtime."""
    decoder = Decoder(artifact(name), threads=1)
    prompts = [decoder.encode(text) for text in texts]
    found = browse(decoder.artifact.path, {"prompts": prompts, "tokens": TOKENS})
    assert "error" not in found, found["error"]
    ours = [decoder.generate(prompt, max_new_tokens=TOKENS).ids for prompt in prompts]
    assert [until_end(decoder, ids) for ids in found["tokens"]] == ours
    assert max(map(len, ours)) == TOKENS
