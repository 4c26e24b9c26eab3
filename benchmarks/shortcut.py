"""Effect of CAM-erasing and mixing on shortcut learning, on phantoms with a marker, as one table.

    python benchmarks/shortcut.py [--area XR_WRIST] [--seeds 3] [--shortcut 0.9] [--set cam.erase=positive ...]

With probability --shortcut, an abnormal training image (including those of `val`) has a marker of fixed appearance;
held-out images never have it. `densenet_mini` is trained at 96 pixels with and without erasing, and with and without
mixing. The model at the end of training is evaluated: `val` contains the shortcut too, so it cannot select an epoch
(the last column shows the epoch that it would have selected). For each way and seed, the table shows:

- the AUC of the held-out studies;
- how often the maximum of the map (Grad-CAM++ of P4 towards abnormal, averaged with the map of the mirrored image) lies
  in the lesion's box on abnormal held-out images, and in the marker's box on training images that have it. Chance is
  the mean share of the image that the boxes cover;
- the region that CAM-erasing with these settings erases in training images with the marker: the share of the marker's
  box and of the lesion's box. Chance is the share of the image;
- whether the erased hole itself has become a shortcut: how much larger the logit of normal held-out images is with the
  hole of a training image with the marker than with the hole of a normal training image.
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
    parser.add_argument("--test-studies", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings for all ways; they override the settings of a way",
    )
    arguments = parser.parse_args()

    import keras
    import numpy as np

    from kmura.classification.fit import fit
    from kmura.config import load_config, parse_setting
    from kmura.data.dataset import Dataset
    from kmura.evaluation.evaluate import evaluate
    from kmura.evaluation.inference import predict_split
    from kmura.evaluation.scoring import ScoreOptions, level_scores
    from kmura.phantoms.radiographs import write_phantoms
    from kmura.records.writer import build_records

    class KeepEnd(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.classifier = self.model.classifier

    settings, given = {"mix.aug_p": 0.5, "cam.erase_every": 2}, dict(map(parse_setting, arguments.set))
    with tempfile.TemporaryDirectory() as folder:
        images, records = Path(folder) / "images", Path(folder) / "records"
        write_phantoms(
            images,
            areas=(arguments.area,),
            train_studies=arguments.train_studies,
            test_studies=arguments.test_studies,
            shortcut=arguments.shortcut,
            side=256,
        )
        build_records(images, records)
        print(f"{arguments.area}, shortcut {arguments.shortcut}, {arguments.seeds} seeds, {platform.platform()}")
        print(
            "way | held-out study AUC | seeds | map's maximum in the lesion | on the marker (training images) | "
            "erased of the marker | of the lesion | of the image | hole's logit | "
            "AUC of the epoch that val selects | s/run"
        )
        for way in arguments.ways:
            found, started = [], time.time()
            for seed in range(arguments.seeds):
                config = load_config("demo", settings | WAYS[way] | given | {"train.seed": seed})
                runs, end = Path(folder) / way / str(seed), KeepEnd()
                dataset = Dataset(records, arguments.area, config.data)
                run = fit(records, area=arguments.area, runs=runs, config=config, callbacks=[end])
                chosen = evaluate(run.folder, options=ScoreOptions(resamples=10))
                chosen = chosen.scores.splits["test"]["study"].scores["auc"].value
                table = predict_split(end.classifier, dataset, "test")
                auc = level_scores(table, "study", resamples=10).scores["auc"].value
                found.append((auc, *looked_at(end.classifier, images, dataset, config), chosen))
            aucs, lesion, by_chance, marker, marker_chance, *erased, chosen = np.array(found).T
            each = " ".join(f"{auc:.3f}" for auc in aucs)
            print(
                f"{way} | {aucs.mean():.3f} +- {spread(aucs):.3f} | {each} | "
                f"{lesion.mean():.2f} +- {spread(lesion):.2f} (chance {by_chance.mean():.2f}) | "
                f"{marker.mean():.2f} +- {spread(marker):.2f} (chance {marker_chance.mean():.2f}) | "
                f"{' | '.join(f'{share.mean():.2f}' for share in erased[:3])} | "
                f"{erased[3].mean():+.2f} +- {spread(erased[3]):.2f} | "
                f"{chosen.mean():.3f} +- {spread(chosen):.3f} | {(time.time() - started) / arguments.seeds:.0f}",
                flush=True,
            )


def spread(values) -> float:
    """Returns the standard deviation over the seeds (n - 1)."""
    return values.std(ddof=1) if len(values) > 1 else 0.0


def looked_at(classifier, images: Path, dataset, config) -> tuple[float, ...]:
    """Returns the share of maps whose maximum lies in the lesion (held-out images) and its chance, the same for the
    marker (training images that have it), the erased shares of marker, lesion and image, and the effect of the hole."""
    import numpy as np
    import pandas as pd

    from kmura import cam

    judge = cam.CamEngine(classifier, tap="P4", fallback=None)
    abnormal = cam.named_target("abnormal", ("normal", "abnormal"))
    eraser = cam.CamEngine(classifier, tap=config.cam.tap, fallback=cam.FALLBACKS[config.cam.tap])
    lesions, markers = pd.read_csv(images / "lesions.csv"), pd.read_csv(images / "markers.csv")
    lesions, markers = boxes_of(lesions), boxes_of(markers[markers["kind"] == "shortcut"])
    pointing, erased, holes = [], [], {"marker": [], "normal": []}
    for split, boxes in (("test", lesions), ("train", markers)):
        found = []
        paths = iter(dataset.rows(split)["image"])
        for batch in dataset.eval(split):
            maps = judge.compiled(batch["image"], abnormal, flip=True)[0].numpy()
            masks = cam.erase_mask(eraser.compiled(batch["image"])[0], config.cam.erase_q).numpy()
            for heat, mask, name in zip(maps, masks, paths):  # noqa: B905 (the iterator of paths continues with the next batch)
                if split == "train" and "_negative" in name:
                    holes["normal"].append(mask)
                if name not in boxes:
                    continue
                size = size_of(images / name)
                inside = area_of(boxes[name], heat.shape, size)
                found.append((heat.max() > 0 and inside.ravel()[heat.argmax()], inside.mean()))
                if split == "train":
                    lesion = area_of(lesions[name], heat.shape, size)
                    holes["marker"].append(mask)
                    erased.append((mask[inside].mean(), mask[lesion].mean() if lesion.any() else np.nan, mask.mean()))
        pointing += list(np.mean(found, axis=0)) if found else [0.0, 0.0]
    gained = logit_in_holes(classifier, dataset, holes["marker"])
    gained -= logit_in_holes(classifier, dataset, holes["normal"])
    return *pointing, *np.nanmean(erased, axis=0), gained


def logit_in_holes(classifier, dataset, masks) -> float:
    """Returns the mean logit of the normal held-out images, each set to black where a mask is 1; masks are cycled."""
    import itertools

    import numpy as np

    masks, logits = itertools.cycle(masks or [0.0]), []
    for batch in dataset.eval("test"):
        normal = batch["image"].numpy()[batch["label"].numpy()[:, 0] == 0]
        kept = np.array([image * (1 - np.asarray(next(masks))[..., None]) for image in normal])
        logits += classifier(kept, training=False).numpy()[:, 0].tolist() if len(kept) else []
    return float(np.mean(logits))


def boxes_of(table) -> dict:
    """Returns image -> its boxes [n, 4] (x0, y0, x1, y1)."""
    import collections

    import numpy as np

    corners = ["x0", "y0", "x1", "y1"]
    groups = {name: rows[corners].to_numpy(float) for name, rows in table.groupby("image")}
    return collections.defaultdict(lambda: np.empty((0, 4)), groups)


def area_of(boxes, shape: tuple[int, int], size: tuple[int, int]):
    """Returns which pixels of a map of a shape lie in boxes of an image of a width and height: bool [rows, columns]."""
    import numpy as np

    inside = np.zeros(shape, bool)
    for x0, y0, x1, y1 in boxes * np.array([shape[1] / size[0], shape[0] / size[1]] * 2):
        inside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return inside


def size_of(path: Path) -> tuple[int, int]:
    """Returns width and height of an image file."""
    from PIL import Image

    with Image.open(path) as image:
        return image.size


if __name__ == "__main__":
    main()
