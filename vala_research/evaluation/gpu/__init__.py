"""Check and time the package on this machine's graphics card: `make gpu`."""
