"""The HTML of the report: chapters and their comparison as one page that needs no other file."""

import datetime

import jinja2

import kmura
from kmura.report.chapter import number_text
from kmura.report.gather import Contents

PAGE = "page.html.jinja"
SHOWN = ("auc", "f1", "kappa")  # scores of the comparison


FILTERS = {"number": number_text, "percent": lambda share: f"{100 * share:.0f} %"}


def render(contents: Contents) -> str:
    """Returns the page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kmura.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    galleries = [chapter for chapter in contents.chapters if chapter.gallery]
    return environment.get_template(PAGE).render(
        title="kmura report",
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=kmura.__version__,
        chapters=contents.chapters,
        overviews=contents.overviews,
        galleries=galleries,
        readings=list(dict.fromkeys(chapter.reading for chapter in contents.chapters if chapter.reading)),
        outcomes={shown.case.outcome for chapter in galleries for shown in chapter.gallery.cases},
        comparison=contents.comparison,
        compared=contents.compared,
        why_not=contents.why_not,
        shown=SHOWN,
        sentences=_sentences(contents),
    )


def _sentences(contents: Contents) -> list[str]:
    """The differences between the compared runs in the scores that are shown."""
    differences = contents.comparison.differences if contents.comparison else []
    return [difference.text for difference in differences if difference.level == "study" and difference.score in SHOWN]
