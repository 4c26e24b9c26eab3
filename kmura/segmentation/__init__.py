"""Segmentation of volumes: CT scans with label maps in, a model that segments a volume out."""
