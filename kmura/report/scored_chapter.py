"""The chapter of predictions that another tool made: what the table says, without a run, a model or records."""

from kmura.evaluation.given_predictions import GivenPredictions
from kmura.evaluation.scored_predictions import ScoredPredictions
from kmura.report.chapter import Chapter, Text
from kmura.report.classification_chapter import READING, counts_table, fails, scores_sentence, trusted, works
from kmura.report.classification_details import details_of, question_of
from kmura.report.classification_pictures import Names
from kmura.report.subgroup_section import subgroup_section


def scored_chapter(scored: ScoredPredictions, given: GivenPredictions, number: int) -> Chapter:
    """Returns the chapter of a file of predictions.

    Args:
        scored: the scores of the file.
        given: the table that they are of.
        number: of the chapter, from 0.
    """
    table, task, scores, split = given.table, given.task, scored.scores, scored.split
    question = question_of(table, scores, scored.area, task)
    details = details_of(scores, split, question, task)
    names = Names(f"file{number}", scored.name, f"{scored.name}, {split}")
    warnings = [f"Leakage between splits: {leak}." for leak in scored.leaks]
    if not scored.has_patients:
        warnings.append("The file does not identify patients: leakage between splits could not be checked by patient.")
    return Chapter(
        id=names.id,
        title=scored.name,
        area=scored.area,
        path=scored.source,
        headline=_headline(scored, scores_sentence(details, scored.has_patients, split != scored.fit_on)),
        tables=(counts_table(table, question, task, scored.has_patients),),
        notes=tuple(_sentence(note) for note in (*scored.remarks, *scores.notes)),
        warnings=tuple(warnings),
        sections=(
            works(names, table, question, details, task),
            fails(names, table, question, details, scored.area, task),
            trusted(names, table, question, details, task),
            subgroup_section(names, scored.subgroups, split),
        ),
        facts={
            "columns": "; ".join(scored.columns),
            "pooling of a study's images": scores.options.pooling,
            "studies with images of both labels": scores.options.mixed_studies,
            "bootstrap": f"{scores.options.resamples} resamples, seed {scores.options.seed}",
            "SHA-256": scored.sha256,
        },
        details=details,
        reading=READING,
        source="file of predictions",
    )


def _headline(scored: ScoredPredictions, sentence: str) -> tuple[Text, ...]:
    if not scored.fit_on:
        return (Text(f"{sentence} Nothing was fitted on these data, so the probabilities are those of the file."),)
    fitted = f"{sentence} Calibration and thresholds were fitted on {scored.fit_on}"
    if scored.fit_on != scored.split:
        return (Text(f"{fitted}."),)
    return Text(f"{fitted}, the split scored here: calibrated scores are "), Text("optimistic", True), Text(".")


def _sentence(text: str) -> str:
    return text if ":" in text.split(" ")[0] else text[:1].upper() + text[1:]
