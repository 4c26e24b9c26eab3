"""Coverage of the 95 % interval of the AUC, and level of the test of two AUCs, by simulation.

    python benchmarks/interval_coverage.py [--sets 2000] [--bootstrap-sets 200]

Scores are normal with the AUC given; half of the studies are positive. With 1 to 3 views per study, the images of a
study share a random effect with half of the variance, and the AUC is that of the images. Prints the share of simulated
sets whose interval contains the true AUC, for `kmura.metrics.auc_interval` and the percentile bootstrap of patients,
and the share of bootstrap intervals of zero width. Then, for two equally good models, the share of p-values below 0.05
of `kmura.metrics.delong` with and without patients, and how often `prevalence_shift` reports a change between splits of
equal prevalence.
"""

import argparse
import time

import numpy as np
from scipy.stats import norm

from kmura import metrics
from kmura.evaluation.calibrators import prevalence_shift


def simulated(rng: np.random.Generator, studies: int, auc: float, views: int, models: int = 1):
    """Returns labels [N], scores [models, N] and studies [N] of a set; 1 to `views` images per study."""
    count = rng.integers(1, views + 1, studies)
    study = np.repeat(np.arange(studies), count)
    label = (np.arange(studies) % 2)[study]
    gain = np.sqrt(2) * norm.ppf(auc)
    effect = rng.normal(0, 1, (models, studies))[:, study]
    noise = rng.normal(0, 1, (models, len(study)))
    return label, gain * label + np.sqrt(0.5) * (effect + noise), study


def coverage(studies: int, auc: float, views: int, sets: int, with_bootstrap: int) -> list[float]:
    """Returns the coverage of both intervals and the share of bootstrap intervals of zero width."""
    covered, bootstrap, empty = 0, 0, 0
    for seed in range(sets):
        label, (score,), study = simulated(np.random.default_rng(seed), studies, auc, views)
        interval = metrics.auc_interval(metrics.clustered_auc(label, score, study))
        assert interval.high > interval.low
        covered += interval.low <= auc <= interval.high
        if seed < with_bootstrap:
            weights, _ = metrics.bootstrap_weights(study, label, resamples=500, seed=seed)
            low, high = np.percentile(metrics.auc(label, score, weights), [2.5, 97.5])
            bootstrap += low <= auc <= high
            empty += low == high
    return [covered / sets, bootstrap / with_bootstrap, empty / with_bootstrap]


def rejections(studies: int, auc: float, views: int, sets: int) -> list[float]:
    """Returns the shares of p < 0.05 with and without patients, and the share without a p-value."""
    found = []
    for seed in range(sets):
        label, (one, other), study = simulated(np.random.default_rng(seed), studies, auc, views, models=2)
        found.append((metrics.delong(label, one, other, study).p, metrics.delong(label, one, other).p))
    clustered, independent = np.array(found).T
    return [(clustered < 0.05).mean(), (independent < 0.05).mean(), np.isnan(clustered).mean()]


def false_alarms(patients: int, views: int, sets: int) -> list[float]:
    """Returns the shares of sets in which prevalence_shift reports a change, with and without patients."""
    found = []
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        parts = []
        for _ in range(2):
            patient = np.repeat(np.arange(patients), rng.integers(1, views + 1, patients))
            parts.append(((rng.random(patients) < 0.4)[patient].astype(int), patient))
        (one, one_patient), (other, other_patient) = parts
        found.append(
            (prevalence_shift(one, other, patients=(one_patient, other_patient)), prevalence_shift(one, other))
        )
    return [np.mean([bool(sentence) for sentence in column]) for column in zip(*found, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--bootstrap-sets", type=int, default=200)
    arguments = parser.parse_args()
    start = time.perf_counter()
    print("| studies | AUC | views | coverage | percentile bootstrap | of zero width |")
    print("| --- | --- | --- | --- | --- | --- |")
    for views in (1, 3):
        for studies in (20, 40, 100, 400):
            for auc in (0.8, 0.9, 0.95, 0.99):
                shares = coverage(studies, auc, views, arguments.sets, arguments.bootstrap_sets)
                which = "1" if views == 1 else f"1 to {views}"
                print(f"| {studies} | {auc} | {which} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)
    print("\n| studies | views | p < 0.05, by patient | p < 0.05, independent | no p |")
    print("| --- | --- | --- | --- | --- |")
    for views in (1, 3, 8):
        for studies in (20, 40, 100, 400):
            shares = rejections(studies, 0.85, views, arguments.sets)
            which = "1" if views == 1 else f"1 to {views}"
            print(f"| {studies} | {which} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)
    print("\n| patients per split | views | prevalence shift, by patient | independent |")
    print("| --- | --- | --- | --- |")
    for views in (1, 3, 8):
        for patients in (40, 200, 1000):
            shares = false_alarms(patients, views, min(arguments.sets, 1000))
            which = "1" if views == 1 else f"1 to {views}"
            print(f"| {patients} | {which} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)
    seconds = time.perf_counter() - start
    print(f"\n{arguments.sets} sets each ({arguments.bootstrap_sets} of the bootstrap), {seconds:.0f} s")


if __name__ == "__main__":
    main()
