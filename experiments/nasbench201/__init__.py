"""NAS-Bench-201 as a plug-in: a space of cells, with accuracies and latencies from tables."""
