"""The whole node on one machine with a PACS of its own: what `dicom-node demo` shows."""
