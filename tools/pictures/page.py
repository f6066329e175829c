"""Pictures of the web page on the demo: `python -m tools.pictures.page`.

They need Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from tests.support.browser import browser, until
from tests.support.demo import CONFIG, REPOSITORY
from tests.support.serving import serving

PICTURES = REPOSITORY / "docs" / "pictures"
QUESTION = "Tom has 12 pens and buys 7 more. How many pens does he have now?"
TOKEN = " apples"  # the one pointed at


def ask(driver: Chrome, url: str, *, compare: bool) -> None:
    """Ask the ensemble without chance, and point at a token of its answer."""
    driver.get(url)
    until(driver, lambda _: driver.find_elements(By.CSS_SELECTOR, "#members li"))
    if compare:
        driver.find_element(By.ID, "compare").click()
    temperature = driver.find_element(By.ID, "temperature")
    temperature.clear()
    temperature.send_keys("0")
    driver.find_element(By.ID, "question").send_keys(QUESTION, Keys.ENTER)
    until(driver, lambda _: driver.find_elements(By.CSS_SELECTOR, ".shares"), 120)
    until(driver, lambda _: not driver.find_elements(By.CSS_SELECTOR, ".waiting"), 120)
    tokens = driver.find_elements(By.CSS_SELECTOR, ".token")
    found = [token for token in tokens if token.get_attribute("textContent") == TOKEN]
    ActionChains(driver).move_to_element((found or tokens)[0]).perform()


def save(driver: Chrome, path: Path) -> None:
    """A few colours are enough, and a third of the size."""
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as image:
        image.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)
    print(path)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, serving(CONFIG, Path(folder, "server.log")) as server:
        for name, compare in (("page", False), ("page-members", True)):
            with browser(dark=compare, width=1240, height=560) as driver:
                ask(driver, f"{server.url}/", compare=compare)
                save(driver, PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
