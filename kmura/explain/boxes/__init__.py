"""Bounding boxes of findings or of anatomy: their files, the images they belong to, and scores of maps against them."""
