"""A DICOM node that screens chest X-rays: everything DICOM and everything durable."""

__version__ = "0.1.0"
