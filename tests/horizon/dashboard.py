# SPDX-License-Identifier: Apache-2.0
"""Horizon as its user operates it, in Chromium."""

import os
import pathlib

from devcloud import state as cloud_state
from devcloud import wait
from selenium.common import exceptions
from selenium import webdriver
from selenium.webdriver.chrome import service
from selenium.webdriver.common.by import By

# Seconds that a page may take, on a busy machine.
PAGE_TIMEOUT = 60

ARGUMENTS = (
    '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run',
    '--disable-background-networking', '--disable-component-update',
    '--disable-sync', '--window-size=1280,800',
)

# Without a directory, no picture is kept.
SCREENSHOTS = os.environ.get('SNAPEXT_SCREENSHOTS')

WIZARD = "//div[contains(@class, 'ng-wizard')]"


class Dashboard:
    """One browser, in which a user of project `demo` is logged in."""

    def __init__(self, state, add_cleanup):
        """Open the browser and log in.

        :param add_cleanup: function that registers the end of the browser
        """
        options = webdriver.ChromeOptions()
        options.binary_location = '/usr/bin/chromium'
        for argument in ARGUMENTS:
            options.add_argument(argument)
        self.driver = webdriver.Chrome(
            options, service.Service('/usr/bin/chromedriver'))
        add_cleanup(self.driver.quit)
        self.open('auth/login/')
        self.type('username', 'demo')
        self.type('password', state.passwords()['demo'])
        self.find("//button[@id='loginBtn']").click()
        self.await_text('Overview')

    def open(self, path):
        """Open a page.

        :param path: its address below that of Horizon
        """
        self.driver.get(cloud_state.url('horizon', f'/{path}'))

    def all(self, xpath):
        """Return those elements that can be seen now."""
        return [element for element in
                self.driver.find_elements(By.XPATH, xpath)
                if element.is_displayed()]

    def find(self, xpath):
        """Return the first element that can be seen, and wait for it."""
        return self._until(xpath, lambda: next(iter(self.all(xpath)), None))

    def click(self, xpath):
        """Click on an element as soon as nothing covers it."""
        def clicked():
            for element in self.all(xpath)[:1]:
                element.click()
                return True
            return False

        self._until(f'a click on {xpath}', clicked)

    def type(self, name, text):
        """Fill in a field.

        :param name: the name of the field in its form
        """
        field = self.find(f"//input[@name='{name}']")
        field.clear()
        field.send_keys(text)

    def await_text(self, text):
        self.find(f"//*[contains(text(), '{text}')]")

    def row(self, text):
        """Return the XPath of the row of a table that contains a text."""
        return f"//tr[.//*[text()[normalize-space()='{text}']]]"

    def row_text(self, text):
        """Return what can be read in a row; an empty text if there is none."""
        try:
            return ' '.join(row.text for row in self.all(self.row(text)))
        except exceptions.StaleElementReferenceException:
            return ''  # The page is being updated.

    def await_row(self, path, text, condition, what):
        """Reload a page until a row is as expected.

        Horizon does not update the list of images by itself.

        :param path: of the page
        :param text: of a cell in the row
        :param condition: called with what can be read in the row
        :param what: name of the condition, for the error's text
        """
        def check():
            self.open(path)
            self.find("//table//tbody")
            wait.until(f'the rows of {path}', self._is_loaded, PAGE_TIMEOUT)
            return condition(self.row_text(text))

        wait.until(f'{what} in the row {text}', check, PAGE_TIMEOUT, 1)

    def _is_loaded(self):
        return not self.all("//*[contains(@class, 'modal-loading')] | "
                            "//*[contains(text(), 'Loading')]")

    def picture(self, name):
        """Take a picture of the page for the documentation.

        :param name: of the file, without its extension
        """
        if SCREENSHOTS:
            directory = pathlib.Path(SCREENSHOTS)
            directory.mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(directory / f'{name}.png'))

    def request_snapshot(self, server, name, picture=None):
        """Press the button of a server, and name its image.

        :param server: id of the server
        :param picture: name of a picture of the form
        """
        self.open('project/instances/')
        self.click(f"//a[@id='instances__row_{server}__action_snapshot']")
        self.type('name', name)
        if picture:
            self.picture(picture)
        self.click("//*[@id='modal_wrapper']//input[@type='submit']")
        self.await_text(name)

    def delete_image(self, name):
        self.open('project/images')
        row = self.row(name)
        action = "*[text()[normalize-space()='Delete Image']]"
        self.click(f"{row}//*[contains(@class, 'dropdown-toggle')]")
        self.find(f'{row}//{action}')
        self.picture('horizon-cancel')
        self.click(f'{row}//{action}')
        self.click(f"//*[contains(@class, 'modal-footer')]//{action}")

    def launch(self, image, server, flavor):
        """Start a server from an image.

        :param image: name of the image
        :param server: name for the server
        :param flavor: name of a flavor
        """
        self.open('project/images')
        self.click(f"{self.row(image)}//*[text()[normalize-space()='Launch']]")
        self.find(WIZARD)
        self.type('name', server)
        self._step('Flavor')
        self.click(f"{WIZARD}{self.row(flavor)}"
                   f"//*[contains(@class, 'fa-arrow-up')]")
        self._step('Networks')
        self.picture('horizon-launch')
        self.click(f"{WIZARD}//button[contains(@class, 'finish')]"
                   f"[not(@disabled)]")

    def _step(self, title):
        self.click(f"{WIZARD}//li//span[text()[normalize-space()='{title}']]")

    def _until(self, what, check):
        """Wait for a check, through errors of a page that changes."""
        def checked():
            try:
                return check()
            except (exceptions.StaleElementReferenceException,
                    exceptions.ElementNotInteractableException,
                    exceptions.ElementClickInterceptedException):
                return None

        return wait.until(what, checked, PAGE_TIMEOUT)
