"""Listings take every image once, whatever its name is, and count what they pass over."""

import io
import os
import shutil

import numpy as np
import pytest
from conftest import textured
from dicom_files import dicom, other_object

from kmura.errors import InputError
from kmura.records.decode import decoded
from kmura.records.image_files import Tally, check_distinct, find_images, passed_over_note
from kmura.records.images import decode_image


def found(root, **options):
    """Returns the paths below the root that are found, and kind -> number of what is passed over."""
    tally = Tally()
    files = [path.relative_to(root).as_posix() for path in find_images(root, tally, **options)]
    return files, {item.kind: item.number for item in tally.passed_over()}


@pytest.fixture
def root(tmp_path):
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        textured(len(name) + int(path.stem)).save(path)
    return tmp_path / "root"


IMAGES = ["a/1.png", "a/2.png", "b/3.png"]


def test_images_are_recognised_by_their_content(root):
    for name, kind in (
        ("x.jfif", "JPEG"),
        ("x.jpe", "JPEG"),
        ("nosuffix", "JPEG"),
        ("1.2.840.7", "TIFF"),
        ("y.dat", "PNG"),
    ):
        textured(0).save(root / name, kind)
    (root / "notes.txt").write_text("P5 is no picture")
    (root / "README").write_text("BM")
    (root / "empty.bin").write_bytes(b"")
    files, passed_over = found(root)
    assert files == ["1.2.840.7", "nosuffix", "x.jfif", "x.jpe", "y.dat", *IMAGES]
    assert passed_over == {".txt files": 1, "files without a suffix that are no images": 1, ".bin files": 1}


def test_dicom_is_recognised_by_its_content_and_objects_without_pictures_are_counted(root):
    (root / "1.2.840.113619.2.55.3.671750.362.1").write_bytes(dicom())
    (root / "old").write_bytes(dicom(implicit=True, preamble=False))
    (root / "named.dcm").write_bytes(dicom(implicit=True, preamble=False))
    (root / "DICOMDIR").write_bytes(other_object("1.2.840.10008.1.3.10"))
    (root / "PR1.dcm").write_bytes(other_object("1.2.840.10008.5.1.4.1.1.11.1"))
    (root / "SR1").write_bytes(other_object("1.2.840.10008.5.1.4.1.1.88.67"))
    (root / "KO1").write_bytes(other_object("1.2.840.10008.5.1.4.1.1.88.59"))
    (root / "PDF").write_bytes(other_object("1.2.840.10008.5.1.4.1.1.104.1"))
    (root / "PLAN").write_bytes(other_object("1.2.840.10008.5.1.4.1.1.481.5"))
    (root / "damaged").write_bytes(other_object("1.2.840.10008.5.1.4.1.1.1"))  # an image without its pixels
    files, passed_over = found(root)
    assert files == ["1.2.840.113619.2.55.3.671750.362.1", "damaged", "named.dcm", "old", *IMAGES]
    assert passed_over == {
        "DICOM directories (DICOMDIR)": 1,
        "DICOM presentation states": 1,
        "DICOM reports": 2,
        "documents in DICOM": 1,
        "other DICOM objects without pixels": 1,
    }


def test_the_content_of_a_file_decides_how_it_is_decoded():
    data = dicom()
    right = np.asarray(decoded(data))
    assert (np.asarray(decoded(data, name="named.png")) == right).all()
    assert (np.asarray(decoded(dicom(implicit=True, preamble=False))) == right).all()
    buffer = io.BytesIO()
    textured(0).save(buffer, "PNG")
    assert decoded(buffer.getvalue(), name="named.dcm") == decode_image(buffer.getvalue())


def test_links_in_circles_are_not_followed_and_are_named(root):
    (root / "a" / "again").symlink_to(".")
    (root / "b" / "up").symlink_to(root)
    (root / "b" / "above").symlink_to(root.parent)
    files, passed_over = found(root)
    assert files == IMAGES and passed_over == {"links in circles": 3}
    tally = Tally()
    find_images(root, tally)
    assert passed_over_note(tally.passed_over()) == "passed over: 3 links in circles (a/again, b/above, b/up)"


def test_a_file_is_listed_once_under_its_own_path(root):
    (root / "a" / "a-link").symlink_to(root / "b")  # sorted before the folder that it leads to
    (root / "a" / "0.png").symlink_to(root / "b" / "3.png")
    files, passed_over = found(root)
    assert files == IMAGES and passed_over == {"files and folders that are listed already (links)": 2}


def test_links_to_the_outside_are_followed_once(root):
    store = root.parent / "store"
    shutil.copytree(root / "a", store / "sub")
    (root / "c").symlink_to(store / "sub")
    (root / "d").symlink_to(store)
    (root / "e.png").symlink_to(store / "sub" / "1.png")
    files, passed_over = found(root)
    assert files == [*IMAGES, "c/1.png", "c/2.png"]
    assert passed_over == {"files and folders that are listed already (links)": 2}


def test_hidden_files_broken_links_and_pipes_are_counted(root):
    (root / "a" / "._1.png").write_bytes(b"")
    (root / ".trash").mkdir()
    (root / "__MACOSX").mkdir()
    textured(0).save(root / "__MACOSX" / "1.png")
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "pipe.png")
    files, passed_over = found(root)
    assert files == IMAGES
    assert passed_over == {"hidden files": 1, "hidden folders": 2, "broken links": 1, "devices, pipes or sockets": 1}


def test_only_the_wanted_subfolders_are_searched(root):
    assert found(root, folders=["b"]) == (["b/3.png"], {})


def test_the_note_names_at_most_three_files_of_a_kind():
    tally = Tally()
    for number in range(5):
        tally.add(".txt files", f"{number}.txt")
    tally.add(".inf files", "a\udcff.inf")
    assert passed_over_note(tally.passed_over()) == (
        "passed over: 1 .inf files (a\\udcff.inf); 5 .txt files (0.txt, 1.txt, 2.txt, ...)"
    )
    assert passed_over_note(()) == ""


def test_names_that_differ_only_in_case_or_unicode_form_are_refused():
    check_distinct(["a", "b", "a"], "areas")
    for other in ("Br\u00fcche", "BRU\u0308CHE"):
        with pytest.raises(InputError, match="the areas .* differ only in case or Unicode form; rename one"):
            check_distinct(["Bru\u0308che", other], "areas")
