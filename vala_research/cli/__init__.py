"""The command line `vala`: one file per command."""
