"""The page of the server in a browser."""

import base64
import os
import shutil
from pathlib import Path

import pytest
from dicom_files import dicom
from serving_process import serving
from test_export_pixels import saved, smooth

pytestmark = pytest.mark.slow
pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = os.environ.get("KMURA_SCREENSHOTS")  # a folder where screenshots are kept for people
WAIT = 60_000  # ms


@pytest.fixture(scope="module")
def url(small_export):
    with serving(small_export, "--poll", "0") as (_, url):
        yield url


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--no-proxy-server"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """Returns pages; after the test, none of them may have written to the console or asked another host."""
    contexts, messages, addresses = [], [], []

    def make(url, **options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: addresses.append((request.url, url)))
        page.goto(url)
        return page

    make.messages = messages
    yield make
    for context in contexts:
        context.close()
    assert messages == []
    assert addresses and all(address.startswith((url, "data:", "blob:")) for address, url in addresses)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> list[Path]:
    """Two images and a DICOM file of one study, and a file that is no image."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "front.png").write_bytes(saved(smooth(200, 150)))
    (folder / "side.jpg").write_bytes(saved(smooth(120, 180), "JPEG"))
    (folder / "oblique.dcm").write_bytes(dicom(PatientName="DOE^JANE"))
    (folder / "text.txt").write_text("no image")
    return [folder / name for name in ("front.png", "oblique.dcm", "side.jpg", "text.txt")]


def drop(page, files):
    """Drops files on the page, as a person does with the mouse."""
    content = [[path.name, base64.b64encode(path.read_bytes()).decode()] for path in files]
    page.evaluate(
        """(content) => {
            const transfer = new DataTransfer();
            for (const [name, data] of content) {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name));
            }
            for (const kind of ["dragenter", "dragover", "drop"])
                document.getElementById("zone").dispatchEvent(
                    new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        content,
    )
    page.locator("#result").wait_for()


def choose(page, files):
    page.locator("#files").set_input_files(files)
    page.locator("#result").wait_for()


def keep(page, name):
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS, f"{name}.png")), full_page=True)


def opacities(page) -> list[float]:
    return page.locator(".heat").evaluate_all("(images) => images.map((image) => +getComputedStyle(image).opacity)")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {"color_scheme": "light"}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}),
        ("phone-dark", {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "color_scheme": "dark"}),
    ],
)
def test_a_study_is_dropped_and_predicted(new_page, url, study, name, options):
    page = new_page(url, **options)
    page.locator("#drop").wait_for()
    assert "Not a medical device" in page.locator(".warning").first.inner_text()
    keep(page, f"{name}-start")
    drop(page, study[:3])
    assert page.inner_text("#decision") in ("Study: abnormal", "Study: normal")
    assert "Probability of abnormal" in page.inner_text("#numbers")
    assert "From 3 of 3 images" in page.inner_text("#details")
    assert page.locator("#cards h3").all_inner_texts() == [path.name for path in study[:3]]
    assert page.locator(".heat").evaluate_all("(images) => images.map((image) => image.naturalWidth)") == [32] * 3
    assert page.locator(".base").evaluate_all("(images) => images.every((image) => image.naturalWidth > 0)")
    for picture in page.locator(".picture").all():
        base, heat = (picture.locator(part).bounding_box() for part in (".base", ".heat"))
        assert base == heat and base["width"] > 100
    widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1], "the page scrolls sideways"
    assert "DOE" not in page.content()
    keep(page, f"{name}-result")


def test_the_overlay_follows_its_sliders(new_page, url, study):
    page = new_page(url)
    choose(page, study[:3])
    assert opacities(page) == [0.6] * 3
    page.press("#opacity", "Home")
    assert opacities(page) == [0] * 3 and page.inner_text("#opacity-value") == "0"
    page.press("#opacity", "ArrowRight")
    assert opacities(page) == [0.01] * 3
    page.locator(".card input").first.press("End")
    assert opacities(page) == [1, 0.01, 0.01]


def test_an_operating_point_shows_what_was_measured_and_changes_the_decision(new_page, url, study):
    page = new_page(url)
    page.locator("#drop").wait_for()
    point = page.inner_text("#point")
    assert "sensitivity" in point and "specificity" in point and "measured on 12 studies of test" in point
    choose(page, study[:3])
    rules = page.locator("#rule option").all_inner_texts()
    decisions = {}
    for rule in rules:
        page.select_option("#rule", rule)
        numbers = page.inner_text("#numbers")  # Probability of abnormal: 55.2 %; threshold 50.0 %
        probability, threshold = (float(part.split()[-2]) for part in numbers.split(";"))
        decisions[rule] = page.inner_text("#decision")
        if abs(probability - threshold) > 0.1:
            assert decisions[rule] == f"Study: {'abnormal' if probability > threshold else 'normal'}"
    assert {"0.5", "max_f1"} <= set(rules)


def test_a_file_that_is_no_image_is_named_and_left_out(new_page, url, study):
    page = new_page(url)
    choose(page, study)
    assert "From 3 of 4 images; 1 could not be read" in page.inner_text("#details")
    assert "Not used: not an image file" in page.locator(".card", has_text="text.txt").inner_text()
    page.click("#again")
    assert page.locator(".card").count() == 0 and page.locator("#drop").is_visible()


def test_errors_of_the_server_are_shown(new_page, url, study):
    page = new_page(url)
    page.locator("#files").set_input_files(study[3])
    page.locator("#error").wait_for()
    assert "none of the 1 files can be read" in page.inner_text("#error") and page.locator("#drop").is_visible()
    (message,) = new_page.messages
    assert "400" in message  # Chromium reports the status by itself
    new_page.messages.clear()


def test_the_page_works_by_keyboard(new_page, url, study):
    page = new_page(url)
    page.locator("#drop").wait_for()
    focused = []
    for _ in range(3):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id"))
    assert focused == ["rule", "card-link", "files"]
    assert page.evaluate("getComputedStyle(document.getElementById('zone')).outlineStyle") == "solid"
    choose(page, study[:3])
    assert page.evaluate("document.activeElement.id") == "result"
    names = page.evaluate(
        """[...document.querySelectorAll("input, select, button")].filter((item) => item.offsetParent)
           .map((item) => item.labels?.[0]?.innerText || item.getAttribute("aria-label") || item.innerText)"""
    )
    assert names and all(names)


def test_the_model_card_opens_in_the_page(new_page, url):
    page = new_page(url)
    page.click("#card-link")
    page.locator("#card-dialog").wait_for()
    card = page.locator("#card-text")
    assert "XR_WRIST" in card.inner_text() and card.locator("table").count()
    assert "not a medical device" in card.inner_text()
    keep(page, "card")
    page.keyboard.press("Escape")
    assert not page.locator("#card-dialog").is_visible()


def test_the_token_is_asked_for(new_page, small_export, study, tmp_path):
    (tmp_path / "token").write_text("t" * 32)
    with serving(small_export, "--poll", "0", "--token-file", tmp_path / "token") as (_, url):
        page = new_page(url)
        page.locator("#token-form").wait_for()
        assert not page.locator("#drop").is_visible()
        for token, then in (("wrong", "#error"), ("t" * 32, "#drop")):
            page.fill("#token", token)
            page.press("#token", "Enter")
            page.locator(then).wait_for()
        keep(page, "token")
        choose(page, study[:3])
        assert "From 3 of 3 images" in page.inner_text("#details")
        page.click("#card-link")
        page.locator("#card-dialog").wait_for()
        assert "t" * 32 not in page.content()
    assert all("401" in message for message in new_page.messages)  # Chromium reports the status by itself
    new_page.messages.clear()
