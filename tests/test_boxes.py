"""Files of boxes, the images they belong to, and scores of maps against them."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from command import kmura_main
from dicom_files import dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from kmura.errors import InputError
from kmura.explain.boxes.box_agreement import POSITIVE_SIDE, PREDICTED, BoxedMap, agreement, maps_to_compare
from kmura.explain.boxes.matching import Names
from kmura.explain.boxes.placing import BoxOptions, ImageBoxes, box_options, split_boxes
from kmura.explain.boxes.reading import read_boxes
from kmura.explain.boxes.scores import box_scores, covered, mask_of
from kmura.explain.boxes.sizes import original_sizes
from kmura.tasks import Binary, Multiclass, Multilabel

LUNGS = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 200, "height": 100},
        {"id": 2, "file_name": "b.png", "width": 50, "height": 100},
    ],
    "annotations": [
        {"id": 10, "image_id": 1, "bbox": [20, 10, 60, 80], "category_id": 5},
        {"id": 11, "image_id": 1, "bbox": [120, 10, 60, 80], "category_id": 6},
        {"id": 12, "image_id": 2, "bbox": [0, 0, 25, 50]},
    ],
    "categories": [{"id": 5, "name": "right lung"}, {"id": 6, "name": "left lung"}],
}
SPLITS = {"x/a.png": "test", "x/b.png": "test", "x/c.png": "train"}
ROWS = {"x/a.png": 0, "x/b.png": 1}
STORED = {"x/a.png": (32, 64), "x/b.png": (64, 32)}


def coco(folder, **changes):
    """Writes a COCO file; `changes` replace entries of the first annotation or image, or whole lists."""
    content = json.loads(json.dumps(LUNGS))
    for name, value in changes.items():
        if name in content:
            content[name] = value
        elif name in content["images"][0]:
            content["images"][0][name] = value
        else:
            content["annotations"][0][name] = value
    path = folder / "lungs.json"
    path.write_text(json.dumps(content))
    return path


def placed_boxes(path, sizes=None, max_side=64, stored=None, splits=SPLITS):
    return split_boxes(read_boxes(path), splits, ROWS, stored or STORED, max_side, sizes)


# --- formats


def test_coco_boxes_are_read_with_sizes_and_classes_even_if_compressed(tmp_path):
    plain = read_boxes(coco(tmp_path))
    packed = tmp_path / "lungs.json.gz"
    packed.write_bytes(gzip.compress(coco(tmp_path).read_bytes()))
    assert read_boxes(packed).annotations == plain.annotations
    assert plain.sizes == {"a.png": (200, 100), "b.png": (50, 100)} and not plain.fractions
    assert plain.names == ("left lung", "right lung")
    assert [one.name for one in plain.annotations] == ["right lung", "left lung", ""]
    assert plain.annotations[1].corners == (120, 10, 180, 90)


def test_a_coco_polygon_without_a_box_counts_with_its_bounding_box(tmp_path):
    changed = [{"id": 1, "image_id": 1, "segmentation": [[10, 20, 40, 25, 30, 60]]}]
    boxes = read_boxes(coco(tmp_path, annotations=changed))
    assert boxes.annotations[0].corners == (10, 20, 40, 60) and boxes.polygons == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [20, 10, 0, 80]}, r"annotation 10: the box from \(20, 10\) to \(20, 90\) is empty"),
        ({"bbox": [20, 10, -5, 80]}, "annotation 10: .* is empty; x0 < x1 and y0 < y1"),
        ({"bbox": [20, 10, 5]}, "annotation 10: no image_id, or neither a bbox of four numbers nor polygons"),
        ({"bbox": [20, float("nan"), 5, 5]}, "annotation 10: a coordinate is not a finite number"),
        ({"image_id": 7}, "annotation 10: there is no image with the id 7"),
        ({"category_id": 9}, "annotation 10: there is no category 9; there are: 5, 6"),
        ({"file_name": "b.png"}, r"two images are named b.png \(ids 1 and 2\); give file_name with its folder"),
        ({"file_name": None}, "image 1 has no file_name"),
        ({"images": [{"id": 1}]}, "not a COCO file .*'file_name' is missing.*; it needs images"),
        ({"annotations": []}, "has no box; give COCO JSON"),
    ],
)
def test_invalid_coco_files_are_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        read_boxes(coco(tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xml", "<annotation/>", "a.xml: the format is unknown; give COCO JSON, a folder of YOLO"),
        ("a.json", "{", "a.json cannot be read as JSON"),
        ("a.json", "[1, 2]", "is JSON but not a COCO file"),
        (
            "a.csv",
            "images,x0,y0,x1,y1\na,1,1,2,2\n",
            "has no column image; rename images; it has images, x0",
        ),
        ("a.csv", "", "has no column image, x0, y0, x1, y1; it has none"),
        ("a.csv", "image,x0,y0,x1,y1\na,1,,2,2\n", "line 2: no value for y0"),
        ("a.csv", "image,x0,y0,x1,y1\na,1,1,two,2\n", "line 2: could not convert .* for x1"),
        ("a.csv", "image,x0,y0,x1,y1\na,1,1,1,2\n", "line 2: the box .* is empty"),
        ("a.csv", "image,x0,y0,x1,y1\n,1,1,2,2\n", "line 2: no value for image"),
    ],
)
def test_unknown_formats_and_invalid_tables_are_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_boxes(tmp_path / name)


@pytest.mark.parametrize("name", ["none.json", "none.csv", "none.txt", "none"])
def test_a_missing_file_of_boxes_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"{name} is missing"):
        read_boxes(tmp_path / name)


def test_nih_boxes_are_in_pixels_of_its_published_images(tmp_path):
    path = tmp_path / "BBox_List_2017.csv"
    path.write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "a.png,Atelectasis,225.084745762712,547.019216763771,86.7796610169491,79.1864406779661,,,\n"
    )
    boxes = read_boxes(path)
    (one,) = boxes.annotations
    assert boxes.format == "CSV (NIH)" and one.name == "Atelectasis"
    assert one.corners == pytest.approx((225.084745762712, 547.019216763771, 311.864406779661, 626.205657441737))
    (image,), notes = placed_boxes(path, stored={"x/a.png": (64, 64), "x/b.png": (64, 64)})
    assert image.corners["Atelectasis"][0] == pytest.approx(np.array(one.corners) / 1024)
    assert "original sizes of 1 from the CSV (NIH), all images of which have this size" in notes[1]


def test_vindr_and_rsna_tables_have_rows_without_boxes(tmp_path):
    (tmp_path / "vindr.csv").write_text(
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
        "a,R1,No finding,,,,\nb,R1,Cardiomegaly,10,20,30.5,64\nb,R2,Cardiomegaly,11,20,31,64\n"
    )
    boxes = read_boxes(tmp_path / "vindr.csv")
    assert boxes.format == "CSV (VinDr)" and [one.image for one in boxes.annotations] == ["b", "b"]
    (image,), _ = placed_boxes(tmp_path / "vindr.csv", max_side=512)
    assert image.row == 1 and image.corners["Cardiomegaly"][0] == pytest.approx([10 / 32, 20 / 64, 30.5 / 32, 1])
    (tmp_path / "rsna.csv").write_text("patientId,x,y,width,height,Target\na,,,,,0\nb,264,152,213,379,1\n")
    rsna = read_boxes(tmp_path / "rsna.csv")
    assert rsna.format == "CSV (RSNA)" and rsna.annotations[0].corners == (264, 152, 477, 531)
    assert not rsna.sizes and rsna.size_of_all == (1024, 1024)  # width and height are those of the box


def test_a_list_of_classes_in_a_cell_gives_a_box_of_each_class(tmp_path):
    (tmp_path / "mammo.csv").write_text(
        "image_id,height,width,finding_categories,xmin,ymin,xmax,ymax\n"
        "a,100,200,\"['Mass', 'Calcification']\",10,20,30,40\n"
    )
    boxes = read_boxes(tmp_path / "mammo.csv")
    assert [one.name for one in boxes.annotations] == ["Mass", "Calcification"]
    assert boxes.sizes == {"a": (200, 100)}


def test_coordinates_of_a_table_that_are_all_below_one_are_fractions(tmp_path):
    (tmp_path / "a.csv").write_text("image;x0;y0;x1;y1;class\na.png;0.1;0.2;0.5;1.0;lesion\n")
    (image,), notes = placed_boxes(tmp_path / "a.csv")
    assert image.corners["lesion"] == pytest.approx(np.array([[0.1, 0.2, 0.5, 1]]))
    assert "coordinates are fractions of the sides of the images" in notes


def yolo(folder, names=None):
    (folder / "train" / "labels").mkdir(parents=True)
    (folder / "train" / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.3 0.2 0.2 0.6\n\n")
    (folder / "train" / "labels" / "b.txt").write_text("")
    (folder / "train.txt").write_text("train/images/a.png\n")
    (folder / "README.roboflow.txt").write_text("exported\n")
    if names:
        (folder / names[0]).write_text(names[1])
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, ["0", "1"]),
        (("data.yaml", "nc: 2\nnames: [fracture, metal]\n"), ["fracture", "metal"]),
        (("data.yaml", "names:\n  0: fracture\n  1: metal\n"), ["fracture", "metal"]),
        (("classes.txt", "fracture\nmetal\n"), ["fracture", "metal"]),
    ],
)
def test_yolo_folders_are_read_with_and_without_names_of_classes(tmp_path, names, expected):
    root = yolo(tmp_path, names)
    paths = [root, root / "train" / "labels", root / "train" / "labels" / "a.txt"]
    paths += [root / "data.yaml"] if names and names[0] == "data.yaml" else []
    for path in paths:
        boxes = read_boxes(path)
        assert [one.name for one in boxes.annotations] == expected and boxes.fractions and boxes.polygons == 1
        assert boxes.annotations[0].corners == pytest.approx((0.4, 0.3, 0.6, 0.7))
        assert boxes.annotations[1].corners == pytest.approx((0.1, 0.1, 0.3, 0.6))
    (image,), notes = placed_boxes(root)
    assert image.row == 0 and "1 polygons count with their bounding boxes" in notes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "line 1: 3 numbers follow the class"),
        ("0 0.5 0.5 0.2 0.4 0.9", "line 1: 5 numbers follow the class; .*remove confidences"),
        ("cat 0.5 0.5 0.2 0.4", "line 1: invalid literal .*; a line of YOLO is: class cx cy w h"),
        ("0 0.5 0.5 0.2 -0.4", "line 1: the box .* is empty"),
        ("0 50 50 20 40", "line 1: the box .* is outside the image; coordinates of YOLO are fractions"),
        ("3 0.5 0.5 0.2 0.4", r"line 1: class 3 has no name in .*classes.txt, which has 2 \(fracture, metal\)"),
    ],
)
def test_invalid_lines_of_yolo_are_refused(tmp_path, line, message):
    (tmp_path / "classes.txt").write_text("fracture\nmetal\n")
    (tmp_path / "a.txt").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        read_boxes(tmp_path)


def test_a_folder_without_text_files_and_a_damaged_yaml_are_named(tmp_path):
    with pytest.raises(InputError, match="there are no text files of YOLO"):
        read_boxes(tmp_path)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    (tmp_path / "data.yaml").write_text("names: 3\n")
    with pytest.raises(InputError, match="data.yaml has no list of class names under names"):
        read_boxes(tmp_path)


# --- classes


def test_classes_are_chosen_and_renamed_and_unknown_ones_get_the_nearest_name(tmp_path):
    boxes, renamed = BoxOptions(coco(tmp_path), classes=["left lung=Effusion"]).read()
    assert [one.name for one in boxes.annotations] == ["left lung"] and renamed == {"left lung": "Effusion"}
    with pytest.raises(InputError, match="have no class 'left lun'; did you mean left lung.*: left lung, right lung"):
        BoxOptions(coco(tmp_path), classes=["left lun"]).read()
    with pytest.raises(InputError, match="--boxes-of 'some' is unknown; choose one of positive, all"):
        BoxOptions(coco(tmp_path), of="some").read()


def test_options_of_boxes_need_a_file_of_boxes():
    assert box_options(None) is None
    for wrong in ({"sizes": "a.csv"}, {"of": "all"}, {"classes": ("a",)}):
        with pytest.raises(InputError, match="needs a file of boxes; add --boxes FILE"):
            box_options(None, **wrong)


# --- images


def test_names_fit_paths_by_their_end_their_file_name_or_their_stem():
    names = Names({path: path for path in ("covid/a.png", "covid/b.jpg", "1.2.840.113", "deep/er/c.dcm")}, "records")
    for name, path in {
        "covid/a.png": "covid/a.png",
        "./covid/a.png": "covid/a.png",
        "C:\\data\\covid\\a.png": "covid/a.png",
        "/data/covid/a.png": "covid/a.png",
        "a.png": "covid/a.png",
        "images/a.png": "covid/a.png",
        "b.png": "covid/b.jpg",
        "train/b": "covid/b.jpg",
        "1.2.840.113": "1.2.840.113",
        "er/c": "deep/er/c.dcm",
    }.items():
        assert names.get(name) == path, name
    assert names.get("d.png") is None and names.get("") is None and names.get("1.2.840") is None


def test_a_name_that_fits_several_images_is_refused_and_its_folders_decide():
    studies = [f"train/XR_WRIST/patient{number}/study1/image1.png" for number in range(5)]
    names = Names({path: path for path in studies}, "records")
    with pytest.raises(InputError, match=r"image image1.png fits 5 records \(train/.*, \.\.\.\); give the name"):
        names.get("image1.png")
    assert names.get("patient3/study1/image1.png") == studies[3]
    assert names.get("patient9/study1/image1.png") is None  # file names do not identify the images of these records


def test_the_exact_suffix_decides_between_two_images_of_one_stem():
    names = Names({path: path for path in ("a.png", "a.jpg", "b.png")}, "records")
    assert names.get("x/a.jpg") == "a.jpg"
    with pytest.raises(InputError, match="image a fits 2 records"):
        names.get("a")


def test_boxes_of_other_splits_and_of_unknown_images_are_counted(tmp_path):
    (tmp_path / "a.csv").write_text("image,x0,y0,x1,y1\na,.1,.1,.5,.5\na,.2,.2,.3,.3\nc,.1,.1,.5,.5\nz,.1,.1,.5,.5\n")
    (image,), notes = placed_boxes(tmp_path / "a.csv")
    assert image.corners[""].shape == (2, 4)
    assert notes[0] == (
        "CSV (kmura), 4 boxes of 3 images: 1 images (2 boxes) are in this split, 1 are in train, 1 are not in the "
        "records (z)"
    )
    (tmp_path / "a.csv").write_text("image,x0,y0,x1,y1\nc,.1,.1,.5,.5\n")
    with pytest.raises(InputError, match="none of the boxes belongs to an image of this split .*1 are in train"):
        placed_boxes(tmp_path / "a.csv")


def test_two_images_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("image,x0,y0,x1,y1\none/a.png,.1,.1,.5,.5\ntwo/a.png,.1,.1,.5,.5\n")
    with pytest.raises(InputError, match="images one/a.png and two/a.png both fit the record x/a.png"):
        placed_boxes(tmp_path / "a.csv")
    with pytest.raises(InputError, match="boxes .*lungs.json: image a.png fits 2 records"):
        placed_boxes(coco(tmp_path), splits=SPLITS | {"y/a.png": "train"})


# --- sizes


def test_pixels_become_fractions_by_the_size_of_the_original(tmp_path):
    images, notes = placed_boxes(coco(tmp_path))
    assert images[0].corners["right lung"] == pytest.approx(np.array([[0.1, 0.1, 0.4, 0.9]]))
    assert images[1].corners[""] == pytest.approx(np.array([[0, 0, 0.5, 0.5]]))
    assert notes[1] == "coordinates are pixels; original sizes of 2 from the COCO file"


def test_given_sizes_count_before_those_of_the_file(tmp_path):
    (tmp_path / "sizes.csv").write_text(
        "original_name,saved_name,orig_w,orig_h,w,h\na.png,a.jpg,400,200,64,32\nb.png,b.jpg,100,200,32,64\n"
    )
    images, notes = placed_boxes(coco(tmp_path), sizes=tmp_path / "sizes.csv")
    assert images[0].corners["right lung"] == pytest.approx(np.array([[0.05, 0.05, 0.2, 0.45]]))
    assert "original sizes of 2 from the sizes sizes.csv" in notes[1]
    (tmp_path / "sizes.csv").write_text("image,breadth\na.png,3\n")
    with pytest.raises(InputError, match="sizes .*sizes.csv has the columns image, breadth; the columns image, width"):
        placed_boxes(coco(tmp_path), sizes=tmp_path / "sizes.csv")
    (tmp_path / "sizes.csv").write_text("image,width,height\na.png,0,5\n")
    with pytest.raises(InputError, match="line 2: the size of a.png is 0 x 5"):
        placed_boxes(coco(tmp_path), sizes=tmp_path / "sizes.csv")


def test_source_images_give_upright_sizes(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    (tmp_path / "images" / "x").mkdir(parents=True)
    Image.new("L", (100, 200)).save(tmp_path / "images" / "x" / "a.jpg", exif=exif)
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\na.png,20,10,80,90\n", encoding="utf-8-sig")
    (image,), notes = placed_boxes(tmp_path / "boxes.csv", sizes=tmp_path / "images")
    assert image.corners[""] == pytest.approx(np.array([[0.1, 0.1, 0.4, 0.9]]))
    assert "original sizes of 1 from the images in images" in notes[1]
    Image.new("L", (200, 100)).save(tmp_path / "a.png")  # beside the boxes
    (image,), notes = placed_boxes(tmp_path / "boxes.csv")
    assert image.corners[""] == pytest.approx(np.array([[0.1, 0.1, 0.4, 0.9]]))
    assert "from the source images" in notes[1]


def test_headers_of_dicom_files_give_sizes(tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom(np.zeros((100, 200), np.uint16)))
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\na.png,20,10,80,90\n")
    (image,), _ = placed_boxes(tmp_path / "boxes.csv", sizes=tmp_path)
    assert image.corners[""] == pytest.approx(np.array([[0.1, 0.1, 0.4, 0.9]]))


def test_records_give_the_size_only_where_they_were_not_reduced(tmp_path):
    (tmp_path / "boxes.csv").write_text("image,x0,y0,x1,y1\na.png,16,8,32,16\n")
    (image,), notes = placed_boxes(tmp_path / "boxes.csv", max_side=65)
    assert image.corners[""] == pytest.approx(np.array([[0.25, 0.25, 0.5, 0.5]]))
    assert "from the records, which were not reduced" in notes[1]
    with pytest.raises(InputError, match=r"size of 1 images \(a.png\) is unknown: .* reduced to 64 pixels; give"):
        placed_boxes(tmp_path / "boxes.csv", max_side=64)


def test_a_size_of_another_aspect_ratio_is_refused(tmp_path):
    with pytest.raises(InputError, match="x/a.png is 64 x 32 pixels in the records, but 200 x 130 .*ratios differ;"):
        placed_boxes(coco(tmp_path, height=130))
    with pytest.raises(InputError, match="aspect ratios differ, as if it were rotated"):
        placed_boxes(coco(tmp_path, width=100, height=200))


@settings(max_examples=60, deadline=None)
@given(st.integers(40, 4000), st.integers(40, 4000), st.integers(20, 600))
def test_sizes_of_reduced_images_pass_the_check_of_their_ratio(width, height, most):
    from kmura.records.images import reduced

    stored = Image.new("1", (width, height))
    stored = stored.resize(reduced(stored.convert("L"), most).size)
    boxes = read_boxes_of(width, height)
    sizes, _ = original_sizes(boxes, {"a": "a"}, {"a": (stored.height, stored.width)}, most)
    assert sizes == {"a": (width, height)}


def read_boxes_of(width, height):
    from kmura.explain.boxes.annotations import BoxFile

    return BoxFile("boxes.json", "COCO", (), False, {"a": (width, height)})


@pytest.mark.parametrize("box", [[-30, 0, 60, 50], [150, 10, 60, 50], [10, 60, 20, 50], [200, 10, 1, 5]])
def test_a_box_outside_of_its_image_is_refused(tmp_path, box):
    with pytest.raises(InputError, match="annotation 10: the box .* is outside of a.png, which is 200 x 100 pixels;"):
        placed_boxes(coco(tmp_path, bbox=box))


def test_a_box_that_extends_by_rounding_is_clipped_and_counted(tmp_path):
    images, notes = placed_boxes(coco(tmp_path, bbox=[-1, 0, 60, 101]))
    assert images[0].corners["right lung"] == pytest.approx(np.array([[0, 0, 59 / 200, 1]]))
    assert notes[-1] == "1 boxes that extend up to 1% beyond their images were clipped"


# --- which map is compared


IMAGES = [
    ImageBoxes(0, {"Mass": np.array([[0, 0, 1, 1.0]])}),
    ImageBoxes(1, {"Mass": np.array([[0, 0, 1, 1.0]]), "Edema": np.array([[1, 1, 2, 2.0]])}),
]


def test_boxes_of_a_finding_need_its_label_and_boxes_of_anatomy_do_not():
    labels = np.array([[0], [1]])
    task = Binary(("normal", "abnormal"))
    (only,) = maps_to_compare(IMAGES, labels[:, 0] == 1, labels, task, "positive", {})
    assert (only.row, only.target) == (1, POSITIVE_SIDE) and only.union.shape == (2, 4)
    both = maps_to_compare(IMAGES, labels[:, 0] == 1, labels, task, "all", {})
    assert [(one.row, one.target) for one in both] == [(0, PREDICTED), (1, PREDICTED)]
    with pytest.raises(InputError, match="none of the 2 images with a box has a label .*; give --boxes-of all"):
        maps_to_compare(IMAGES, labels[:, 0] > 1, labels, task, "positive", {})


def test_a_box_of_a_label_is_compared_with_the_map_of_this_label():
    labels = np.array([[0, 1], [1, 1]])
    task = Multilabel(("Edema", "Mass"))
    found = maps_to_compare(IMAGES, None, labels, task, "positive", {})
    assert [(one.row, one.target, list(one.boxes)) for one in found] == [
        (0, 1, ["Mass"]),
        (1, 1, ["Mass"]),
        (1, 0, ["Edema"]),
    ]
    labels[1, 1] = -1  # unknown
    assert len(maps_to_compare(IMAGES, None, labels, task, "positive", {})) == 2


def test_a_class_that_the_model_lacks_is_refused_with_the_nearest_name():
    labels, task = np.array([[0, 1], [1, 1]]), Multilabel(("Edema", "Masses"))
    with pytest.raises(InputError, match="have the class 'Mass', which the model does not have; did you mean Masses"):
        maps_to_compare(IMAGES, None, labels, task, "positive", {})
    renamed = maps_to_compare(IMAGES, None, labels, task, "positive", {"Mass": "Masses"})
    assert {one.target for one in renamed if "Mass" in one.boxes} == {1}


def test_a_box_without_a_class_belongs_to_the_class_of_its_image():
    images = [ImageBoxes(0, {"": np.array([[0, 0, 1, 1.0]])}), ImageBoxes(1, {"": np.array([[0, 0, 1, 1.0]])})]
    labels = np.array([[2], [-1]])
    (one,) = maps_to_compare(images, None, labels, Multiclass(("a", "b", "c")), "positive", {})
    assert (one.row, one.target) == (0, 2)
    with pytest.raises(InputError, match="a box has no class, but the model has several labels"):
        maps_to_compare(images, None, np.zeros((2, 3)), Multilabel(("a", "b", "c")), "positive", {})


# --- scores


@st.composite
def cases(draw):
    height, width = draw(st.integers(4, 12)), draw(st.integers(4, 12))
    heat = np.random.default_rng(draw(st.integers(0, 999))).normal(size=(height, width)).round(2)
    boxes = []
    for _ in range(draw(st.integers(1, 3))):
        x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append([x, y, draw(st.integers(x + 1, width)), draw(st.integers(y + 1, height))])
    return heat, np.array(boxes, float)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_scores_equal_sums_over_single_pixels(case):
    heat, boxes = case
    height, width = heat.shape
    sheet = Image.new("1", (width, height))
    for x0, y0, x1, y1 in boxes:
        ImageDraw.Draw(sheet).rectangle([x0, y0, x1 - 1, y1 - 1], fill=1)  # its corners are inclusive
    inside, sums, both, either = np.asarray(sheet), [0.0, 0.0], 0, 0
    for y in range(height):
        for x in range(width):
            value, member = max(heat[y, x], 0), bool(inside[y, x])
            hot = value > heat.max() / 2
            sums[0] += value * member
            sums[1] += value
            both, either = both + (hot and member), either + (hot or member)
    top = heat == heat.max()  # values have two decimals, so several pixels may share it
    found = {name: table.item() for name, table in box_scores(heat[None], [boxes]).items()}
    empty = heat.max() <= 0
    assert found["energy"] == pytest.approx(0 if empty else sums[0] / sums[1])
    assert found["iou"] == pytest.approx(0 if empty else both / either)
    assert found["pointing"] == pytest.approx(0 if empty else inside[top].mean())
    assert covered(boxes, heat.shape) == pytest.approx(inside.mean())


def test_an_empty_map_scores_zero_and_a_perfect_one_scores_one():
    boxes = np.array([[2, 3, 6, 9]], float)
    perfect = mask_of(boxes, (12, 12)).astype(float)
    found = box_scores(np.stack([perfect, perfect * 0, 1 - perfect]), [boxes])
    for name, values in found.items():
        assert values[0, 0] == 1 and values[0, 1] == 0, name
    assert found["energy"][0, 2] == found["iou"][0, 2] == found["pointing"][0, 2] == 0


def test_a_maximum_of_several_pixels_counts_by_their_share_in_the_boxes():
    coarse = np.zeros((1, 3, 3), np.float32)
    coarse[0, 1, 0] = 1
    heat = np.asarray(tf.image.resize(coarse[..., None], (96, 96)))[..., 0]  # constant from the centre of the cell on
    found = box_scores(
        heat, [np.array([[0, 0, 16, 96.0]]), np.array([[8, 0, 96, 96.0]]), np.array([[40, 0, 96, 96.0]])]
    )
    assert found["pointing"][:, 0] == pytest.approx([1, 0.5, 0])


def test_a_box_smaller_than_a_pixel_has_the_pixel_of_its_centre():
    mask = mask_of(np.array([[3.6, 2.7, 3.8, 2.9], [7.9, 7.9, 8, 8]]), (8, 8))
    assert np.argwhere(mask).tolist() == [[2, 3], [7, 7]]


def boxed_noise(count=90, size=16):
    rng = np.random.default_rng(3)
    boxed, heats = [], rng.random((count, size, size)) ** 4
    for row in range(count):
        x, y = rng.integers(0, size // 2, 2)
        boxes = {"one": np.array([[x, y, x + 5, y + 6.0]])}
        boxes |= {"other": np.array([[0, 0, 3, 3.0]])} if row % 3 else {}
        boxed.append(BoxedMap(row, PREDICTED, boxes))
    patients = np.array([f"p{row // 2}" for row in range(count)])
    return boxed, heats, patients, rng.random((7, size, size))


def test_the_agreement_is_the_mean_over_images_of_each_class_and_of_all_boxes():
    boxed, heats, patients, random = boxed_noise()
    calls = []

    def maps(rows, target):
        calls.append(target)
        return heats[rows]

    found = agreement(maps, boxed, patients, random)
    assert calls == [PREDICTED] * 2 and found.images == 90 and found.patients == 45 and found.empty_share == 0
    by_hand = pd.DataFrame(
        {name: table.item() for name, table in box_scores(heats[one.row][None], [one.union]).items()} for one in boxed
    ).mean()
    for name in ("pointing", "energy", "iou", "overlap"):
        score = getattr(found, name)
        assert score.value == pytest.approx(by_hand[name]) and score.low < score.value < score.high
    assert found.chance == pytest.approx(np.mean([covered(one.union, (16, 16)) for one in boxed]))
    chance = box_scores(random, [one.union for one in boxed])
    assert found.random == {name: pytest.approx(chance[name].mean()) for name in ("iou", "overlap")}
    assert found.classes.keys() == {"one", "other"} and found.classes["other"].images == 60
    lone = [box_scores(heats[one.row][None], [one.boxes["other"]])["iou"].item() for one in boxed if one.row % 3]
    assert found.classes["other"].iou.value == pytest.approx(np.mean(lone))


def test_maps_that_follow_their_boxes_beat_those_of_other_patients():
    boxed, _, patients, random = boxed_noise(40)
    right = np.stack([mask_of(one.union, (16, 16)).astype(float) for one in boxed])
    found = agreement(lambda rows, target: right[rows], boxed, patients, random)
    assert found.pointing.value == found.energy.value == found.iou.value == 1
    assert found.pointing.method == "wilson" and found.pointing.low < 1
    assert all(found.others[name] < 0.9 for name in ("energy", "iou"))
    same = agreement(lambda rows, target: right[:1].repeat(len(rows), 0), boxed, patients, random)
    assert same.others["iou"] == pytest.approx(same.iou.value, abs=0.02)  # the same map everywhere


def test_one_patient_has_neither_an_interval_nor_maps_of_others():
    boxed, heats, patients, random = boxed_noise(4)
    found = agreement(lambda rows, target: heats[rows], boxed, np.full(4, "p"), random)
    assert found.others == {} and np.isnan(found.energy.low)
    assert found.patients == 1 and found.images == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--boxes", "FILE.xml"], "the format is unknown"),
        (["--boxes", "FILE.json", "--box-classes", "hart"], "have no class 'hart'; did you mean heart?"),
        (["--boxes-of", "all"], "--boxes-of needs a file of boxes"),
    ],
)
def test_invalid_boxes_end_the_command_before_anything_is_loaded(tmp_path, monkeypatch, capsys, options, message):
    (tmp_path / "FILE.xml").write_text("<a/>")
    heart = [{"id": 5, "name": "heart"}]
    coco(tmp_path, categories=heart, annotations=LUNGS["annotations"][:1]).rename(tmp_path / "FILE.json")
    options = [str(tmp_path / option) if option.startswith("FILE") else option for option in options]
    code, _, err = kmura_main(monkeypatch, capsys, "explain", tmp_path / "no-run", *options)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
