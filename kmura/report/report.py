"""One self-contained HTML page about runs, in three steps: gather their chapters, render the page, save it."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from kmura.errors import InputError, reason, remedy
from kmura.files import check_replaceable, replacing
from kmura.report.figures import Picture
from kmura.report.gather import gather
from kmura.report.render import render


def report(
    runs: Sequence[str | os.PathLike],
    out: str | os.PathLike = "report.html",
    *,
    eda: str | os.PathLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Path:
    """Writes the page about evaluated runs to `out`, and its figures as SVG and PNG to the folder `OUT-figures`.

    Scores are those of `metrics.json`; curves are drawn from `predictions.csv`. Several runs are compared. The
    galleries of runs that were explained are part of the page.

    Args:
        runs: folders of evaluated runs.
        out: the file.
        eda: the file that `kmura eda` wrote; None looks for `eda.json` in the folder of each run's records.
        resamples, seed: of the comparison's bootstrap.

    Returns:
        the path of the page.

    Raises:
        InputError: no runs are given, a run is not evaluated, one of its files is damaged, or `out` cannot be written.
    """
    out = Path(out)
    folder = out.with_name(f"{out.stem}-figures")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}, the folder for the figures, is a file; move it or choose another --out")
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise InputError(f"{out} is a device or a pipe, beside which no figures can be written; give a file as --out")
    if out.parent.is_dir():
        check_replaceable(out)
    contents = gather(runs, eda=eda, resamples=resamples, seed=seed)
    page = render(contents)
    save(page, out, contents.pictures, folder)
    return out


def save(page: str, out: Path, pictures: Iterable[Picture], folder: Path) -> None:
    """Writes the pictures to a folder and then the page, each file whole or not at all.

    A picture is `NAME.svg` (black on a transparent background) and `NAME.png` (on white, 200 dots per inch). Other
    files of the folder are left as they are.

    Raises:
        InputError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fix = remedy(error, "choose another --out")
        raise InputError(f"{folder} cannot be written: {reason(error)}; {fix}") from error
    for picture in pictures:
        with replacing(folder / f"{picture.name}.svg") as file:
            file.write(picture.svg.replace("currentColor", "#000000"))
        with replacing(folder / f"{picture.name}.png", "wb") as file:
            file.write(picture.png)
    with replacing(out) as file:
        file.write(page)
