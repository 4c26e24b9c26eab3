"""`kmura serve`: exports behind TensorFlow Serving's REST interface, DICOM included, with a page in the browser."""
