"""The twenty ASPECTS regions (Barber et al. 2000): ten of each hemisphere, in the order of the classes 1 to 20."""

ONE_SIDE = ("caudate", "lentiform", "internal_capsule", "insula", "M4", "M5", "M6", "M1", "M2", "M3")
ASPECTS = tuple(f"{name}_{side}" for side in ("left", "right") for name in ONE_SIDE)
