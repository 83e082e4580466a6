"""JupyterLab and Chromium for the tests of this folder, which `make browser-test` runs and `make test` does not."""

import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LAB_OPTIONS = [
    "--no-browser",
    "--allow-root",
    "--ServerApp.port_retries=0",
    "--LabApp.expose_app_in_browser=True",  # for the dark theme
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
]
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all outputs are in the page, also those out of sight
    "apputils-extension/notification": {"fetchNews": "false"},  # nothing asks in front of the notebook
}
ANSWERS: dict[str, list[float]] = {}


class Jupyter:
    """A running JupyterLab that serves a copy of the notebooks."""

    def __init__(self, folder: Path, port: int, token: str):
        self.folder, self.token, self.address = folder, token, f"http://127.0.0.1:{port}"

    def page(self, notebook: str) -> str:
        """The address of a notebook, alone in a new workspace."""
        return f"{self.address}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}?token={self.token}"

    def call(self, path: str, method: str = "GET"):
        """Jupyter's REST interface: for instance `call("kernels")`."""
        request = urllib.request.Request(f"{self.address}/api/{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def wait_for_kernel(self, seconds: int = 180) -> None:
        """Until a kernel is connected and has been quiet for a while: restarted sooner, it may lose the first cells."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for kernel in self.call("kernels"):
                quiet = datetime.now(UTC) - datetime.fromisoformat(kernel["last_activity"])
                if kernel["connections"] and kernel["execution_state"] == "idle" and quiet > timedelta(seconds=3):
                    return
            time.sleep(0.5)
        pytest.fail("JupyterLab started no kernel")

    def stop_kernels(self) -> None:
        for kernel in self.call("kernels"):
            self.call(f"kernels/{kernel['id']}", "DELETE")


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """JupyterLab on a free port of this machine alone, in a home of its own: nobody's settings and kernels."""
    home = tmp_path_factory.mktemp("jupyter")
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns(".*"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lab = Jupyter(home / "notebooks", port, secrets.token_hex())
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}", *LAB_OPTIONS]
    with open(home / "log", "w") as log:
        environment = reader_environment(home) | {"JUPYTER_TOKEN": lab.token}
        server = subprocess.Popen(command, cwd=lab.folder, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lab, server, home / "log")
        yield lab
        lab.stop_kernels()
    finally:
        server.terminate()
        server.wait(30)


def reader_environment(home: Path) -> dict[str, str]:
    """This environment without what tests set in it (PYTEST_VERSION would switch the controls off)."""
    foreign = ("PYTEST_", "BITLAB_", "JUPYTER", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    own = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{name}_DIR": str(home / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    return kept | own | {"IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def wait_for(lab: Jupyter, server: subprocess.Popen, log: Path, seconds: int = 180) -> None:
    until = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < until:
        try:
            return lab.call("status")
        except OSError:
            time.sleep(0.3)
    server.terminate()
    return pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.exit("no browser found: install Chromium, for instance `apt-get install chromium`", returncode=2)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=BROWSER_OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def pictures() -> Path:
    folder = ROOT / "build" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def answers() -> dict[str, list[float]]:
    """Notebook and control -> seconds from key press to new figure; printed at the end."""
    return ANSWERS


def pytest_terminal_summary(terminalreporter):
    for name, seconds in ANSWERS.items():
        terminalreporter.write_line(f"{name:60} answers in {1000 * statistics.median(seconds):5.0f} ms (median)")
