"""A real headless browser: Chromium, driven by Playwright, which may ask nothing of a network.

Uses the Chromium that is there; else installs Debian's, on Debian as root: for machines that may be
changed, a CI runner or a container.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PATIENCE = 600  # seconds, to install
INSTALL = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]


class CannotServeError(Exception):
    """There is no browser on this machine, and none can be installed: the reason."""


def _release() -> dict:
    with contextlib.suppress(OSError):
        lines = Path("/etc/os-release").read_text().splitlines()
        return dict(line.replace('"', "").split("=", 1) for line in lines if "=" in line)
    return {}


def _install():
    found = _release()
    if found.get("ID") != "debian":
        name = found.get("PRETTY_NAME", "an unknown system")
        raise CannotServeError(f"no browser: this is {name}, Chromium is installed on Debian alone")
    if os.geteuid() != 0:
        raise CannotServeError("no browser: to install Chromium one must be root")
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["apt-get", "update", "-qq"], INSTALL):
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=PATIENCE, env=env
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CannotServeError(f"no browser: {' '.join(words)}: {last}")


def executable() -> str:
    """Path of a Chromium. CannotServeError where there is none, and none can be installed."""
    for _ in range(2):
        found = next(filter(None, map(shutil.which, NAMES)), None)
        if found:
            return found
        _install()
    raise CannotServeError("no browser: Chromium was installed, and is not found")


class Browser:
    """Opens pages from disk and notes what they ask for and complain of."""

    def __init__(self):
        path = executable()
        try:
            from playwright.sync_api import sync_playwright
        except ImportError as error:
            raise CannotServeError(f"no browser: {error} (requirements-dev.txt)") from error
        self._playwright = sync_playwright().start()
        # Chromium's sandbox does not work for root, nor in most containers.
        self._browser = self._playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )

    def stop(self):
        self._browser.close()
        self._playwright.stop()

    @contextlib.contextmanager
    def opened(self, path, width=1280, scheme="light"):
        """(page, [what it asked for], [what the console said]) of a file on disk; requests but for
        the file itself, and what is within it (data:), are stopped."""
        url, asked, said = Path(path).resolve().as_uri(), [], []
        context = self._browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )

        def decide(route):
            if route.request.url == url or route.request.url.startswith("data:"):
                return route.continue_()
            asked.append(route.request.url)
            return route.abort()

        try:
            page = context.new_page()
            page.route("**/*", decide)
            page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: said.append(f"error: {error}"))
            page.goto(url, wait_until="load")
            yield page, asked, said
        finally:
            context.close()
