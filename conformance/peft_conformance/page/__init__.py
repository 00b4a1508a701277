"""One self-contained HTML page of several reports: what holds where, why not, and a script that shows it.

`data` turns reports and specs into what the page holds, `render` puts that, the styles and the scripts into
one file. Nothing on the page is fetched from anywhere.
"""

from peft_conformance.page.data import find_reports
from peft_conformance.page.render import render

__all__ = ["find_reports", "render"]
