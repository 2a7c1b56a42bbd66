"""One paper idea per file: torch in, torch out. Imports only InputError from the package."""
