"""The plan of `kmura fit --dry-run` as a table."""

from rich.table import Table

from kmura.cli.display import console


def show_plans(plans) -> None:
    """Prints one table per Plan on stdout, and a line that says that nothing was done."""
    out = console()
    for plan in plans:
        out.print(plan_table(plan))
    out.print("dry run: nothing was trained or written")


def plan_table(plan) -> Table:
    """Returns the content of a Plan, one row per subject."""
    table = Table(title=f"{plan.area}, {plan.phase}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("folder", f"{plan.folder}: {_begin(plan)}")
    if plan.source:
        table.add_row("tuned values", plan.source)
    table.add_row("images", _images(plan))
    table.add_row("steps", _steps(plan))
    data = plan.config.data
    table.add_row("model", f"{plan.config.model.words}; {data.image_size} x {data.image_size} pixels; {plan.precision}")
    table.add_row("parameters", f"{plan.parameters:,}, {plan.trainable:,} of them trainable")
    table.add_row("weights", "; ".join(plan.weights))
    table.add_row("decoded images", _cache(plan))
    available = f"; {size_text(plan.available_bytes)} are available" if plan.available_bytes else ""
    table.add_row("memory", f"about {size_text(plan.training_bytes)} for training, estimated{available}")
    table.add_row("disk", f"at most {size_text(plan.disk_bytes)}; {size_text(plan.free_bytes)} are free")
    for note in plan.notes:
        table.add_row("note", note)
    return table


def _begin(plan) -> str:
    kind = "search" if plan.phase == "tune" else "run"
    if not plan.continues:
        return f"a new {kind}"
    if plan.phase == "tune":
        return "the search continues"
    if not plan.epochs:
        return f"the run has finished all of its {plan.epochs_done} epochs; nothing is left to train"
    return f"the run continues after epoch {plan.epochs_done}"


def _images(plan) -> str:
    counts = [f"{split} {number:,} ({plan.studies[split]:,} studies)" for split, number in plan.images.items()]
    unknown = plan.images["train"] - plan.labelled
    return ", ".join(counts) + (f"; {unknown:,} of train without a known label are left out" if unknown else "")


def _steps(plan) -> str:
    batch = f"{plan.steps_per_epoch:,} per epoch (batches of {plan.config.train.batch_size})"
    if plan.phase != "tune":
        return f"{batch} x {plan.epochs} epochs = {plan.total_steps:,}"
    if plan.trials is None:
        return f"{batch}, trials of at most {plan.epochs} epochs; hyperband decides how many"
    return f"{batch} x {plan.epochs} epochs x {plan.trials} trials = {plan.total_steps:,} at most"


def _cache(plan) -> str:
    places = {"memory": "kept in memory", "disk": "kept on disk", "off": "decoded when they are drawn"}
    sizes = {split: size_text(count) for split, count in plan.cache_bytes.items()}
    return "; ".join(f"{split}: {sizes[split]}, {places[place]}" for split, place in plan.cache.items())


def size_text(count: int) -> str:
    """Returns a number of bytes as text: `12 MB`, `3.4 GB`."""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
