"""One paper idea per file: torch in, torch out; nothing of the package is imported here."""
