"""Whether the maps of a COVID-19 classifier hit the lungs: a small model on chest radiographs with boxes of the lungs.

    python benchmarks/lungs.py --data covid-chestxray-dataset --boxes annotations.json [--epochs 12] [--image-size 96]
        [--taps P5 P4] [--sizes sizes.csv] [--work FOLDER]

`--data` is the folder of `transfer.py`, `--boxes` a COCO file of the lungs in pixels of the original images. A fifth of
the patients is held out, as in `transfer.py`; records keep patients and file names. The model (`densenet_mini`, random
weights) learns COVID-19 against other findings. `kmura explain --boxes-of all` compares the map of the predicted class
of every held-out image with its lungs, whatever its label is. `--sizes` gives the original sizes in a CSV instead of
those in the COCO file. The last columns are the same means, computed here from the COCO file and the maps alone.
"""

import argparse
import gzip
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image, ImageDraw
from transfer import AREA, folds_of, table_of

FOLDS = 5
FINE = 8  # points per pixel and axis, at which the check draws the boxes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with metadata.csv and a folder of images")
    parser.add_argument("--boxes", type=Path, required=True, help="COCO file of lungs, may be compressed by gzip")
    parser.add_argument("--sizes", type=Path, help="CSV of original sizes")
    parser.add_argument("--work", type=Path, help="folder for records and run, kept; default: a temporary one")
    parser.add_argument("--image-size", type=int, default=96, help="pixels")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--taps", nargs="+", default=["P5", "P4"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        records, began = records_of(arguments.data, work), time.time()
        run = trained(records, work, arguments)
        print(
            f"{arguments.image_size} px, {arguments.epochs} epochs, {time.time() - began:.0f} s, {platform.platform()}"
        )
        for tap in arguments.taps:
            report(run, records, tap, arguments)


def records_of(data: Path, work: Path) -> Path:
    """Returns the records of the labelled X-rays; a fifth of the patients is the test split."""
    import kmura
    from kmura.config import RecordsConfig

    images = table_of(data)
    test = folds_of(images, FOLDS) == 0
    images = images.assign(split=np.where(test, "valid", "train"))[images["label"] >= 0]
    numbers = {patient: number for number, patient in enumerate(sorted(images["patient"].unique()))}
    for row in images.itertuples():
        outcome = "positive" if row.label == 1 else "negative"
        study = f"study{row.Index}_{outcome}"
        link = work / "tree" / row.split / AREA / f"patient{numbers[row.patient]:05}" / study / row.path.name
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(row.path.resolve())
    kmura.build_records(work / "tree", work / "records", options=RecordsConfig(val_fraction=0.15))
    return work / "records"


def trained(records: Path, work: Path, arguments: argparse.Namespace) -> Path:
    """Trains and evaluates; returns the folder of the run."""
    import kmura

    settings = {
        "data.image_size": arguments.image_size,
        "data.resize": "pad",
        "model.backbone": "densenet_mini",
        "model.weights": "none",
        "train.epochs": arguments.epochs,
        "train.batch_size": 16,
        "train.learning_rate": 1e-3,
        "train.schedule": "cosine",
        "train.monitor": "val_auc_img",
        "train.precision": "float32",
    }
    run = kmura.fit(records, area=AREA, phase="baseline", runs=work / "runs", settings=settings)
    evaluation = kmura.evaluate(run.folder)
    print(f"test AUC, images: {evaluation.scores.splits['test']['image'].scores['auc']}")
    return run.folder


def report(run: Path, records: Path, tap: str, arguments: argparse.Namespace) -> None:
    """Prints the agreement of the maps of one tap with the lungs, and the same computed by hand."""
    import kmura

    began = time.time()
    explanation = kmura.explain(
        run, cases=2, sample=16, tap=tap, boxes=arguments.boxes, boxes_of="all", box_sizes=arguments.sizes
    )
    where = explanation.localization
    print(f"\n{tap}: {where.images} images of {where.patients} patients, {where.empty_share:.0%} empty maps, "
          f"{time.time() - began:.0f} s")  # fmt: skip
    print("\n".join(explanation.notes))
    check = by_hand(run, records, tap, arguments.boxes)
    print("class | score | the maps | by chance | maps of other patients | computed by hand")
    print(" | ".join(["---"] * 6))
    for name, scores in {"all": where, **where.classes}.items():
        for title, value, chance, others in scores.rows[:3]:
            hand = check[title.split()[0]] if name == "all" else None
            print(f"{name or '(no class)'} | {title} | {value} | {chance:.3f} | {others:.3f} | "
                  f"{'' if hand is None else f'{hand:.4f}'}")  # fmt: skip


def by_hand(run: Path, records: Path, tap: str, boxes: Path) -> dict[str, float]:
    """Returns the means of the three scores, from the COCO file and the maps without the code of `kmura.explain.boxes`.

    Boxes are drawn into an image of FINE points per pixel of the map and axis, which is read at the centres of pixels,
    so the values differ from those of kmura by the rounding of edges only.
    """
    import kmura
    from kmura import cam
    from kmura.runs.run import Run

    opened = Run(run)
    dataset = kmura.Dataset(records, AREA, opened.config.data)
    engine = cam.CamEngine(opened.model(), method=opened.config.cam.method, tap=tap, fallback=cam.FALLBACKS[tap])
    raw = boxes.read_bytes()
    coco = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    image_of = {Path(image["file_name"]).stem: image for image in coco["images"]}
    paths, scores = dataset.rows("test")["image"].tolist(), []
    images = np.array_split(dataset.images("test", range(len(paths))), -(-len(paths) // 32))
    heats = np.concatenate([engine.compiled(part, None, flip=True)[0].numpy() for part in images]).astype(float)
    for path, heat in zip(paths, heats, strict=True):
        image = image_of.get(Path(path).stem)
        lungs = [one["bbox"] for one in coco["annotations"] if image and one["image_id"] == image["id"]]
        if not lungs:
            continue
        side = len(heat)
        scale = side / max(image["width"], image["height"])
        left, top = (side - round(image["width"] * scale)) // 2, (side - round(image["height"] * scale)) // 2
        sheet = Image.new("1", (side * FINE, side * FINE))
        for x, y, width, height in lungs:
            corners = [x * scale + left, y * scale + top, (x + width) * scale + left, (y + height) * scale + top]
            first, last = ([round(corner * FINE) for corner in part] for part in (corners[:2], corners[2:]))
            ImageDraw.Draw(sheet).rectangle([*first, *(corner - 1 for corner in last)], fill=1)
        inside = np.array(sheet)[FINE // 2 :: FINE, FINE // 2 :: FINE]
        region = heat > heat.max() / 2
        full = heat.max() > 0
        scores.append([
            inside[heat >= heat.max() * (1 - 1e-5)].mean() if full else 0,
            heat[inside].sum() / heat.sum() if full else 0,
            (region & inside).sum() / (region | inside).sum() if full else 0,
        ])  # fmt: skip
    return dict(zip(("pointing", "energy", "IoU"), np.mean(scores, axis=0), strict=True))


if __name__ == "__main__":
    main()
