"""The pipeline that edits a clip."""
