"""What `kmura explain` prints: how faithful the maps are, and how they agree with boxes."""

from rich.table import Table

from kmura.cli.display import console, one_line


def show_explanation(explanation) -> None:
    """Prints the tables of an `Explanation`."""
    out = console()
    for maps in (explanation, *explanation.beside):
        out.print(_worth(explanation, maps))
        if maps.localization:
            out.print(_boxes(explanation, maps))
            if maps.localization.classes:
                out.print(_boxes_of_classes(maps))
    for note in explanation.notes:
        out.print(f"boxes: {one_line(note)}")
    counts = ", ".join(f"{number} {name}" for name, number in explanation.counts.items())
    empty = ", ".join(f"{100 * maps.empty_share:.0f} %" for maps in (explanation, *explanation.beside))
    out.print(f"images: {counts}; maps without positive evidence: {empty} of the sample")
    out.print(f"galleries of {len(explanation.cases)} images in {explanation.run}/explain")


def _worth(explanation, maps) -> Table:
    """How faithful the maps of one tap of an `Explanation` are."""
    table = Table(
        title=f"{explanation.area}, {explanation.phase}, {explanation.split}: "
        f"{explanation.method_title} of {maps.tap} on {explanation.sample} images, means with 95 % intervals",
        title_justify="left",
    )
    for heading in ("", "by the maps", "by chance"):
        table.add_column(heading, justify="left" if not heading else "right")
    means = maps.curves.means
    for label, name in (
        ("area under deletion (less is better)", "deletion"),
        ("area under insertion (more is better)", "insertion"),
        ("drop without the hottest part", "drop"),
    ):
        table.add_row(label, str(means[name]), str(means[f"random_{name}"]))
    return table


def _boxes(explanation, maps) -> Table:
    """How the maps of one tap of an `Explanation` agree with boxes."""
    where = maps.localization
    which = "of all labels" if explanation.boxes_of == "all" else "with the finding"
    table = Table(
        title=f"boxes: {explanation.method_title} of {maps.tap} on {where.images} images {which}, means with 95 % "
        "intervals",
        title_justify="left",
    )
    for heading in ("", "by the maps", "by chance", "maps of other patients"):
        table.add_column(heading, justify="left" if not heading else "right")
    for title, value, *references in where.rows:
        table.add_row(title, str(value), *("" if number is None else f"{number:.3f}" for number in references))
    return table


def _boxes_of_classes(maps) -> Table:
    """The same for each class of the boxes."""
    title = f"boxes of each class, {maps.tap}; by chance, pointing and energy are the covered share of the image"
    table = Table(title=title, title_justify="left")
    for heading in ("class", "n", "covered", "pointing game", "energy inside", "IoU", "by chance"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, where in maps.localization.classes.items():
        cells = (str(value) for value in (where.pointing, where.energy, where.iou))
        numbers = (str(where.images), f"{where.chance:.3f}")
        table.add_row(one_line(name) or "(no class)", *numbers, *cells, f"{where.random['iou']:.3f}")
    return table
