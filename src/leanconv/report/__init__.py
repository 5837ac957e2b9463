"""Pages from plain records: one HTML file each, that opens from the disk. Imports no torch."""
