"""How the page looks and reads: on a phone, in both colour schemes, after an error, and to screen readers."""

import itertools

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import FINISHED, Watched

pytestmark = pytest.mark.slow
ERRORS = """[...document.querySelectorAll("*")].filter((one) => !one.childElementCount
  && one.textContent.trim() === "Error"
  && one.checkVisibility({opacityProperty: true, visibilityProperty: true})).length"""


def serious(page: Page) -> list[str]:
    """What keeps people from using the page, as axe-core finds it."""
    found = Axe().run(page).response["violations"]
    return [one["id"] for one in found if one["impact"] in ("serious", "critical")]


def test_nothing_is_cut_off_and_pictures_come_first_on_a_phone(url: str, themed: Watched) -> None:
    page = themed.page
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"{url}?prompt=a red disc")
    page.wait_for_function(FINISHED)
    places = [page.locator(one).last.bounding_box() for one in ("#said", "#made img", "#prompt")]
    tops = [place["y"] for place in places if place]
    assert len(tops) == 3 and tops == sorted(tops)
    expect(page.get_by_role("button", name="Use via API")).to_be_visible()
    assert not page.get_by_label("Temperature").first.is_visible()  # the settings are folded
    page.locator("#settings button").first.click()
    for width, tab in itertools.product((360, 820), ("Text", "Picture", "Edit", "Browse")):
        page.set_viewport_size({"width": width, "height": 740})
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") == width, tab
        assert serious(page) == [], (width, tab)


def test_many_pictures_leave_the_form_of_a_phone_within_reach(url: str, tab: Watched) -> None:
    page = tab.page
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"{url}?prompt=a red disc")
    page.wait_for_function(FINISHED)
    page.get_by_role("tab", name="Browse").click()
    page.locator("#search").click()
    page.get_by_text("48 of 72 training images.").wait_for()
    assert page.locator("#made").bounding_box()["height"] <= 0.6 * 740  # type: ignore[index]
    expect(page.locator("#near")).not_to_be_visible()  # they were near to a picture that is gone


def test_an_error_is_said_once_and_leaves_no_badge_on_the_pictures(url: str, tab: Watched) -> None:
    page = tab.page
    page.goto(url)
    page.locator("#generate").click()
    page.get_by_text("Enter a prompt first.").first.wait_for()
    expect(page.locator("#said [role=status]")).to_have_text("Enter a prompt first.")
    page.wait_for_function(f"{ERRORS} === 1")  # the title of the message
