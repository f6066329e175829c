"""A headless Chromium, driven by Selenium, where both of Debian's packages are installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
INSTALLED = CHROMIUM is not None and DRIVER is not None

# Notes every task that held the page up for more than 50 ms, and every violation of the content security policy.
WATCH = """
window.longTasks = [];
window.violations = [];
new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map((entry) => entry.duration)))
  .observe({ type: "longtask" });
document.addEventListener("securitypolicyviolation", (event) => window.violations.push(event.violatedDirective));
"""


@contextmanager
def browser(*, dark: bool = False, width: int = 1280, height: int = 800, trace: bool = False) -> Iterator[Chrome]:
    """A window of this size. Everything it keeps is thrown away with it.

    With `trace` its log named `performance` holds what Chromium's threads do.
    """
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        f"--window-size={width},{height}",
    ):
        options.add_argument(argument)
    logs = {"browser": "ALL"}
    if trace:
        logs["performance"] = "ALL"
        wanted = {"traceCategories": "toplevel", "enableNetwork": False, "enablePage": False}
        options.add_experimental_option("perfLoggingPrefs", wanted)
    options.set_capability("goog:loggingPrefs", logs)
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    try:
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        yield driver
    finally:
        driver.quit()


def until(driver: Chrome, condition: Callable[[Chrome], object], seconds: float = 20) -> None:
    """Wait until it is true.

    Raises:
        TimeoutException: it did not become true within the time.
    """
    WebDriverWait(driver, seconds, poll_frequency=0.05).until(condition)
