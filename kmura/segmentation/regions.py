"""The twenty ASPECTS regions: ten per hemisphere, numbered 1-10 on the patient's left and 11-20 on the right."""

MERGED_REGIONS = (
    "caudate",
    "lentiform",
    "internal_capsule",
    "insula",
    "M4",
    "M5",
    "M6",
    "M1",
    "M2",
    "M3",
)  # class numbers 1..10 when both sides are one class; the order of the older data set
SIDES = ("left", "right")
REGIONS = tuple(f"{name}_{side}" for side in SIDES for name in MERGED_REGIONS)  # class numbers 1..20; 0: background
