"""Draws the picture of the README: one normal and one abnormal phantom per area, with boxes around lesions.

python benchmarks/phantom_strip.py OUT.png
"""

import csv
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

from kmura.phantoms.radiographs import AREAS, write_phantoms

WIDTH, HEIGHT = 150, 190  # of one phantom, pixels
ORANGE = (230, 159, 0)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "phantoms"
        write_phantoms(root, train_studies=8, test_studies=1, side=380, seed=3, workers=1)
        with open(root / "lesions.csv", newline="") as file:
            lesions = {
                row["image"]: [int(row[key]) for key in ("x0", "y0", "x1", "y1")] for row in csv.DictReader(file)
            }
        strip = Image.new("RGB", (WIDTH * len(AREAS), 2 * HEIGHT))
        for column, area in enumerate(AREAS):
            images = sorted(path.relative_to(root).as_posix() for path in (root / "train" / area).rglob("*.png"))
            normal = next(image for image in images if "negative" in image)
            abnormal = next(image for image in images if image in lesions)
            for row, name in enumerate((normal, abnormal)):
                picture = Image.open(root / name).convert("RGB")
                if name in lesions:
                    ImageDraw.Draw(picture).rectangle(lesions[name], outline=ORANGE, width=4)
                picture.thumbnail((WIDTH - 4, HEIGHT - 4))
                strip.paste(picture, (column * WIDTH + 2, row * HEIGHT + 2))
        strip.save(sys.argv[1])


if __name__ == "__main__":
    main()
