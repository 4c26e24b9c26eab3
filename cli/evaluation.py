"""The command that scores a run: evaluate."""

import click


@click.command()
@click.argument("run", type=click.Path())
@click.option("--records", type=click.Path(), help="Folder of the records, if they have moved since the run.")
@click.option("--resamples", default=2000, show_default=True, help="Bootstrap resamples of patients.")
@click.option("--seed", default=0, show_default=True, help="Of the bootstrap.")
def evaluate(run, records, resamples, seed):
    """Score the best model of RUN (runs/AREA/PHASE) at image and study level."""
    from kmura.cli.display import console, evaluation_table
    from kmura.evaluation.classification import evaluate

    found = evaluate(run, records=records, resamples=resamples, seed=seed)
    console().print(evaluation_table(found))
    if found.select_on == "valid":
        click.echo("the best epoch was chosen on valid: its scores there are optimistic")
    if not found.has_patients:
        click.echo("these records know no patients: intervals resample images, leakage could not be checked")


COMMANDS = (evaluate,)
