"""Segmentation of CT volumes: volumes with their geometry, transforms, the sides of the head, the ASPECTS regions."""
