"""The command that scores a run: evaluate."""

import click


@click.command()
@click.argument("run", type=click.Path())
@click.option("--records", type=click.Path(), help="Folder of the records, if they have moved since the run.")
@click.option(
    "--resamples", type=click.IntRange(1), default=2000, show_default=True, help="Bootstrap resamples of patients."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
def evaluate(run, records, resamples, seed):
    """Score the best model of RUN (runs/AREA/PHASE) at image and study level."""
    from kmura.cli.display import show_evaluation
    from kmura.evaluation.classification import evaluate

    show_evaluation(evaluate(run, records=records, resamples=resamples, seed=seed))


COMMANDS = (evaluate,)
