"""Seconds and peak memory of `kmura segment predict` for a scan of full size, with networks of its voxel size.

    python benchmarks/full_volume.py --heads HEADS [--size 512 512 116] [--recipe ct-mini] [--work FOLDER]

The first three heads are resampled to `--size` voxels (x, y, z). The networks of the three planes are trained for one
epoch on one of them, which says nothing about their scores but gives them their size; then `kmura segment predict` runs
in a process of its own, once per fusion.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HEADS = 3  # one for training, validation and test each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", type=Path, required=True, help="folder of scans, transforms and label maps")
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 116], help="voxels along x, y, z")
    parser.add_argument("--recipe", default="ct-mini")
    parser.add_argument("--work", type=Path, help="folder for heads, records and runs, kept; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        if not (work / "heads").exists():
            resample_heads(arguments.heads, work / "heads", arguments.size)
        kmura = [Path(sys.executable).with_name("kmura")]
        records, runs = work / "records", work / "runs"
        run(kmura, "segment", "build", work / "heads", "--out", records)
        fit = ["--records", records, "--runs", runs, "--plane", "all", "--recipe", arguments.recipe]
        run(kmura, "segment", "fit", *fit, "--folds", HEADS, "--fold", 0, "--epochs", 1, "--set", "data.empty=0")
        print(f"{' x '.join(map(str, arguments.size))} voxels, recipe {arguments.recipe}, {platform.platform()}\n")
        print("fusion | seconds | peak memory, GB\n--- | --- | ---", flush=True)
        for fusion in ("mean", "majority", "weighted"):
            began = time.time()
            command = [*kmura, "segment", "predict", runs / "fold0" / "CT_HEAD", work / "heads" / "1.nii.gz"]
            command += ["--transform", work / "heads" / "1.txt", "--fusion", fusion, "--out", work / "regions.nii.gz"]
            code = (  # the peak of a process that only waits for the command is that of the command
                "import resource, subprocess, sys\n"
                "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
            )
            done = subprocess.run(
                [sys.executable, "-c", code, *map(str, command)], check=True, capture_output=True, text=True
            )
            print(f"{fusion} | {time.time() - began:.0f} | {int(done.stdout) / 2**20:.2f}", flush=True)


def run(command: list, *arguments) -> None:
    subprocess.run([*command, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def resample_heads(source: Path, target: Path, size: list[int]) -> None:
    """Writes heads 1 to HEADS with scans and labels of another number of voxels and the same extent."""
    import SimpleITK as sitk

    target.mkdir(parents=True)
    for number in range(1, HEADS + 1):
        shutil.copy(source / f"{number}.txt", target)
        for name, way in ((f"{number}.nii.gz", sitk.sitkLinear), (f"{number}-seg.nii.gz", sitk.sitkNearestNeighbor)):
            image = sitk.ReadImage(str(source / name))
            grid = sitk.Image(size, image.GetPixelID())
            steps = [
                old * count / new for old, count, new in zip(image.GetSpacing(), image.GetSize(), size, strict=True)
            ]
            grid.SetSpacing(steps)
            grid.SetDirection(image.GetDirection())
            first = [(count / new - 1) / 2 for count, new in zip(image.GetSize(), size, strict=True)]
            grid.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(first))
            sitk.WriteImage(sitk.Resample(image, grid, sitk.Transform(), way, 0), str(target / name))


if __name__ == "__main__":
    main()
