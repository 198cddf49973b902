"""data.report: what the page says, in which order, and how it behaves in a browser."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from conftest import draw_source
from selenium import webdriver
from selenium.webdriver import Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import Evaluate_model
from data import outputs, report, tables
from data.files import UserError
from data.measure import measure_image, measure_nuclei, write_table
from data.pictures import outline_nuclei

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
HOSTILE = "a\"><img src=x onerror='document.title=1'>&amp;$title"  # a file may be named so
OPTIONS = {"channel": None, "diameter": 9, "min_confidence": 0.0, "min_area": 0.0}


def write(out, name, labels, warnings=(), channel=""):
    """Writes the files of one image, as Predict_masks.py does."""
    outputs.make_folders(out)
    files = outputs.prediction_files(out, name)
    image = np.where(labels > 0, 200, 20).astype(np.uint8)
    nuclei = measure_nuclei(labels, image, name)
    row = measure_image(nuclei, labels.shape, name, None, channel, "1.0", "dark", warnings)
    write_table(files.nuclei, nuclei)
    tables.save_image_row(files.image_row, row)
    overlay = outline_nuclei(np.stack([image] * 3, -1), labels)
    outputs.write_prediction(files, labels, overlay, {"weights_sha256": "5f2b", "options": OPTIONS})
    return files


def draw_squares(count):
    """Labels (24, 240) of `count` squares in a row."""
    labels = np.zeros((24, 240), np.int32)
    for number in range(count):
        labels[6:18, 20 * number + 4 : 20 * number + 16] = number + 1
    return labels


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    """A folder of five predictions, and its report."""
    out = tmp_path_factory.mktemp("predictions") / "a & b"
    for name, count, warnings in (
        ("many", 9, ()),
        ("few", 2, ()),
        ("noise", 5, ["hardly more than noise"]),
        ("empty", 0, ["no nuclei", "hardly more than noise"]),
        (HOSTILE, 3, ()),
    ):
        write(out, name, draw_squares(count), warnings)
    report.write_report(out, outputs.find_predictions(out))
    return out


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Eight scored predictions and their report; one is right, of the others a nucleus is missed."""
    folder = tmp_path_factory.mktemp("scored")
    images = draw_source(folder / "truth")
    for number, (name, (_, labels)) in enumerate(images.items()):
        write(folder / "out", name, np.where(labels > (number != 4), labels, 0))
    arguments = ["--truth", folder / "truth", "--predicted", folder / "out", "--report"]
    assert Evaluate_model.main([str(argument) for argument in arguments]) == 0
    return folder / "out"


def find_ids(page):
    return re.findall('data-id="([^"]*)"', page)


def test_the_doubtful_images_come_first(predictions, tmp_path):
    page = (predictions / report.REPORT).read_text(encoding="utf-8")
    ids = find_ids(page)
    assert "SHA-256 5f2b…, diameter 9, min_confidence 0.0." in page  # what is not usual
    assert ids[:3] + ids[-1:] == ["empty", "noise", "few", "many"]
    shutil.copytree(predictions, tmp_path / "out")
    file = outputs.prediction_files(tmp_path / "out", "many").image_row
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mean_confidence": 0.4}))
    page = report.write_report(tmp_path / "out", ["few", "many"]).read_text(encoding="utf-8")
    assert find_ids(page) == ["many", "few"] and "confidence\N{NO-BREAK SPACE}0.40" in page


def test_a_report_explains_only_its_own_warnings(predictions, tmp_path):
    out = shutil.copytree(predictions, tmp_path / "out")
    for ids, count in ((["empty"], 1), (["few"], 0)):
        page = report.write_report(out, ids).read_text(encoding="utf-8")
        assert page.count("Right for an empty field") == count


def test_of_very_many_images_only_the_first_are_shown(tmp_path, monkeypatch):
    for count in (3, 1, 2):
        write(tmp_path, f"image_{count}", draw_squares(count))
    monkeypatch.setattr(report, "REPORTED_IMAGES", 2)
    page = report.write_report(tmp_path, outputs.find_predictions(tmp_path)).read_text(encoding="utf-8")
    assert find_ids(page) == ["image_1", "image_2"]
    assert "6 nuclei in 3 images" in page and "the first 2 of 3 are shown" in page


def test_predictions_without_tables_are_named(tmp_path):
    write(tmp_path, "a", draw_squares(1)).nuclei.unlink()
    with pytest.raises(UserError, match="tables of a, which Predict_masks.py writes"):
        report.write_report(tmp_path, ["a"])


def test_the_worst_images_come_first_with_their_scores(scored):
    with open(scored / "scores.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    page = (scored / report.REPORT).read_text(encoding="utf-8")
    assert find_ids(page) == [row["id"] for row in rows]
    assert find_ids(page)[-1] == "image_04" and page.count("1 missed</span>") == 7
    assert page.count("none missed, false, split or merged") == 1


# In a browser.


@pytest.fixture(scope="module")
def browser():
    if not (BROWSER and DRIVER):
        pytest.skip("no chromium with its chromedriver is installed, which opens the page")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, predictions):
    """The report of the predictions, opened anew."""
    browser.get((predictions / report.REPORT).as_uri())
    return browser


def list_shown(browser):
    """Ids of the images that are shown, in their order."""
    return [card.get_attribute("data-id") for card in browser.find_elements(By.CSS_SELECTOR, "article:not([hidden])")]


def reset(browser, count):
    """Clears all filters, and waits until the page shows `count` images again: it does so after the click."""
    browser.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    WebDriverWait(browser, 30).until(lambda _: len(list_shown(browser)) == count)


def fill(browser, name, value):
    """Types into a field, or chooses from a menu."""
    field = browser.find_element(By.NAME, name)
    if field.tag_name == "input":
        field.clear()
    field.send_keys(value)


@pytest.mark.parametrize("folder", ["predictions", "scored"])
def test_the_page_opens_without_a_complaint_and_shows_its_pictures(browser, folder, request):
    browser.get((request.getfixturevalue(folder) / report.REPORT).as_uri())
    assert browser.get_log("browser") == []
    decode = "const done = arguments[0]; Promise.all(Array.from(document.images, (image) => {"
    decode += "image.loading = 'eager'; return image.decode().then(() => image.naturalWidth); })).then(done)"
    widths = browser.execute_async_script(decode)
    assert len(widths) == {"predictions": 10, "scored": 24}[folder] and min(widths) > 100
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_names_of_files_are_text_and_nothing_else(page, predictions):
    assert HOSTILE in list_shown(page)
    titles = [title.text for title in page.find_elements(By.CSS_SELECTOR, "h2")]
    assert HOSTILE in titles and page.title.endswith("a & b")
    links = [link.get_attribute("href") for link in page.find_elements(By.LINK_TEXT, "full size")]
    assert outputs.prediction_files(predictions, HOSTILE).overlay.as_uri() in links


def test_the_warnings_of_its_images_are_explained(page):
    explained = [term.get_attribute("textContent") for term in page.find_elements(By.CSS_SELECTOR, "details dt")]
    assert explained[-2:] == ["no nuclei", "hardly more than noise"] and "very wide nuclei" not in explained
    advice = page.find_elements(By.CSS_SELECTOR, "details dd")[-2].get_attribute("textContent")
    assert "--channel" in advice


def test_filters_show_what_fits_them(page):
    assert len(list_shown(page)) == 5
    fill(page, "search", "EMP")
    assert list_shown(page) == ["empty"]
    assert page.find_element(By.CSS_SELECTOR, "output").text == "1 of 5 images"
    reset(page, 5)
    fill(page, "mark", "hardly more than noise")
    assert list_shown(page) == ["empty", "noise"]
    fill(page, "fewest", "1")
    assert list_shown(page) == ["noise"]
    fill(page, "mark", "not marked")
    fill(page, "most", "3")
    assert list_shown(page) == ["few", HOSTILE]
    fill(page, "fewest", "4")
    assert list_shown(page) == [] and page.find_element(By.ID, "nothing").is_displayed()


def test_scores_and_kinds_are_filtered_and_sorted_by(browser, scored):
    browser.get((scored / report.REPORT).as_uri())
    worst_first = list_shown(browser)
    fill(browser, "ap", "0.9")
    assert list_shown(browser) == worst_first[:-1]
    fill(browser, "kind", "stained tissue")
    assert sorted(list_shown(browser)) == ["image_02", "image_05"]
    reset(browser, len(worst_first))
    fill(browser, "order", "id")
    assert list_shown(browser) == sorted(worst_first)
    fill(browser, "mark", "not marked")
    assert list_shown(browser) == ["image_04"]


def test_arrow_keys_move_from_image_to_image(page):
    ids = list_shown(page)

    def press(key):
        page.switch_to.active_element.send_keys(key)
        (card,) = page.find_elements(By.CSS_SELECTOR, "article[aria-current]")
        top = page.execute_script("return arguments[0].getBoundingClientRect().top", card)
        assert card == page.switch_to.active_element and 0 <= top < page.execute_script("return innerHeight")
        return card.get_attribute("data-id")

    keys = (Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert [press(key) for key in keys] == [ids[index] for index in (0, 1, 2, 1, 0, 0)]
    fill(page, "search", "many" + Keys.ARROW_LEFT)  # in a field the key moves the cursor
    assert page.find_element(By.CSS_SELECTOR, "article[aria-current]").get_attribute("data-id") == ids[0]
    page.find_element(By.CSS_SELECTOR, "h1").click()
    page.find_element(By.CSS_SELECTOR, "body").send_keys(Keys.ARROW_RIGHT)
    assert page.find_element(By.CSS_SELECTOR, "article[aria-current]").get_attribute("data-id") == "many"
