"""Schema version 2 of a record and of its index: the only place that knows the feature names.

One record is one image, a `tf.train.Example` that any TensorFlow program can parse. It is written and read here
with protobuf alone: TensorFlow takes seconds to import in every writer process, and its generated `Example` does
not promise the order of the features, so equal records could differ in their bytes.
"""

import dataclasses
from collections.abc import Mapping

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

SCHEMA_VERSION = 2

# name -> (kind, what it holds); tfrecords/README.md shows this table and a test keeps the two equal
FEATURES: Mapping[str, tuple[str, str]] = {
    "image": ("bytes", "encoded image, 8 bits per channel"),
    "format": ("bytes", "encoding of `image`: `png` or `jpeg`"),
    "height": ("int64", "rows of `image`"),
    "width": ("int64", "columns of `image`"),
    "sha256": ("bytes", "SHA-256 of the source file (of the pixels where the source is an array), hexadecimal"),
    "path": ("bytes", "source path relative to the root, posix"),
    "area": ("bytes", "anatomical area, for example `XR_WRIST`"),
    "patient": ("bytes", "patient id, unique within the data set"),
    "study": ("bytes", "study id, `patient/study`"),
    "label": ("int64 list", "class id (binary, multiclass) or a 0/1 vector (multilabel); -1 is unknown"),
    "split": ("bytes", "`train`, `val` or `test`"),
}

# features that only records of some layouts have; older readers ignore them
OPTIONAL: Mapping[str, tuple[str, str]] = {
    "mask": ("bytes", "class number of every pixel of `image`, a PNG of 8 bits; 0 is background"),
    "metadata": ("bytes", "what else the source says of the image, a JSON object of texts, such as `view` and `sex`"),
}

# column -> what it holds of each record, in the index file beside a shard; tfrecords/README.md shows this table, too
INDEX_COLUMNS: Mapping[str, str] = {
    "start": "byte offset in the shard at which the record (with its header) begins",
    "height": "rows of `image`",
    "width": "columns of `image`",
    "label": "list of class ids, or the 0/1 vector, as in the record",
    "patient": "as in the record",
    "study": "as in the record",
    "path": "as in the record",
}

SPLITS = ("train", "val", "test")
VERSION_1_SPLITS = {"train": "train", "tune": "val", "valid": "test"}  # name in version 1 -> name in version 2


@dataclasses.dataclass(frozen=True)
class Record:
    """One image with everything that is known about it; the fields are those of `FEATURES` and `OPTIONAL`.

    An optional feature that a record lacks is empty.
    """

    image: bytes
    format: str
    height: int
    width: int
    sha256: str
    path: str
    area: str
    patient: str
    study: str
    label: tuple[int, ...]
    split: str
    mask: bytes = b""
    metadata: bytes = b""


def _example_class():
    """The message class of `tf.train.Example`, built from its definition in a separate descriptor pool."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="kmura/example.proto", package="kmura", syntax="proto3")

    def add(parent, name, *fields):
        message = parent.add(name=name)
        for number, (field_name, label, kind, type_name) in enumerate(fields, 1):
            message.field.add(name=field_name, number=number, label=label, type=kind, type_name=type_name)
        return message

    single, repeated = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    add(file.message_type, "BytesList", ("value", repeated, field.TYPE_BYTES, None))
    add(file.message_type, "FloatList", ("value", repeated, field.TYPE_FLOAT, None))
    add(file.message_type, "Int64List", ("value", repeated, field.TYPE_INT64, None))
    lists = [
        (f"{kind}_list", single, field.TYPE_MESSAGE, f".kmura.{kind.title()}List")
        for kind in ("bytes", "float", "int64")
    ]
    feature = add(file.message_type, "Feature", *lists)
    feature.oneof_decl.add(name="kind")
    for member in feature.field:
        member.oneof_index = 0
    features = add(
        file.message_type, "Features", ("feature", repeated, field.TYPE_MESSAGE, ".kmura.Features.FeatureEntry")
    )
    entry = add(
        features.nested_type,
        "FeatureEntry",
        ("key", single, field.TYPE_STRING, None),
        ("value", single, field.TYPE_MESSAGE, ".kmura.Feature"),
    )
    entry.options.map_entry = True
    add(file.message_type, "Example", ("features", single, field.TYPE_MESSAGE, ".kmura.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("kmura.Example"))


Example = _example_class()


def encode(record: Record) -> bytes:
    """The record as a serialised `tf.train.Example`; equal records give equal bytes."""
    example = Example()
    for name, (kind, _) in FEATURES.items():
        value = getattr(record, name)
        feature = example.features.feature[name]
        if kind == "bytes":
            feature.bytes_list.value.append(value if isinstance(value, bytes) else value.encode())
        elif kind == "int64":
            feature.int64_list.value.append(value)
        else:
            feature.int64_list.value.extend(value)
    for name in OPTIONAL:
        if value := getattr(record, name):
            example.features.feature[name].bytes_list.value.append(value)
    return example.SerializeToString(deterministic=True)


def decode(serialised: bytes) -> Record:
    """The record in a serialised `tf.train.Example`.

    Raises:
        ValueError: the bytes are not an Example or lack a feature of the schema.
    """
    example = Example()
    try:
        example.ParseFromString(serialised)
    except DecodeError as error:
        raise ValueError(f"not a serialised Example ({error})") from error
    values = {}
    for name, (kind, _) in FEATURES.items():
        if name not in example.features.feature:
            raise ValueError(f"feature {name!r} is missing")
        feature = example.features.feature[name]
        if kind == "int64 list":
            values[name] = tuple(feature.int64_list.value)
            continue
        value = list((feature.bytes_list if kind == "bytes" else feature.int64_list).value)
        if len(value) != 1:
            raise ValueError(f"feature {name!r} holds {len(value)} values of kind {kind}, not one")
        values[name] = value[0] if name == "image" or kind == "int64" else value[0].decode()
    for name in OPTIONAL:
        if name in example.features.feature:
            values[name] = b"".join(example.features.feature[name].bytes_list.value)
    values["split"] = VERSION_1_SPLITS.get(values["split"], values["split"])
    return Record(**values)


def parse_spec(names=tuple(FEATURES)) -> dict:
    """The argument `features` of `tf.io.parse_single_example` for the named features."""
    import tensorflow as tf

    kinds = {
        "bytes": tf.io.FixedLenFeature([], tf.string),
        "int64": tf.io.FixedLenFeature([], tf.int64),
        "int64 list": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True),
    }
    return {name: kinds[FEATURES[name][0]] for name in names}
