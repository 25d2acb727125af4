"""The report page: one HTML file without a network."""
