"""Long measurements, whose results are stored: run each as `python -m mpnn.studies.NAME`."""
