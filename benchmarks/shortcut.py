"""Does CAM-erasing or mixing keep a model from a shortcut? Phantoms with a planted marker, one table.

    python benchmarks/shortcut.py [--area XR_WRIST] [--seeds 3] [--shortcut 0.9] [--set cam.erase_every=2 ...]

With probability --shortcut an abnormal TRAINING image (so also those of `tune`) carries a marker of one fixed look; no
held-out image does. `densenet_mini` is trained at 96 pixels with and without erasing, with and without mixing. Judged
is the model at the end of training: tune carries the shortcut too, so it cannot choose an epoch (what it would have
chosen stands in the last column). For each way and seed: the AUC of the held-out studies, and where the maximum of the
map (Grad-CAM++ of P4 towards abnormal, averaged with the mirrored image's) falls: into the lesion's box on abnormal
held-out images, and into the marker's box on training images that carry it. (Erased is by default P5, 3 x 3 places at
96 pixels; cam.tap=P4 erases what is measured.) Chance is the mean share of the image that the boxes cover.
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

WAYS = {
    "plain": {},
    "erasing": {"cam.from_epoch": 3},
    "mixing": {"mix.until_epoch": 9},
    "both": {"cam.from_epoch": 3, "mix.until_epoch": 9},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--area", default="XR_WRIST")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shortcut", type=float, default=0.9)
    parser.add_argument("--train-studies", type=int, default=400)
    parser.add_argument("--valid-studies", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for all ways")
    arguments = parser.parse_args()

    import keras
    import numpy as np

    from kmura.config import load_config, parse_setting
    from kmura.evaluation.classification import evaluate, level_scores
    from kmura.evaluation.predictions import predict_split
    from kmura.records.phantom import write_phantoms
    from kmura.records.writer import build_records
    from kmura.training.fit import fit

    class KeepEnd(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.classifier = self.model.classifier

    settings = {"mix.aug_p": 0.5, "cam.erase_every": 2} | dict(map(parse_setting, arguments.set))
    with tempfile.TemporaryDirectory() as folder:
        images, records = Path(folder) / "images", Path(folder) / "records"
        write_phantoms(
            images,
            areas=(arguments.area,),
            train_studies=arguments.train_studies,
            valid_studies=arguments.valid_studies,
            shortcut=arguments.shortcut,
            side=256,
        )
        build_records(images, records)
        print(f"{arguments.area}, shortcut {arguments.shortcut}, {arguments.seeds} seeds, {platform.platform()}")
        print(
            "way | held-out study AUC | seeds | map's maximum in the lesion | on the marker (training images) | "
            "AUC of the epoch that tune chose | s/run"
        )
        for way in arguments.ways:
            found, started = [], time.time()
            for seed in range(arguments.seeds):
                config = load_config("demo", settings | WAYS[way] | {"train.seed": seed})
                runs, end = Path(folder) / way / str(seed), KeepEnd()
                run = fit(records, area=arguments.area, runs=runs, config=config, callbacks=[end])
                chosen = evaluate(run.folder, resamples=10).splits["valid"]["study"].scores["auc"].value
                table = predict_split(end.classifier, records, arguments.area, "valid", config.data)
                auc = level_scores(table, "study", resamples=10).scores["auc"].value
                found.append((auc, *pointing(end.classifier, images, records, arguments.area, config), chosen))
            aucs, lesion, by_chance, marker, marker_chance, chosen = np.array(found).T
            each = " ".join(f"{auc:.3f}" for auc in aucs)
            print(
                f"{way} | {aucs.mean():.3f} +- {spread(aucs):.3f} | {each} | "
                f"{lesion.mean():.2f} +- {spread(lesion):.2f} (chance {by_chance.mean():.2f}) | "
                f"{marker.mean():.2f} +- {spread(marker):.2f} (chance {marker_chance.mean():.2f}) | "
                f"{chosen.mean():.3f} +- {spread(chosen):.3f} | {(time.time() - started) / arguments.seeds:.0f}",
                flush=True,
            )


def spread(values) -> float:
    """Standard deviation over the seeds (n - 1)."""
    return values.std(ddof=1) if len(values) > 1 else 0.0


def pointing(classifier, images: Path, records: Path, area: str, config) -> tuple[float, float, float, float]:
    """Share of maps whose maximum lies in the lesion (held-out), its chance; the same for the marker (training)."""
    import pandas as pd

    from kmura import cam
    from kmura.data import pipeline

    engine = cam.CamEngine(classifier, tap="P4", fallback=None)
    target = cam.named_target("abnormal", ("normal", "abnormal"))
    lesions, markers = pd.read_csv(images / "lesions.csv"), pd.read_csv(images / "markers.csv")
    shares = []
    for split, boxes in (("valid", lesions), ("train", markers[markers["kind"] == "shortcut"])):
        hits, covered = [], []
        by_image = {name: rows[["x0", "y0", "x1", "y1"]].to_numpy(float) for name, rows in boxes.groupby("image")}
        paths = pipeline.row_keys(records, area, split)["image"].to_numpy()
        batches = pipeline.eval_dataset(records, area, split, data=config.data).map(lambda batch: batch["image"])
        at = 0
        for batch in batches:
            maps = engine.compiled(batch, target, flip=True)[0].numpy()
            for heat, name in zip(maps, paths[at : at + len(maps)], strict=True):
                if name in by_image:
                    hit, share = in_box(heat, by_image[name], size_of(images / name))
                    hits.append(hit)
                    covered.append(share)
            at += len(maps)
        shares += [sum(hits) / max(1, len(hits)), sum(covered) / max(1, len(covered))]
    return tuple(shares)


def in_box(heat, boxes, size: tuple[int, int]) -> tuple[bool, float]:
    """Whether the maximum of a map lies in one of the boxes of an image of this size, and what share they cover."""
    import numpy as np

    rows, columns = heat.shape
    inside = np.zeros(heat.shape, bool)
    for x0, y0, x1, y1 in boxes * np.array([columns / size[0], rows / size[1]] * 2):
        inside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return bool(heat.max() > 0 and inside.ravel()[heat.argmax()]), float(inside.mean())


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file."""
    from PIL import Image

    with Image.open(path) as image:
        return image.size


if __name__ == "__main__":
    main()
