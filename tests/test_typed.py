"""Dataclasses come back from their JSON as they were; a value that does not fit is named by the path of its field."""

import dataclasses
import json
import math
from typing import Literal

import pytest
from test_class_scores import ALL, AREAS, JOINT, JOINT_TASK, class_table
from test_scoring import FEW, simulated

from kmura.errors import InputError
from kmura.evaluation.calibrators import Calibrator
from kmura.evaluation.class_scores import score_classes
from kmura.evaluation.evaluation import METRICS_VERSION, Evaluation
from kmura.evaluation.exploration import AreaData, Eda, Intensity, NearDouble, Outlier, PrincipalParts
from kmura.evaluation.scoring import score_table
from kmura.explain.explanation import Case, Explanation, Localization, Look, MeanCurves, Worth
from kmura.files import write_json
from kmura.metrics import Interval
from kmura.serving.contract import Contract
from kmura.tasks import task_of
from kmura.typed import FieldError, from_json, read_typed

NAN = float("nan")


def same(one, other) -> bool:
    """Whether two objects are equal, types included, and NaN equal to NaN."""
    if type(one) is not type(other):
        return isinstance(one, float) and isinstance(other, float) and one == other  # numpy's floats are floats
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def evaluation_of(scores, task="binary", classes=(), **values):
    names = {"run": "runs/x", "area": "XR_WRIST", "phase": "final", "select_on": "val", "selected_epoch_by": "auc"}
    names |= {"has_patients": True, "model_sha256": "0", "predictions_sha256": "1", "localization_faithfulness": None}
    return Evaluation(**names | values, scores=scores, task=task, classes=classes)


def one_class(table):
    return table[(table["split"] == "val") | (table["label"] == 1)]


def several(classes, task, area):
    model = JOINT_TASK if area == ALL else task_of(task, classes)
    return score_classes(class_table(classes, task, studies=60), area, model, FEW)


EVALUATIONS = {
    "platt": lambda: evaluation_of(
        score_table(simulated(80), FEW), localization_faithfulness={"val": 0.1, "test": NAN}
    ),
    "isotonic at image level": lambda: evaluation_of(
        score_table(simulated(80), dataclasses.replace(FEW, calibration="isotonic", calibrate_at="image"))
    ),
    "undefined scores": lambda: evaluation_of(score_table(one_class(simulated(80)), FEW)),
    "not calibrated": lambda: evaluation_of(score_table(simulated(80), dataclasses.replace(FEW, calibration="none"))),
    "all areas": lambda: evaluation_of(several(JOINT, "multiclass", ALL), "multiclass", JOINT),
    "classes": lambda: evaluation_of(several(("a", "b", "c"), "multiclass", AREAS[0]), "multiclass", ("a", "b", "c")),
    "labels": lambda: evaluation_of(several(("a", "b"), "multilabel", AREAS[0]), "multilabel", ("a", "b")),
}

HALF = Interval(0.5, 0.4, NAN)
CURVES = MeanCurves([0.0, 1.0], [1.0, NAN], [0.0, 1.0], [1.0, 0.5], [0.0, 0.5], {"deletion": HALF, "drop": HALF})
CASE = Case(
    outcome="TP",
    image="a.png",
    study="s",
    label=1,
    probability=0.75,
    caption="p = 0.75",
    empty=False,
    box=(0, 1, 2, 3),
    files={"image": "a-image.png", "cam": "a-cam.png"},
    beside=[Look("S4", True, None, "b.png")],
)
EXPLANATION = Explanation(
    run="runs/x",
    area="XR_WRIST",
    phase="hybrid",
    model_sha256="0",
    split="test",
    tap="P5",
    cases=[CASE],
    counts={"TP": 1, "FN": 0},
    empty_share=0.25,
    sample=5,
    curves=CURVES,
    localization=Localization(3, HALF, 0.25, HALF),
    beside=[Worth("S4", 0.0, CURVES, None)],
)
EDA = Eda(
    records="tfrecords",
    inputs="0",
    areas={
        "XR_WRIST": AreaData(
            classes={"normal": Intensity(3, 2, 99.5, 1.0, 2.0, 0.5, 0.25)},
            height=(100, 200, 300),
            width=(101, 201, 301),
            outliers=[Outlier("a.png", "train", 240.0, 5.0)],
            near_doubles=[NearDouble("a.png", "b.png", ("train", "test"), 0.999, True)],
            principal=PrincipalParts(3, {"0.9": 7, "0.99": None}, {"0.9": 8}, [0.5, 1.0]),
        )
    },
)
CALIBRATED = Contract(
    classes=("normal", "abnormal"),
    image_size=320,
    resize="letterbox",
    channels=1,
    max_side=512,
    calibrator=Calibrator("isotonic", knots=((-1.0, 0.25), (1.0, 0.75))),
    rule="max_f1",
    threshold=0.375,
    jpeg_quality=95,
)
PLAIN = dataclasses.replace(CALIBRATED, calibrator=None, task="multiclass", abnormal=1, jpeg_quality=None)


@pytest.mark.parametrize("kind", EVALUATIONS)
def test_an_evaluation_comes_back_from_its_file(kind, tmp_path):
    evaluation = EVALUATIONS[kind]()
    write_json(tmp_path / "metrics.json", dataclasses.asdict(evaluation))
    value = json.loads((tmp_path / "metrics.json").read_text())
    assert value["metrics_version"] == METRICS_VERSION == 3
    assert same(Evaluation.from_json(value), evaluation)


@pytest.mark.parametrize(
    "value", [EXPLANATION, EDA, CALIBRATED, PLAIN], ids=["explanation", "eda", "contract", "plain"]
)
def test_other_files_come_back_as_they_were(value, tmp_path):
    write_json(tmp_path / "value.json", dataclasses.asdict(value))
    read = read_typed(type(value), tmp_path / "value.json", "kmura make")
    assert same(read, value) and not same(read, dataclasses.replace(value, **{dataclasses.fields(value)[0].name: "x"}))


@dataclasses.dataclass(frozen=True)
class Circle:
    kind: Literal["circle"]
    size: float


@dataclasses.dataclass(frozen=True)
class Square:
    kind: Literal["square"]
    size: float


@dataclasses.dataclass(frozen=True)
class Dog:
    name: str
    bark: int
    legs: int


@dataclasses.dataclass(frozen=True)
class Fish:
    name: str
    fins: int
    depth: float


@dataclasses.dataclass(frozen=True)
class Everything:
    number: int = 1
    share: float = 0.5
    maybe: float | None = None
    flag: bool = True
    shape: Circle | Square | None = None
    animal: Dog | Fish | None = None
    pair: tuple[int, str] = (1, "a")
    names: tuple[str, ...] = ()
    rows: list[list[int]] = dataclasses.field(default_factory=list)
    by_name: dict[str, dict[str, Circle]] = dataclasses.field(default_factory=dict)
    either: int | list[str] = 1


def test_defaults_are_taken_and_unknown_fields_are_ignored():
    assert from_json(Everything, {"written by": "a later version"}) == Everything()


def test_null_is_nan_where_a_number_is_needed_and_none_where_none_may_be():
    read = from_json(Everything, {"share": None, "maybe": None, "shape": None})
    assert math.isnan(read.share) and read.maybe is None and read.shape is None
    assert isinstance(from_json(Everything, {"share": 1}).share, float)


def test_the_class_of_a_union_is_chosen_by_a_literal_or_by_the_names_of_the_fields():
    assert from_json(Everything, {"shape": {"kind": "square", "size": 2}}).shape == Square("square", 2.0)
    assert from_json(Everything, {"animal": {"name": "x", "fins": 2, "depth": 1}}).animal == Fish("x", 2, 1.0)
    assert from_json(Everything, {"either": ["a"]}).either == ["a"] and from_json(Everything, {"either": 3}).either == 3
    with pytest.raises(FieldError, match="^animal.legs is missing$"):  # a damaged dog is not a fish
        from_json(Everything, {"animal": {"name": "x", "bark": 2}})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "its content is [], not an object with the fields of Everything"),
        ({"number": None}, "number is null, not a whole number"),
        ({"number": True}, "number is true, not a whole number"),
        ({"number": 1.5}, "number is 1.5, not a whole number"),
        ({"share": "high"}, 'share is "high", not a number'),
        ({"share": False}, "share is false, not a number"),
        ({"flag": 1}, "flag is 1, not true or false"),
        ({"names": "abc"}, 'names is "abc", not a list'),
        ({"names": ["a", 1]}, "names[1] is 1, not text"),
        ({"pair": [1]}, "pair has 1 entries, not 2"),
        ({"rows": [[1], [2, "x"]]}, 'rows[1][1] is "x", not a whole number'),
        ({"by_name": {"a": {"b": {"kind": "circle"}}}}, "by_name.a.b.size is missing"),
        ({"by_name": {"a": {"b\n c": {"kind": "circle"}}}}, r"by_name.a['b\n c'].size is missing"),
        ({"by_name": {"a": 1}}, "by_name.a is 1, not an object"),
        ({"shape": {"kind": 1}}, 'shape is {"kind": 1}, of which it is not clear whether it is Circle or Square'),
        ({"animal": {"name": "x"}}, 'animal is {"name": "x"}, of which it is not clear whether it is Dog or Fish'),
        ({"either": "x"}, 'either is "x", of which it is not clear whether it is int or list'),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named_by_its_path(value, message):
    with pytest.raises(FieldError) as caught:
        from_json(Everything, value)
    assert str(caught.value) == message and "\n" not in message


def test_a_type_that_cannot_be_read_is_a_bug_and_not_damage():
    cls = dataclasses.make_dataclass("Bytes", [("content", bytes)])
    with pytest.raises(TypeError, match="does not read fields of type <class 'bytes'> .content."):
        from_json(cls, {"content": "x"})


def test_errors_of_files_are_one_line_that_names_the_file_and_the_command(tmp_path):
    path = tmp_path / "shape.json"
    with pytest.raises(InputError, match="shape.json does not exist; make it with: kmura draw$"):
        read_typed(Circle, path, "kmura draw")
    path.write_text("{")
    with pytest.raises(InputError, match="shape.json is damaged .*; make it again with: kmura draw$"):
        read_typed(Circle, path, "kmura draw")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="shape.json is damaged"):
        read_typed(Circle, path, "kmura draw")
    path.write_text('{"kind": "circle"}')
    with pytest.raises(
        InputError, match="shape.json: size is missing; .* of another version; make it again with: kmura"
    ):
        read_typed(Circle, path, "kmura draw")


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("platt", "scores.options"),
        ("platt", "scores.splits.test"),
        ("platt", "scores.splits.test.image"),
        ("platt", "scores.splits.test.study.patients"),
        ("platt", "scores.splits.test.study.scores.auc"),
        ("platt", "scores.splits.val.image.scores.kappa.low"),
        ("platt", "scores.splits.test.image.confusion.tn"),
        ("platt", "scores.splits.test.image.brier_parts.resolution"),
        ("platt", "scores.calibrated.test.study.scores.f1"),
        ("platt", "scores.calibrator.method"),
        ("platt", "scores.operating_points.test"),
        ("platt", "localization_faithfulness"),
        ("all areas", "scores.areas"),
        ("all areas", "scores.areas.test"),
        ("all areas", "scores.areas.test.study.scores.accuracy"),
        ("all areas", "scores.splits.test.study.scores.auc"),
        ("all areas", "scores.questions.XR_HAND.splits.test.study"),
        ("all areas", "scores.pooled.splits.test"),
        ("labels", "scores.splits.test.study.classes"),
    ],
)
def test_what_an_evaluation_lacks_is_named_by_its_path(kind, path, tmp_path):
    write_json(tmp_path / "metrics.json", dataclasses.asdict(EVALUATIONS[kind]()))
    value = json.loads((tmp_path / "metrics.json").read_text())
    *parents, last = path.split(".")
    place = value
    for name in parents:
        place = place[name]
    del place[last]
    if path == "scores.splits.test":  # a run may have one split, but then all of its parts
        assert list(Evaluation.from_json(value).scores.splits) == ["val"]
        return
    with pytest.raises(FieldError, match=f"^{path} is missing$"):
        Evaluation.from_json(value)


def test_a_later_version_of_an_evaluation_is_refused():
    value = dataclasses.asdict(EVALUATIONS["platt"]()) | {"metrics_version": 4}
    with pytest.raises(FieldError, match="metrics_version is 4, this kmura reads versions 1 to 3"):
        Evaluation.from_json(value)
