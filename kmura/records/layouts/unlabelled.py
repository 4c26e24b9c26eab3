"""The layout of images without labels, for pretraining: `ROOT/**/image`."""

from pathlib import Path

from kmura.errors import InputError
from kmura.records.image_files import Tally, find_images
from kmura.records.layouts.base import NAME, Layout, Listing, Source, area_name, size_and_change
from kmura.tasks import Binary

CLASSES = ("negative", "positive")  # no image belongs to either


class Unlabelled(Layout):
    """All images below a folder, with unknown labels; each image is its own study and patient.

    No `test` split is made, since nothing can be scored; `val` shows the progress of pretraining.
    """

    name = "unlabelled"
    help = "ROOT/**/image.png, without labels, for kmura pretrain"
    options = (NAME,)

    def listing(self, root: Path, *, name: str | None) -> Listing:
        """The images below a folder.

        Args:
            root: the folder.
            name: name of the area; None: that of the folder.

        Raises:
            InputError: there are no images.
        """
        notes: list[str] = []
        area = area_name(name, root.resolve().name, notes)
        tally, sources = Tally(), []
        for file in find_images(root, tally):
            path = file.relative_to(root).as_posix()
            sources.append(Source(path, area, path, path, (-1,), "train", *size_and_change(file)))
        if not sources:
            raise InputError(f"{root} contains no images; give a folder of images")
        return Listing(
            CLASSES, Binary.name, tuple(sources), ("test",), False, passed_over=tally.passed_over(), notes=tuple(notes)
        )

    def check_out(self, root: Path, out: Path) -> None:
        """Checks that `out` does not lie in `root`.

        Raises:
            InputError: it does.
        """
        if out.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{out} lies in {root}, which is searched for images; choose an --out outside of it")
