"""What the commands for volumes print: the volumes of records, and the regions of a scan."""

import sys

from rich.table import Table

from kmura.cli.display import console


def show_volumes(manifest) -> None:
    """Prints one row per volume of the records, and what was passed over."""
    table = Table("area", "volume", "split", "voxels", "mm per voxel", "left of the middle")
    for name, facts in manifest.volumes.items():
        size, spacing = " x ".join(map(str, facts.size)), " x ".join(f"{step:.3g}" for step in facts.spacing)
        tilt = f"{facts.offset:+.1f} mm"
        table.add_row(facts.area, name, facts.split, size, spacing, tilt)
    console().print(table)
    for leak in manifest.leaks or ():
        print(f"WARNING: {leak.area}: {leak.text}", file=sys.stderr)
    for one in manifest.passed_over:
        print(f"note: passed over: {one.number} {one.kind} ({', '.join(one.examples)})", file=sys.stderr)


def show_regions(segmentation) -> None:
    """Prints volume, gray values and asymmetry of every region that was found."""
    planes = ", ".join(segmentation.planes)
    how = f", {segmentation.fusion} of {planes}" if len(segmentation.planes) > 1 else f", {planes}"
    table = Table("region", "ml", "mean HU", "sd HU", "left - right, HU", title=f"regions{how}")
    missing = []
    for row in segmentation.regions.itertuples():
        if row.voxels:
            asymmetry = f"{row.asymmetry_hu:+.1f}" if row.asymmetry_hu == row.asymmetry_hu else "-"
            table.add_row(row.region, f"{row.ml:.1f}", f"{row.mean_hu:.1f}", f"{row.sd_hu:.1f}", asymmetry)
        else:
            missing.append(row.region)
    console().print(table)
    if missing:
        print(f"WARNING: not found: {', '.join(missing)}", file=sys.stderr)
